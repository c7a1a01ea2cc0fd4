"""Which data folder and which privacy ledger are this site's: facts of the site, never of the server."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context

from client.ledger import LEDGER_NAME
from dsm_core.data import site_folders
from strategies.messages import MessageFault

SITE_DIR = "site-dir"  # node config of a SuperNode: the site's data folder
SITES_DIR = "sites-dir"  # run config of a local simulation: a folder of site folders
LEDGER_FILE = "privacy-ledger"  # node config of a SuperNode: the site's privacy ledger, where not in its folder
PARTITION = "partition-id"  # node config that Flower's simulation gives each of its nodes


def site_dir(context: Context) -> Path:
    """The data folder of the site that this node stands for.

    Raises:
        MessageFault: the node names no folder, or the simulation has more nodes than site folders.
    """
    if own := context.node_config.get(SITE_DIR):
        return Path(str(own))
    root, partition = context.run_config.get(SITES_DIR), context.node_config.get(PARTITION)
    if not root or partition is None:
        raise MessageFault(
            f"this node knows no data folder; start it with --node-config '{SITE_DIR}=\"DIR\"', "
            f"or a simulation with --run-config '{SITES_DIR}=\"DIR\"'"
        )
    folders = site_folders(str(root))
    if int(partition) >= len(folders):
        raise MessageFault(
            f"the simulation has a node {int(partition)} and {SITES_DIR} holds {len(folders)} site folders; "
            f"start it with num-supernodes={len(folders)} and an absolute {SITES_DIR}"
        )
    return folders[int(partition)]


def ledger_file(context: Context) -> Path:
    """The privacy ledger of the site that this node stands for; it need not exist."""
    named = context.node_config.get(LEDGER_FILE)
    return Path(str(named)) if named else site_dir(context) / LEDGER_NAME

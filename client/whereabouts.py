"""Which data folder and privacy ledger are this site's, and what does it allow? Facts that no server sets."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context

from client.budget import Budget
from client.ledger import LEDGER_NAME
from client.site_file import SiteFileError, SiteSettings, read_site_file
from dsm_core.data import site_folders
from strategies.messages import MessageFault

SITE_FILE = "site-file"  # node config of a SuperNode: the site's own file, see client.site_file
AUDIT = "audit"  # node config of a SuperNode: the site's audit log
SITE_NAME = "site-name"  # node config of a SuperNode: the name in the site's certificate
SITE_DIR = "site-dir"  # node config of a SuperNode without a site file: the data folder
SITES_DIR = "sites-dir"  # run config of a local simulation: a folder of site folders
LEDGER_FILE = "privacy-ledger"  # node config of a SuperNode: the site's privacy ledger, where not in its folder
PARTITION = "partition-id"  # node config that Flower's simulation gives each of its nodes


def site_settings(context: Context) -> SiteSettings:
    """What the site that this node stands for allows; its data folder is part of it.

    Raises:
        MessageFault: the node names no folder, its site file has faults, or the simulation has more nodes than folders.
    """
    if path := context.node_config.get(SITE_FILE):
        try:
            return read_site_file(str(path))
        except SiteFileError as error:
            raise MessageFault(
                f"{len(error.faults)} faults in the site's site.yaml; `dsm-site status` at the site lists them"
            ) from error
    return SiteSettings(_data_folder(context))


def site_name(context: Context) -> str | None:
    """The site's name in the consortium; None where there is none, and the data folder gives it."""
    name = context.node_config.get(SITE_NAME)
    return str(name) if name else None


def _data_folder(context: Context) -> Path:
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


def budget(context: Context) -> Budget:
    """What the site that this node stands for may spend of its patients' privacy."""
    settings = site_settings(context)
    named = context.node_config.get(LEDGER_FILE) or settings.ledger
    return Budget(Path(str(named)) if named else settings.data / LEDGER_NAME, bool(named), settings.epsilon_ceiling)

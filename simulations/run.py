"""dsm-simulate: N sites on one machine, from data to report.

dsm-simulate                                   generated sites, federated beside local-only training
dsm-simulate compare=all sites=8 rounds=50     with pooled training and plain FedAvg beside it
dsm-simulate sites_dir=DIR eval_dir=DIR        your own folders (MSD or nnU-Net layout)
dsm-simulate resume=runs/NAME                  go on with a run that was stopped
"""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Sequence

from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config, describe_config

HELP = f"{__doc__}\nEvery key, with its default:\n"


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what the system says of a disk, a quota, a limit that is reached


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of dsm-simulate; 0 when the report was written, 2 on bad input, 1 when the run failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if any(word in ("-h", "--help", "help") for word in words):
        print(HELP + describe_config(Config()))
        return 0
    try:
        config, folder = compose_config(words), None
    except ConfigError as error:
        print(f"dsm-simulate: {error}", file=sys.stderr)
        return 2
    # MONAI warns of its own deprecated calls, a line a case.
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    warnings.filterwarnings("ignore", category=UserWarning, module="monai")
    print("dsm-simulate: loading PyTorch, MONAI and Flower ...", flush=True)
    from client.ledger_lines import LedgerFault
    from dsm_core.checkpoint import CheckpointError
    from dsm_core.data import DatalistError
    from dsm_core.text_space import TextSpaceError
    from server.exchange import FederationError
    from server.resume import recall_config
    from server.state_file import StateError
    from simulations.results import RunFolderError
    from simulations.sites import SitesError
    from simulations.stages import simulate

    try:
        if config.resume:
            config, folder = recall_config(words)
        report = simulate(config, ["dsm-simulate", *words], folder)
    except DatalistError as error:
        print(f"dsm-simulate: {error}\n{error.details()}", file=sys.stderr)
        return 2
    except (TextSpaceError, RunFolderError, SitesError, ConfigError, LedgerFault) as error:
        print(f"dsm-simulate: {error}", file=sys.stderr)
        return 2
    except (FederationError, StateError, CheckpointError) as error:
        print(f"dsm-simulate: the run failed: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        remedy = "make room on the disk of the run folder, then go on with `dsm-simulate resume=RUN_DIR`"
        print(f"dsm-simulate: the run failed: {error.strerror}; {remedy}", file=sys.stderr)
        return 1
    print("dry run: nothing trained, nothing written" if report is None else f"report: {report}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

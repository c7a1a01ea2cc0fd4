"""What can be said to `dsm-predict`? Apart from it, so that another command offers the same before it loads PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint, scan, phrases, and how they are answered."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder, such as runs/NAME/checkpoints/best")
    parser.add_argument("scan", type=Path, help="CT scan in Hounsfield units (.nii or .nii.gz)")
    parser.add_argument("--query", action="append", default=[], metavar="PHRASE", help="repeat for several phrases")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.nii.gz", help="label map of the queries to write")
    parser.add_argument(
        "--anomaly",
        type=Path,
        metavar="OUT.nii.gz",
        help="also write how far each voxel of an organ departs from healthy tissue, in standard deviations, whatever "
        "the cause; needs no query",
    )
    parser.add_argument(
        "--host", metavar="ORGAN", help="organ in which a lesion is looked for whose own host is unknown"
    )
    parser.add_argument(
        "--probability", action="store_true", help="also write OUT_probability.nii.gz, one volume a query"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="probability from which a voxel is in (default 0.5)"
    )
    parser.add_argument("--host-margin-mm", type=float, metavar="MM", help="keep lesions within MM of their host organ")
    parser.add_argument(
        "--text-weights", metavar="W", help="open_clip tag, file or folder, for phrases not in the bank"
    )
    parser.add_argument(
        "--phrase-cache",
        type=Path,
        metavar="DIR",
        help="phrases that `dsm-site encode` had encoded (FED_DSM_CACHE, else ~/.cache/fed-dsm)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--allow-non-ct", action="store_true", help="go on with a scan that does not look like CT")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be done, write nothing"
    )

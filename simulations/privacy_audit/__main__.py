"""Does private training keep its promise under attack? `audit.json` and `audit.html` in a folder.

python -m simulations.privacy_audit [--quick] [--epsilon 8 1] [--delta 1e-5] [--seed 0] [--out runs/privacy-audit]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every check holds, 1 when one does not, 2 on bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m simulations.privacy_audit", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0, 1.0], help="claims to audit")
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="of everything, noise included")
    parser.add_argument("--runs", type=int, help="runs of the attack on updates, for each claim")
    parser.add_argument("--quick", action="store_true", help="few runs: does it work?")
    parser.add_argument("--out", type=Path, default=Path("runs/privacy-audit"), help="folder of the audit")
    given = parser.parse_args(words)
    print("privacy audit: loading PyTorch and Opacus ...", file=sys.stderr, flush=True)
    import torch
    from tqdm import tqdm

    from dsm_core.config import ConfigError
    from simulations.privacy_audit.audit import (
        FULL,
        QUICK,
        Terms,
        audit_released_model,
        audit_updates,
        check_findings,
        invert_both,
    )
    from simulations.privacy_audit.inversion import TARGET
    from simulations.privacy_audit.page import save_pictures, write_page
    from simulations.privacy_audit.planted import SIZE
    from simulations.privacy_audit.results import PrivacyAudit, write_audit
    from simulations.privacy_audit.updates import CANARIES
    from simulations.provenance import installed_versions, portable_command, source_commit

    torch.set_num_threads(1)
    terms = Terms(tuple(given.epsilon), given.delta, seed=given.seed)
    effort = QUICK if given.quick else FULL
    if given.runs:
        effort = replace(effort, private_runs=given.runs)
    started = time.process_time()
    rows = []
    try:
        with tqdm(total=effort.ticks(len(terms.claims)), unit="", desc="attacks", mininterval=1.0) as bar:
            for claim in (None, *terms.claims):
                bar.set_description("updates" if claim is None else f"updates, epsilon {claim:g}")
                runs = effort.open_runs if claim is None else effort.private_runs
                rows += audit_updates(terms, claim, runs, bar.update)
                bar.set_description("model" if claim is None else f"model, epsilon {claim:g}")
                rows += audit_released_model(terms, claim, effort, bar.update)
            bar.set_description("inversion")
            inversions = invert_both(terms, effort.inversion, bar.update)
    except ConfigError as error:
        print(f"privacy audit: {error}", file=sys.stderr)
        return 2
    checks = check_findings(terms, rows, inversions)
    given.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": portable_command(["python", "-m", "simulations.privacy_audit", *words]),
        "commit": source_commit()[0],
        "seed": terms.seed,
        "versions": installed_versions(),
        "delta": terms.delta,
        "confidence": terms.confidence,
        "preset": "quick" if given.quick else "full",
        "effort": asdict(effort),
        "canaries_a_run": CANARIES,
        "patch": SIZE,
        "inverted_widths": TARGET.widths,
        "cpu_seconds": time.process_time() - started,
    }
    audit = PrivacyAudit(tuple(rows), tuple(checks), tuple(save_pictures(given.out, inversions)), facts)
    write_audit(given.out, audit)
    print(_shown(audit))
    print(write_page(given.out))
    return 0 if all(check.ok for check in checks) else 1


def _shown(audit: object) -> str:
    from simulations.benchmarks.table import format_table
    from simulations.privacy_audit.results import PrivacyAudit

    assert isinstance(audit, PrivacyAudit)
    rows = [asdict(row) for row in audit.rows]
    checks = [{**asdict(check), "ok": "yes" if check.ok else "NO"} for check in audit.checks]
    return format_table(rows) + format_table(checks)


if __name__ == "__main__":
    sys.exit(main())

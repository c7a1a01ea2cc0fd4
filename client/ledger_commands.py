"""`dsm-site ledger`: the privacy officer's view of what a site has spent, and the only way to change its ceiling."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.ledger import LEDGER_NAME, History, Ledger, LedgerFault
from dsm_core.data import DatalistError, read_datalist


def add_commands(commands: Any) -> None:
    """Add `ledger` with its own commands to the subparsers of `dsm-site`."""
    ledger = commands.add_parser("ledger", help="what the site's patients have spent of their privacy, and its ceiling")
    parsers = ledger.add_subparsers(dest="ledger_command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        parser = parsers.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        parser.add_argument("folder", type=Path, metavar="DIR", help="the site's data folder")
        parser.add_argument("--file", type=Path, help=f"the ledger, where it is not DIR/{LEDGER_NAME}")
        parser.set_defaults(run=run)
        return parser

    create = add("create", _create, "begin the site's ledger; from then on it trains privately or not at all")
    create.add_argument("--epsilon", type=float, required=True, help="ceiling for every patient, over all runs")
    create.add_argument("--delta", type=float, help="chance that epsilon does not hold; default 1 / patients^2")
    ceiling = add("ceiling", _ceiling, "change the ceiling; the old one stays written down")
    ceiling.add_argument("--epsilon", type=float, required=True, help="new ceiling for every patient, over all runs")
    show = add("show", _show, "what was spent, when and for what")
    verify = add("verify", _verify, "check every line against its hash; exit code 1 where something is wrong")
    verify.add_argument("--head", help="a hash noted earlier, which the ledger must still hold")
    for parser in (show, verify):
        parser.add_argument("--json", action="store_true", help="the answer as JSON")


def _create(options: argparse.Namespace) -> int:
    def run() -> int:
        path = _path(options)
        delta, patients = create_ledger(path, options.folder, options.epsilon, options.delta)
        print(f"{path}: ceiling epsilon={options.epsilon:g} at delta={delta:.3g} for {patients} patients")
        return 0

    return _answering_faults(run)


def create_ledger(path: Path, folder: Path, epsilon: float, delta: float | None = None) -> tuple[float, int]:
    """Begin the ledger of a site's folder; returns its delta and the number of patients.

    Args:
        delta: absent, 1 / patients^2: below 1 / patients, at which revealing one patient whole would keep the promise.

    Raises:
        LedgerFault: there is one already, or the numbers are no ceiling or no promise.
        DatalistError: the folder has faults.
    """
    datalist = read_datalist(folder)
    patients = len({(case.patient is None, case.patient or case.name) for case in datalist.annotated_cases})
    delta = 1 / max(2, patients) ** 2 if delta is None else delta
    if delta >= 1 / max(1, patients):
        raise LedgerFault(
            f"delta={delta:g} for {patients} patients: to reveal one of them whole would keep that promise; name one "
            f"well below {1 / max(1, patients):.2g}, or none"
        )
    Ledger(path, datalist.site).create(epsilon, delta)
    return delta, patients


def _ceiling(options: argparse.Namespace) -> int:
    def run() -> int:
        ledger = _ledger(options)
        before = ledger.read().epsilon
        ledger.set_ceiling(options.epsilon)
        print(f"{ledger.path}: ceiling epsilon={options.epsilon:g}, before {before:g}")
        return 0

    return _answering_faults(run)


def _show(options: argparse.Namespace) -> int:
    def run() -> int:
        history = _ledger(options).read()
        report = _report(history)
        print(json.dumps(report, indent=1) if options.json else _text(report))
        return 0

    return _answering_faults(run)


def _verify(options: argparse.Namespace) -> int:
    def run() -> int:
        history = _ledger(options).read()
        hashes = [entry["hash"] for entry in history.entries]
        if options.head and options.head not in hashes:
            raise LedgerFault(
                f"the ledger does not hold the hash {options.head[:12]} noted earlier: lines were lost, or an older "
                f"copy was put back; find the copy that holds it"
            )
        answer = {"is_sound": True, "lines": len(hashes), "head": history.head, "warnings": list(history.warnings)}
        if options.json:
            print(json.dumps(answer, indent=1))
        else:
            print("\n".join([f"sound: {len(hashes)} lines, head {history.head}", *history.warnings]))
        return 0

    return _answering_faults(run, as_json=options.json)


def _answering_faults(run: Callable[[], int], as_json: bool = False) -> int:
    try:
        return run()
    except (LedgerFault, DatalistError) as fault:
        print(
            json.dumps({"is_sound": False, "fault": f"{fault}"}, indent=1) if as_json else f"{fault}", file=sys.stderr
        )
        return 1


def _path(options: argparse.Namespace) -> Path:
    return options.file or options.folder / LEDGER_NAME


def _ledger(options: argparse.Namespace) -> Ledger:
    return Ledger(_path(options), read_datalist(options.folder).site)


def _report(history: History) -> dict[str, Any]:
    from client.privacy.accounting import Spending  # seconds to import, and only wanted here

    spending = Spending.of(history)
    charges = [entry for entry in history.entries if entry["kind"] == "charge"]
    shown = ("time", "sampling_rate", "noise_multiplier", "steps", "note")
    return {
        "site": history.site,
        "ceiling": spending.ceiling,
        "delta": spending.delta,
        "spent": spending.epsilon,
        "steps": spending.steps,
        "charges": [{key: entry[key] for key in shown} for entry in charges],
        "warnings": list(history.warnings),
        "head": history.head,
    }


def _text(report: dict[str, Any]) -> str:
    lines = [
        f"Site {report['site']}: every patient has spent epsilon {report['spent']:.3f} of {report['ceiling']:g} "
        f"(delta {report['delta']:.3g}) in {report['steps']} steps of {len(report['charges'])} charges",
        f"head {report['head']}",
    ]
    if report["charges"]:
        lines += ["", f"{'time (UTC)':<20}  {'rate':>8}  {'noise':>8}  {'steps':>6}  note"]
    for charge in report["charges"]:
        note = ", ".join(f"{key} {value}" for key, value in charge["note"].items())
        lines.append(
            f"{charge['time'][:19].replace('T', ' '):<20}  {charge['sampling_rate']:>8.4f}  "
            f"{charge['noise_multiplier']:>8.4f}  {charge['steps']:>6}  {note}"
        )
    if report["warnings"]:
        lines += ["", "Warnings", *(f"  {warning}" for warning in report["warnings"])]
    return "\n".join(lines)

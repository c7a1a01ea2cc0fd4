"""What did a run leave in its folder? Its files, read and checked, as one record."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsm_core.classes import describe_class
from simulations.summary import STATUSES, Cell


class ReportError(ValueError):
    """A run folder that cannot be reported; the message names every file that is missing or broken."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds, checked."""

    path: Path
    info: dict[str, Any]
    cells: tuple[Cell, ...]
    history: tuple[dict[str, Any], ...]
    overlays: tuple[dict[str, Any], ...]
    config_text: str

    @property
    def kinds(self) -> dict[str, str]:
        """organ or lesion for every class: as `run.json` declares it under "classes", else by its name."""
        declared = {name: entry.get("kind") for name, entry in (self.info.get("classes") or {}).items()}
        return {name: str(describe_class(name, declared.get(name)).kind) for name in {c.class_name for c in self.cells}}


def read_run(path: str | Path) -> Run:
    """Read a run folder. `run.json` and `matrix.json` are needed; history, overlays and config may be absent.

    Raises:
        ReportError: every missing or broken file at once.
    """
    path = Path(path)
    if not path.is_dir():
        raise ReportError(f"{path} is not a folder; give the run folder that dsm-simulate printed last")
    faults: list[str] = []
    info = _read_json(path / "run.json", dict, faults)
    rows = _read_json(path / "matrix.json", list, faults)
    cells = tuple(cell for number, row in enumerate(rows, 1) if (cell := _to_cell(number, row, faults)))
    history = _read_history(path / "history.jsonl", faults)
    overlays = _read_overlays(path / "overlays", faults)
    if not faults and not cells:
        faults.append("matrix.json: holds no cell; a run writes one row a method, site and class")
    if faults:
        raise ReportError(f"{path.name} cannot be reported:\n" + "\n".join(f"  {fault}" for fault in faults))
    config = path / "config.yaml"
    return Run(path, info, cells, history, overlays, config.read_text(encoding="utf-8") if config.exists() else "")


def _read_json(path: Path, wanted: type, faults: list[str]) -> Any:
    value: Any = None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        faults.append(f"{path.name}: missing; the run that writes it did not get that far")
    except (OSError, ValueError) as error:
        faults.append(f"{path.name}: cannot be read as JSON ({error})")
    else:
        if not isinstance(value, wanted):
            faults.append(f"{path.name}: holds a {type(value).__name__}, wanted a {wanted.__name__}")
    return value if isinstance(value, wanted) else wanted()


def _to_cell(number: int, row: Any, faults: list[str]) -> Cell | None:
    try:
        return Cell(
            str(row["method"]), str(row["site"]), str(row["class"]), _one_of(row["status"], STATUSES),
            _number(row["dice"]), _number(row.get("nsd")), int(row.get("cases") or 0),
            _number(row.get("false_positive_ml")),
        )  # fmt: skip
    except KeyError as error:
        faults.append(f"matrix.json: row {number} lacks {error}")
    except (TypeError, ValueError, AttributeError) as error:
        faults.append(f"matrix.json: row {number}: {error}")
    return None


def _one_of(value: Any, names: tuple[str, ...]) -> str:
    if value not in names:
        raise ValueError(f"status {value!r}, wanted one of {', '.join(names)}")
    return str(value)


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _read_history(path: Path, faults: list[str]) -> tuple[dict[str, Any], ...]:
    """Rounds in order. Of a round written twice (a resumed run) the later counts; a torn last line is left out."""
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines()
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            sites = record.get("site_losses") or {}
            # Methods that train each site alone may write one line a site and round.
            key = record["method"], int(record["round"]), tuple(sites) if len(sites) == 1 else ()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number < len(lines):
                faults.append(f"history.jsonl: line {number} is no round ({error!r})")
            continue
        cleaned = {k: _number(record.get(k)) for k in ("loss", "server_step", "val_dice")}
        losses = {str(site): _number(loss) for site, loss in sites.items()}
        records[key] = {**record, **cleaned, "site_losses": losses}
    return tuple(sorted(records.values(), key=lambda record: int(record["round"])))


def _read_overlays(folder: Path, faults: list[str]) -> tuple[dict[str, Any], ...]:
    """Entries of `overlays.json`, each with its picture as a data URI under "uri"."""
    if not (folder / "overlays.json").exists():
        return ()
    entries = []
    for entry in _read_json(folder / "overlays.json", list, faults):
        missing = {"file", "method", "site", "class", "status", "dice"} - set(
            entry if isinstance(entry, Mapping) else ()
        )
        if missing:
            faults.append(f"overlays/overlays.json: an entry lacks {', '.join(sorted(missing))}")
            continue
        name = Path(entry["file"]).name
        if not (folder / name).is_file():
            faults.append(f"overlays/{name}: missing, but overlays.json names it")
            continue
        uri = "data:image/png;base64," + base64.b64encode((folder / name).read_bytes()).decode()
        entries.append({**entry, "anomaly": bool(entry.get("anomaly")), "dice": _number(entry["dice"]), "uri": uri})
    return tuple(sorted(entries, key=lambda e: (STATUSES.index(e["status"]), e["site"], e["class"], e["method"])))

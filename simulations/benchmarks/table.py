"""What did a benchmark measure, and does it hold? A printed table, its checks, and one JSON file with provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsm_core.config import Config, config_hash
from simulations.provenance import installed_versions, portable_command, source_commit
from simulations.results import write_atomically

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One promise of a benchmark.

    Attributes:
        value: what was measured.
        want: what was promised, in words or signs, such as `<= 1e-06`.
    """

    name: str
    value: Any
    want: str
    ok: bool

    @classmethod
    def equal(cls, name: str, value: Any, wanted: Any) -> Check:
        return cls(name, value, f"{wanted}", value == wanted)

    @classmethod
    def at_most(cls, name: str, value: float, limit: float) -> Check:
        """NaN is never at most anything."""
        return cls(name, value, f"<= {limit:g}", value <= limit)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float) -> Check:
        return cls(name, value, f">= {limit:g}", value >= limit)


def write_benchmark(
    name: str,
    rows: Sequence[Row],
    checks: Sequence[Check],
    *,
    command: Sequence[str],
    config: Config,
    text_encoder: str,
    **facts: Any,
) -> Path:
    """Print rows and checks, and write them to `OUT/benchmarks/NAME.json`, replacing an earlier result.

    Args:
        command: what was typed; absolute paths in it are made relative.
        config: of the run; gives the output folder, the seed and the hash.
        facts: further JSON-able fields, such as seconds or a tolerance. A number that is not finite becomes null.
    """
    print(format_table(rows))
    print(format_table([{**asdict(check), "ok": "yes" if check.ok else "NO"} for check in checks]))
    content = {
        "name": name,
        "command": portable_command(command),
        "commit": source_commit()[0],
        "seed": config.seed,
        "config_hash": config_hash(config),
        "text_encoder": text_encoder,
        "versions": installed_versions(),
        **facts,
        "rows": [dict(row) for row in rows],
        "checks": [asdict(check) for check in checks],
    }
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    path = Path(config.out) / "benchmarks" / f"{name}.json"
    write_atomically(path, json.dumps(finite, indent=1, allow_nan=False) + "\n")
    return path


def format_table(rows: Sequence[Row]) -> str:
    """Rows as aligned text: every key that occurs is a column, numbers to the right; a trailing empty line."""
    if not rows:
        return "(no rows)\n"
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, *([_shown(row.get(key)) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_number = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in keys]
    return "".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""What does a site know of its own data? The report of `dsm-site check`: faults, label contract, scans in summary.

The report names files and is for the site's own screen; only `SiteReport.contract` is meant to leave it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsm_core.data import Fault, Inspection, LabelContract, inspect_folder, label_contract
from strategies.deployment.tables import table

_QUANTILES = (0.005, 0.25, 0.5, 0.75, 0.995)


@dataclass(frozen=True)
class SiteReport:
    """The state of a site's data folder."""

    inspection: Inspection

    @property
    def is_sound(self) -> bool:
        """True where nothing forbids training on the folder."""
        return not self.inspection.faults

    @property
    def contract(self) -> LabelContract | None:
        """What the site may tell the coordinator; None while the folder has faults."""
        return label_contract(self.inspection.datalist, self.inspection.fingerprint) if self.is_sound else None

    def to_dict(self) -> dict[str, Any]:
        """Everything in the report, JSON-able."""
        datalist, fingerprint = self.inspection.datalist, self.inspection.fingerprint
        by_axis = {"spacing_mm": fingerprint.spacing_mm, "size": fingerprint.size}
        axes = {
            key: {"mean": [_number(m.mean) for m in ms], "sd": [_number(m.sd) for m in ms]}
            for key, ms in by_axis.items()
        }
        hu = fingerprint.intensity_hu
        contract = self.contract
        return {
            "site": datalist.site,
            "is_sound": self.is_sound,
            "faults": [asdict(fault) for fault in self.inspection.faults],
            "warnings": [asdict(warning) for warning in self.inspection.warnings],
            "cases": len(datalist.cases),
            "annotated_cases": len(datalist.annotated_cases),
            "classes": {
                name: {"value": value, "kind": info.kind.value, "host": info.host, "cases": datalist.evidence()[name]}
                for name, value in sorted(datalist.values.items())
                if (info := datalist.classes.get(name))
            },
            **axes,
            "labelled_hu": {
                "mean": _number(hu.mean),
                "sd": _number(hu.sd),
                "quantiles": {f"{share:g}": _number(fingerprint.quantile_hu(share)) for share in _QUANTILES},
            },
            "contract": contract.to_dict() if contract else None,
        }

    def to_text(self) -> str:
        """The report for a person: faults first, then what the folder holds."""
        report = self.to_dict()
        state = "sound" if self.is_sound else f"{len(report['faults'])} fault(s), not usable yet"
        lines = [f"Site {report['site']}: {state}", *_listed("Faults", self.inspection.faults)]
        lines += _listed("Warnings (usable, but look)", self.inspection.warnings)
        lines += ["", f"{report['cases']} cases, {report['annotated_cases']} of them annotated"]
        if report["classes"]:
            rows = [
                (n, str(c["value"]), c["kind"], c["host"] or "-", str(c["cases"])) for n, c in report["classes"].items()
            ]
            lines += ["", "Label contract", *table([("class", "value", "kind", "host", "cases"), *rows])]
        if self.inspection.fingerprint.cases:
            cases = self.inspection.fingerprint.cases
            lines += ["", f"Scans (mean ± sd over {cases} sound annotated cases; x, y, z in RAS order)"]
            for title, key, digits in (("voxel, mm", "spacing_mm", 2), ("size, voxels", "size", 0)):
                pairs = zip(report[key]["mean"], report[key]["sd"], strict=True)
                lines.append(
                    f"  {title:<13}" + "   ".join(f"{mean:.{digits}f} ± {sd:.{digits}f}" for mean, sd in pairs)
                )
        hu = report["labelled_hu"]
        if hu["mean"] is not None:
            quantiles = ", ".join(f"{100 * float(share):g} %: {value:.0f}" for share, value in hu["quantiles"].items())
            lines += ["", f"Intensity of labelled voxels, HU: {hu['mean']:.0f} ± {hu['sd']:.0f}; {quantiles} (± 4)"]
        return "\n".join(lines)


def check_site(folder: Path | str) -> SiteReport:
    """Open everything in a site's folder and report on it; never raises for what the folder holds."""
    return SiteReport(inspect_folder(folder))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _listed(title: str, faults: Iterable[Fault]) -> list[str]:
    lines = [f"  {fault}" for fault in faults]
    return ["", title, *lines] if lines else []

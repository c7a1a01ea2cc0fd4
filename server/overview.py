"""How is the consortium? Sites, services, runs and certificates at a glance, for `dsm-server status`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from server.consortium import ACCEPTED, Consortium
from server.control import ControlFault, connected
from server.provisioning import expiry_warnings
from server.run_table import run_lines
from server.services import NAMES, place_of
from strategies.deployment.certificates import read_certificate
from strategies.deployment.daemon import SUPERVISOR
from strategies.deployment.processes import running_pid
from strategies.deployment.tables import table

UNATTENDED = "programs run, but nobody starts them again: `dsm-server stop`, then `dsm-server start`"


@dataclass(frozen=True)
class SiteLine:
    """One site.

    Attributes:
        state: invited, accepted or revoked.
        connection: online, offline, or empty where the SuperLink does not run or does not know the site.
        until: date on which its certificate ends, empty where it has none.
    """

    site: str
    state: str
    connection: str
    until: str
    reason: str


@dataclass(frozen=True)
class Overview:
    """State of a consortium at one moment.

    Attributes:
        processes: process id of every program of the coordinator, None where it does not run.
        runs: a line for the latest run, and for every other one that has not finished.
    """

    name: str
    fleet: str
    service: str
    until: str
    sites: tuple[SiteLine, ...]
    processes: dict[str, int | None]
    warnings: tuple[str, ...]
    runs: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """The state for a person."""
        rows = [("site", "state", "connection", "certificate until", "")]
        rows += [(s.site, s.state, s.connection or "-", s.until or "-", s.reason) for s in self.sites]
        services = [("service", "process"), *((name, f"{pid or '-'}") for name, pid in self.processes.items())]
        return "\n".join(
            [
                f"{self.name}: sites connect to {self.fleet} (training) and {self.service} (text space, enrolment); "
                f"certificate until {self.until}",
                "",
                *(table(rows) if self.sites else ["  no site yet: `dsm-server add-site NAME`"]),
                "",
                *table(services),
                *(["", *self.runs] if self.runs else []),
                *(f"warning: {warning}" for warning in self.warnings),
            ]
        )


def overview(consortium: Consortium) -> Overview:
    """The state of a consortium now."""
    place, warnings = place_of(consortium), expiry_warnings(consortium)
    try:
        online = connected(consortium)
    except ControlFault as fault:
        online = {}
        warnings.append(f"{fault}")
    lines = []
    for name, record in consortium.sites().items():
        until, connection = "", ""
        if record.state == ACCEPTED:
            until = f"{read_certificate(consortium.site_file(name, '.crt')).not_valid_after_utc:%Y-%m-%d}"
            connection = ("online" if online[name] else "offline") if name in online else ""
        lines.append(SiteLine(name, record.state, connection, until, record.reason))
    server = read_certificate(consortium.server_certificate)
    processes = {name: running_pid(place, name) for name in (SUPERVISOR, *reversed(NAMES))}
    if not processes[SUPERVISOR] and any(processes.values()):
        warnings.append(UNATTENDED)
    return Overview(
        name=consortium.name,
        fleet=consortium.fleet_address,
        service=consortium.service_address,
        until=f"{server.not_valid_after_utc:%Y-%m-%d}",
        sites=tuple(lines),
        processes=processes,
        warnings=tuple(warnings),
        runs=tuple(run_lines(consortium.folder / "runs", time.time())),
    )

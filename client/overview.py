"""How is this site's membership? Identity, settings and processes at a glance, for `dsm-site status` and `start`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from client.membership import Site
from client.services import NAMES, place_of
from client.site_file import SiteFileError, SiteSettings, read_site_file
from strategies.deployment.certificates import expiry_warning, read_certificate
from strategies.deployment.daemon import SUPERVISOR
from strategies.deployment.errors import DeploymentError
from strategies.deployment.processes import running_pid
from strategies.deployment.tables import table

RENEW = "renew it with `dsm-site rotate`"
RUNS, IDLE, INCOMPLETE, UNATTENDED = "runs", "idle", "incomplete", "unattended"
REMEDIES = {
    RUNS: "",
    IDLE: "no program of this site runs: `dsm-site start --detach`, unless systemd or a container runs them",
    INCOMPLETE: "the supervisor starts the missing program again by itself; where it does not, look into logs/",
    UNATTENDED: "programs run, but nobody starts them again: `dsm-site stop`, then `dsm-site start --detach`",
}


@dataclass(frozen=True)
class Overview:
    """State of a site at one moment.

    Attributes:
        until: date on which the site's certificate ends, empty where it has none.
        settings: of `site.yaml`, None while it has faults.
        processes: process id of every program of the site, None where it does not run.
    """

    site: str
    consortium: str
    fleet: str
    service: str
    until: str
    settings: SiteSettings | None
    processes: dict[str, int | None]
    warnings: tuple[str, ...]
    faults: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        settings = asdict(self.settings) if self.settings else None
        if settings is not None:
            settings |= {key: settings[key] and f"{settings[key]}" for key in ("data", "ledger")}
            settings |= {"leaves": sorted(settings["leaves"])}
        return {**asdict(self), "settings": settings}

    def to_text(self) -> str:
        """The state for a person."""
        ends = f"certificate until {self.until}" if self.until else "no certificate yet"
        lines = [f"{self.site} of {self.consortium}: {ends}; coordinator at {self.fleet} and {self.service}"]
        if self.settings:
            allowed = ["label contract", "tensors", *sorted(self.settings.leaves)]
            ceiling = self.settings.epsilon_ceiling
            rows = [
                ("data", f"{self.settings.data}"),
                ("device", self.settings.device),
                ("may leave", ", ".join(allowed)),
                ("epsilon", "not limited" if ceiling is None else f"at most {ceiling:g}, and never without"),
                ("ledger", f"{self.settings.ledger or 'in the data folder, if there is one'}"),
                ("code", "this site's own only" if self.settings.code == "installed" else "whatever is sent"),
            ]
            lines += ["", *table(rows)]
        lines += ["", *table([("service", "process"), *((n, f"{pid or '-'}") for n, pid in self.processes.items())])]
        lines += [f"warning: {warning}" for warning in self.warnings] + [f"fault: {fault}" for fault in self.faults]
        return "\n".join(lines)


def check_membership(site: Site) -> str | None:
    """A warning where the site's certificate ends soon.

    Raises:
        DeploymentError: the site has no certificate yet, or it has expired.
    """
    if not site.is_member:
        raise DeploymentError(
            f"{site.name} is not registered yet: send {site.request} to the coordinator of {site.consortium}, then "
            f"`dsm-site join --certificate FILE` with the file that comes back"
        )
    certificate = read_certificate(site.certificate)
    warning = expiry_warning(f"the certificate of {site.name}", certificate, RENEW)
    if warning and not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
        raise DeploymentError(warning)
    return warning


def processes(site: Site) -> dict[str, int | None]:
    """Process id of every program of the site, None where it does not run."""
    return {name: running_pid(place_of(site), name) for name in (SUPERVISOR, *reversed(NAMES))}


def condition(processes: Mapping[str, int | None]) -> str:
    """Do the site's programs run, and does somebody look after them? A key of `REMEDIES`."""
    programs = [processes[name] for name in NAMES]
    if processes[SUPERVISOR]:
        return RUNS if all(programs) else INCOMPLETE
    return UNATTENDED if any(programs) else IDLE


def overview(site: Site) -> Overview:
    """The state of a site now."""
    faults, warnings, settings, until = [], [], None, ""
    try:
        settings = read_site_file(site.settings)
    except SiteFileError as error:
        faults += [f"site.yaml: {fault}" for fault in error.faults]
    except DeploymentError as error:
        faults.append(f"{error}")
    try:
        if warning := check_membership(site):
            warnings.append(warning)
    except DeploymentError as error:
        faults.append(f"{error}")
    running = processes(site)
    if site.is_member:
        if remedy := REMEDIES[condition(running)]:
            warnings.append(remedy)
        until = f"{read_certificate(site.certificate).not_valid_after_utc:%Y-%m-%d}"
    return Overview(
        site=site.name,
        consortium=site.consortium,
        fleet=site.fleet,
        service=site.service,
        until=until,
        settings=settings,
        processes=running,
        warnings=tuple(warnings),
        faults=tuple(faults),
    )

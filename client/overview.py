"""How is this site's membership? Identity, settings and processes at a glance, for `dsm-site status` and `start`."""

from __future__ import annotations

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
            settings |= {"data": f"{settings['data']}", "leaves": sorted(settings["leaves"])}
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


def overview(site: Site) -> Overview:
    """The state of a site now."""
    place, faults, warnings, settings, until = place_of(site), [], [], None, ""
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
    if site.is_member:
        until = f"{read_certificate(site.certificate).not_valid_after_utc:%Y-%m-%d}"
    return Overview(
        site=site.name,
        consortium=site.consortium,
        fleet=site.fleet,
        service=site.service,
        until=until,
        settings=settings,
        processes={name: running_pid(place, name) for name in (SUPERVISOR, *reversed(NAMES))},
        warnings=tuple(warnings),
        faults=tuple(faults),
    )

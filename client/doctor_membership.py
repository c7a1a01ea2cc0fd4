"""The doctor's first look: has the site joined, and what does its own file say?"""

from __future__ import annotations

from pathlib import Path

from client.connection import tls_files
from client.doctor import Finding, Probe, SiteSetup, State
from client.membership import load_site
from client.site_file import SiteFileError, read_site_file
from strategies.deployment.errors import DeploymentError


def read_setup(folder: Path, data: Path | None, timeout_s: float) -> tuple[SiteSetup, list[Probe]]:
    """What is to be examined, and the findings of reading it.

    Args:
        data: the data folder, instead of the one in `site.yaml`.
    """
    if not (folder / "membership.json").exists():
        found = f"{folder} holds no membership"
        joined = Finding("membership", State.WARNING, found, "join with `dsm-site join KIT`", is_known=False)
        return SiteSetup(data, folder, timeout_s=timeout_s), [_told(joined)]
    try:
        site = load_site(folder)
    except DeploymentError as error:
        return SiteSetup(data, folder, timeout_s=timeout_s), [_told(_fault("membership", error))]
    joined = Finding("membership", State.OK, f"site {site.name!r} of {site.consortium}")
    device = "cpu"
    try:
        settings = read_site_file(site.settings)
        own = Finding("site.yaml", State.OK, "can be read")
        data, device = data or settings.data, settings.device
    except SiteFileError as error:
        own = Finding("site.yaml", State.FAULT, "; ".join(error.faults), f"correct {site.settings}")
    except DeploymentError as error:
        own = _fault("site.yaml", error)
    setup = SiteSetup(data, site.folder, device, site.service, site.fleet, tls_files(site), timeout_s)
    return setup, [_told(joined), _told(own)]


def _fault(name: str, error: DeploymentError) -> Finding:
    found, _, remedy = f"{error}".rpartition("; ")
    return Finding(name, State.FAULT, found or remedy, remedy)


def _told(finding: Finding) -> Probe:
    return Probe((finding.name,), lambda setup: [finding])

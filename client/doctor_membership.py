"""The doctor's first look: has the site joined, what does its own file say, and does what it started still run?"""

from __future__ import annotations

import os
from pathlib import Path

from client.connection import tls_files
from client.doctor import Finding, Probe, SiteSetup, State
from client.ledger import LEDGER_NAME
from client.ledger_lines import LedgerFault, read_history
from client.membership import Site, load_site
from client.overview import REMEDIES, RUNS, condition, processes
from client.site_file import SiteFileError, read_site_file
from strategies.audit import AuditError, AuditLog
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
    device, ledger = "cpu", []
    try:
        settings = read_site_file(site.settings)
        own = Finding("site.yaml", State.OK, "can be read")
        data, device = data or settings.data, settings.device
        ledger = _ledger(settings.ledger, settings.data / LEDGER_NAME)
    except SiteFileError as error:
        own = Finding("site.yaml", State.FAULT, "; ".join(error.faults), f"correct {site.settings}")
    except DeploymentError as error:
        own = _fault("site.yaml", error)
    setup = SiteSetup(data, site.folder, device, site.service, site.fleet, tls_files(site), timeout_s)
    return setup, [_told(each) for each in (joined, own, _programs(site), _audit(site), *ledger)]


def _programs(site: Site) -> Finding:
    """Do the site's programs run? A site that is well and runs nothing takes part in nothing."""
    running = processes(site)
    state = condition(running)
    found = ", ".join(f"{name} {pid or 'does not run'}" for name, pid in running.items())
    return Finding("programs", State.OK if state == RUNS else State.WARNING, found, REMEDIES[state])


def _audit(site: Site) -> Finding:
    """Can the site's record of what leaves be gone on with? Where it cannot, nothing leaves."""
    try:
        head = AuditLog(site.audit).head()
    except (AuditError, OSError) as error:
        found, _, remedy = f"{error}".rpartition(". ")
        return Finding("audit log", State.FAULT, found or remedy, remedy)
    return Finding("audit log", State.OK, f"{head.records} records")


def _fault(name: str, error: DeploymentError) -> Finding:
    found, _, remedy = f"{error}".rpartition("; ")
    return Finding(name, State.FAULT, found or remedy, remedy)


def _told(finding: Finding) -> Probe:
    return Probe((finding.name,), lambda setup: [finding])


def _ledger(named: Path | None, usual: Path) -> list[Finding]:
    """Is the privacy ledger whole? Nothing where the site keeps none."""
    name, path = "privacy ledger", named or usual
    if named is None and not os.path.lexists(path):
        return []
    try:
        history = read_history(path.read_bytes())
    except LedgerFault as fault:
        found, _, remedy = f"{path}: {fault}".rpartition("; ")
        return [Finding(name, State.FAULT, found or remedy, f"{remedy}; until then nothing trained privately leaves")]
    except OSError as error:
        return [
            Finding(
                name, State.FAULT, f"{path} cannot be read ({error.strerror})", "put it back, or let this user read it"
            )
        ]
    found = f"{len(history.charges)} charges, ceiling epsilon {history.epsilon:g}"
    if not history.warnings:
        return [Finding(name, State.OK, found)]
    told = "; ".join((found, *history.warnings))
    return [Finding(name, State.WARNING, told, f"compare with `dsm-site ledger show {path.parent}`")]

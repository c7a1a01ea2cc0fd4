"""Which programs does a site run, with which words? A SuperNode, and what starts the site's app for each message."""

from __future__ import annotations

import os
import sys

from client.membership import Site
from client.own_code import write_programs
from client.site_file import SiteSettings
from client.whereabouts import AUDIT, SITE_FILE, SITE_NAME
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import make_private_folder
from strategies.deployment.flower import BRISK, HOME, LOOPBACK, QUIET, direct_loopback, flower_program, program_path
from strategies.deployment.processes import Place, Program
from strategies.deployment.supervision import Service

SUPERNODE, SUPEREXEC = "supernode", "superexec"
NAMES = (SUPEREXEC, SUPERNODE)  # in the order in which they are asked to end
UNKNOWN_KEY = "[code: 2004]"  # Flower's FLEET_NODE_ACTIVATION_FAILED
CONNECTED = "SuperNode ID:"  # Flower logs it once the coordinator has let it in
# Flower takes a SuperNode that was killed for a connected one until two heartbeats of 30 s are missing, and lets the
# same key in only then.
AFTERLIFE_S = 75.0


def place_of(site: Site) -> Place:
    return Place(site.folder)


def site_services(site: Site, settings: SiteSettings) -> list[Service]:
    """The site's programs in the order of their start; the programs of `own_code` are written."""
    if settings.code == "installed":
        write_programs(make_private_folder(site.folder / "programs"))
    node = Service(
        supernode(site, settings),
        is_ready=lambda said: CONNECTED in said,
        explain=explain,
        patience_s=AFTERLIFE_S,
    )
    return [node, Service(superexec(site, settings))]


def supernode(site: Site, settings: SiteSettings) -> Program:
    """Flower's side of the site: it calls the coordinator, nobody calls it from outside."""
    for name in (site.folder, settings.data):
        if set(f"{name}") & set("\"'"):
            raise DeploymentError(f"{name}: Flower cannot be told a path with a quotation mark; move the folder")
    command = (
        *(sys.executable, "-m", "client.supernode"),
        *("--superlink", site.fleet, "--root-certificates", f"{site.ca_certificate}"),
        *("--auth-supernode-private-key", f"{site.flower_key}"),
        *("--node-config", f'{SITE_FILE}="{site.settings}" {SITE_NAME}="{site.name}" {AUDIT}="{site.audit}"'),
        *("--host", LOOPBACK, "--port", f"{settings.port}"),
        *("--isolation", "process", "--superexec-auth-secret-file", f"{site.superexec_secret}"),
    )
    return Program(SUPERNODE, command, _environment(site, settings), settings.port)


def superexec(site: Site, settings: SiteSettings) -> Program:
    """What starts the ClientApp, in a process of its own for each message."""
    command = (
        flower_program("flower-superexec"),
        *("--runtime-api-address", f"{LOOPBACK}:{settings.port}", "--insecure"),  # this machine's loopback only
        *("--superexec-auth-secret-file", f"{site.superexec_secret}"),
    )
    return Program(SUPEREXEC, command, _environment(site, settings))


def explain(said: str) -> str:
    """What a SuperNode's last words mean."""
    if UNKNOWN_KEY not in said:
        return ""
    return (
        "the coordinator does not let this site in: it has revoked it, or knows another key of it (import its newest "
        "certificate with `dsm-site join --certificate`), or this site's processes were killed less than a minute ago"
    )


def _environment(site: Site, settings: SiteSettings) -> dict[str, str]:
    variables = {**QUIET, **BRISK, **direct_loopback(), HOME: f"{site.flower_home}", **program_path()}
    if settings.code == "installed":
        variables["PATH"] = os.pathsep.join([f"{site.folder / 'programs'}", variables["PATH"]])
    if settings.threads:
        variables["OMP_NUM_THREADS"] = f"{settings.threads}"
    return variables

"""The doctor's questions to this machine: data folder, disk, device, proxy variables, own certificate."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from datetime import UTC, datetime
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import torch

from client.doctor import Finding, Probe, SiteSetup, State
from client.reach import Address, Unreachable
from dsm_core.data import DatalistError, read_datalist
from dsm_core.device import DeviceError, find_device
from strategies.deployment.certificates import WARNING_TIME
from strategies.tls import TlsError, read_certificates, site_name

_WRITTEN_BYTES = 1 << 20
_LEAST_FREE_BYTES, _GOOD_FREE_BYTES = 1 << 30, 10 << 30
_LEAST_FREE_GPU_BYTES = 4 << 30
_PROXIES = ("grpc", "https", "http", "all")  # gRPC heeds the first three, Flower's HTTP the last three


def data_folder(setup: SiteSetup) -> list[Finding]:
    """Can the data folder's list of cases be read? `dsm-site check` opens the scans."""
    name = "data folder"
    if setup.data is None:
        return [Finding(name, State.WARNING, "none is configured", "name the folder that holds dataset.json")]
    try:
        datalist = read_datalist(setup.data)
    except DatalistError as error:
        found = f"{setup.data}: {len(error.faults)} fault(s), first: {error.faults[0]}"
        return [Finding(name, State.FAULT, found, f"see all of them with `dsm-site check {setup.data}`")]
    found = f"{len(datalist.cases)} cases; annotated: {', '.join(datalist.labelled_classes) or 'nothing'}"
    return [Finding(name, State.OK, f"{setup.data}: {found}")]


def disk(setup: SiteSetup) -> list[Finding]:
    """Can the site keep what it must keep?"""
    name, probe = "disk", setup.state / f".doctor-{secrets.token_hex(4)}"
    try:
        setup.state.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(bytes(_WRITTEN_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(setup.state).free
    except OSError as error:
        found = f"{setup.state} cannot be written ({error.strerror or error})"
        return [
            Finding(name, State.FAULT, found, "free space there, correct its owner and mode, or name another folder")
        ]
    found = f"{setup.state} has {free / (1 << 30):.1f} GiB free"
    if free < _GOOD_FREE_BYTES:
        state = State.FAULT if free < _LEAST_FREE_BYTES else State.WARNING
        return [Finding(name, state, found, f"free {_GOOD_FREE_BYTES >> 30} GiB, or name a folder on another disk")]
    return [Finding(name, State.OK, found)]


def device(setup: SiteSetup) -> list[Finding]:
    """Does the device that the site trains on exist?"""
    try:
        device = find_device(setup.device)
    except DeviceError as error:
        return [Finding("device", State.FAULT, f"{error}", "install its driver, or set the device to cpu")]
    if device.type == "cpu":
        found = f"cpu, {torch.get_num_threads()} threads, torch {torch.__version__}"
        return [Finding("device", State.OK, found)]
    free = torch.cuda.mem_get_info(device)[0]
    found = (
        f"{device}, {torch.cuda.get_device_name(device)}, {free / (1 << 30):.1f} GiB free, torch {torch.__version__}"
    )
    if free < _LEAST_FREE_GPU_BYTES:
        remedy = (
            f"free {_LEAST_FREE_GPU_BYTES >> 30} GiB of it (`nvidia-smi` names its users), or choose another device"
        )
        return [Finding("device", State.WARNING, found, remedy)]
    return [Finding("device", State.OK, found)]


def proxy(setup: SiteSetup) -> list[Finding]:
    """Would calls to the coordinator go through a proxy? Values are not shown, since they may hold a password."""
    name, configured = "proxy", getproxies_environment()
    used = [f"{kind}_proxy" for kind in _PROXIES if kind in configured]
    if not used:
        return [Finding(name, State.OK, "no proxy variable is set")]
    hosts = []
    for text in filter(None, (setup.service, setup.fleet)):
        try:
            hosts.append(Address.parse(text).host)
        except Unreachable:
            continue  # the address's own finding says it
    exposed = list(dict.fromkeys(host for host in hosts if not proxy_bypass_environment(host)))
    if hosts and not exposed:
        return [Finding(name, State.OK, f"{', '.join(used)} set; the coordinator is in no_proxy")]
    found = f"{', '.join(used)} set, so calls to {', '.join(exposed) or 'the coordinator'} go through a proxy"
    return [Finding(name, State.WARNING, found, f"if it must not, add {', '.join(exposed) or 'its host'} to no_proxy")]


def own_certificate(setup: SiteSetup) -> list[Finding]:
    """Is the site's certificate valid, its own and not about to end?"""
    name = "certificate"
    if setup.tls is None:
        return [Finding(name, State.WARNING, "this site has none yet", "join with `dsm-site join`", is_known=False)]
    try:
        pems = setup.tls.read()
        certificate = read_certificates(pems.certificate, f"{setup.tls.certificate}")[0]
        authority = read_certificates(pems.ca, f"{setup.tls.ca}")[0]
        site = site_name(certificate)
    except TlsError as error:
        found, _, remedy = f"{error}".rpartition("; ")
        return [Finding(name, State.FAULT, found or remedy, remedy)]
    ends = min(certificate.not_valid_after_utc, authority.not_valid_after_utc)
    found = f"site {site!r}, valid until {ends:%Y-%m-%d}"
    if stat.S_IMODE(setup.tls.key.stat().st_mode) & 0o077:
        return [Finding(name, State.WARNING, "others may read the key", f"chmod 600 {setup.tls.key}")]
    if ends - datetime.now(UTC) < WARNING_TIME:
        return [Finding(name, State.WARNING, found, "ask the coordinator for a new one before it ends")]
    return [Finding(name, State.OK, found)]


MACHINE = (
    Probe(("data folder",), data_folder),
    Probe(("disk",), disk),
    Probe(("device",), device),
    Probe(("proxy",), proxy),
    Probe(("certificate",), own_certificate),
)

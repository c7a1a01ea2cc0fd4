"""The doctor's questions to the coordinator: name, port, TLS, identity, clock, releases, text space."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from client.bank_cache import held_bank
from client.doctor import Finding, Probe, SiteSetup, State, not_checked
from client.reach import Address, Unreachable, connect, handshake, resolve
from client.retries import ConsortiumError
from client.text_client import ConsortiumClient
from dsm_core.text_space import TextSpaceError
from strategies import consortium
from strategies.deployment.certificates import WARNING_TIME
from strategies.messages import PROTOCOL
from strategies.proto.consortium_pb2 import AboutReply
from strategies.tls import TlsFiles

_SKEW_SEEN_S, _SKEW_LIMIT_S = 5.0, 60.0  # a message of Flower's outlives its deadline by a minute, and no more
COORDINATOR = ("coordinator", "clock", "releases", "text space")


def name(setup: SiteSetup) -> list[Finding]:
    """Is the coordinator's name known here?"""
    if not setup.service:
        unset = "no coordinator is configured"
        return [Finding("name", State.WARNING, unset, "join with `dsm-site join`", is_known=False)]
    try:
        address = Address.parse(setup.service)
        found = resolve(address, setup.timeout_s / 2)
    except Unreachable as error:
        return [Finding("name", State.FAULT, error.found, error.remedy)]
    return [Finding("name", State.OK, f"{address.host} is {', '.join(found)}")]


def port(setup: SiteSetup) -> list[Finding]:
    """Does the coordinator's service listen?"""
    try:
        address = Address.parse(setup.service or "")
        started = time.monotonic()
        connect(address, setup.timeout_s / 2).close()
    except Unreachable as error:
        return [Finding("port", State.FAULT, error.found, error.remedy)]
    return [Finding("port", State.OK, f"{address} answers in {1000 * (time.monotonic() - started):.0f} ms")]


def service_tls(setup: SiteSetup) -> list[Finding]:
    """Does the service prove to be this consortium's, and accept this site's certificate?"""
    assert setup.tls is not None
    return [_shaken("TLS", setup.service, setup.tls, setup.timeout_s / 2, own=setup.tls)]


def fleet(setup: SiteSetup) -> list[Finding]:
    """Is the place where the SuperNode connects the consortium's?"""
    if not setup.fleet:
        return []
    assert setup.tls is not None
    return [_shaken("fleet", setup.fleet, setup.tls, setup.timeout_s / 2, own=None)]


def coordinator(setup: SiteSetup) -> list[Finding]:
    """What the coordinator says of this site, and of itself."""
    assert setup.tls is not None
    try:
        with ConsortiumClient(setup.service or "", setup.tls, setup.timeout_s / 2) as client:
            before = time.time()
            about = client.about()
            after = time.time()
    except ConsortiumError as error:
        refused = Finding(
            "coordinator", State.FAULT, f"{error}", "ask its administrator; the coordinator's log has more"
        )
        return [refused, *(not_checked(each, COORDINATOR[0]) for each in COORDINATOR[1:])]
    known = Finding("coordinator", State.OK, f"knows this site as {about.site!r}")
    return [known, _clock(about, before, after), _releases(about), _text_space(about, setup)]


def _shaken(what: str, text: str | None, tls: TlsFiles, timeout_s: float, own: TlsFiles | None) -> Finding:
    try:
        certificate = handshake(Address.parse(text or ""), tls.ca, timeout_s, own)
    except Unreachable as error:
        return Finding(what, State.FAULT, error.found, error.remedy)
    ends = certificate.not_valid_after_utc
    found = f"{text} shows this consortium's certificate, valid until {ends:%Y-%m-%d}"
    if ends - datetime.now(UTC) < WARNING_TIME:
        return Finding(what, State.WARNING, found, "tell the coordinator to renew its certificate")
    return Finding(what, State.OK, found)


def _clock(about: AboutReply, before: float, after: float) -> Finding:
    """The coordinator's clock lay between the two readings of this one, if both are right."""
    skew_s = max(about.unix_s - after, before - about.unix_s, 0.0)
    ahead = "behind" if about.unix_s > after else "ahead of"
    found = f"{skew_s:.0f} s {ahead} the coordinator's" if skew_s >= 0.5 else "agrees with the coordinator's"
    if skew_s < _SKEW_SEEN_S:
        return Finding("clock", State.OK, found)
    state = State.FAULT if skew_s >= _SKEW_LIMIT_S else State.WARNING
    return Finding("clock", state, found, "set this machine's clock (NTP), or have the coordinator set its own")


def _releases(about: AboutReply) -> Finding:
    own = {"fed-dsm": consortium.release(), "flwr": consortium.release("flwr"), "protocol": f"{PROTOCOL}"}
    theirs = {"fed-dsm": about.release, "flwr": about.flower, "protocol": f"{about.protocol}"}
    odd = [f"{each} {own[each]} here, {theirs[each]} there" for each in own if own[each] != theirs[each]]
    if odd:
        return Finding("releases", State.FAULT, "; ".join(odd), "install the coordinator's releases at this site")
    return Finding("releases", State.OK, ", ".join(f"{each} {release}" for each, release in own.items()))


def _text_space(about: AboutReply, setup: SiteSetup) -> Finding:
    fetch = "fetch the coordinator's with `dsm-site bank`"
    try:
        held = held_bank(setup.state)
    except TextSpaceError as error:
        return Finding("text space", State.FAULT, f"{error}", fetch)
    if not about.bank_hash:
        return Finding("text space", State.OK, "the coordinator has none yet; its first run makes it")
    if held is None:
        return Finding("text space", State.WARNING, "this site holds none yet", fetch)
    if held.hash != about.bank_hash:
        found = f"this site holds {held.hash[:12]}, the coordinator {about.bank_hash[:12]}"
        return Finding("text space", State.FAULT, found, fetch)
    return Finding("text space", State.OK, f"{held.hash[:12]}, as the coordinator's")


NETWORK = (
    Probe(("name",), name),
    Probe(("port",), port, needs=("name",)),
    Probe(("TLS",), service_tls, needs=("port", "certificate")),
    Probe(COORDINATOR, coordinator, needs=("TLS",)),
    Probe(("fleet",), fleet, needs=("certificate",)),
)

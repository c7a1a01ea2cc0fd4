"""`dsm-site doctor` finds each planted fault, names it with a remedy, and never hangs."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections import namedtuple
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from client.bank_cache import BANK, keep_bank
from client.doctor import Finding, Probe, SiteSetup, State, examine
from client.doctor_machine import MACHINE
from client.doctor_network import NETWORK
from server.text_service import TextService
from strategies import consortium

OK, WARNING, FAULT = State.OK, State.WARNING, State.FAULT


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for kind in ("grpc", "https", "http", "all", "no"):
        monkeypatch.delenv(f"{kind}_proxy", raising=False)
        monkeypatch.delenv(f"{kind}_proxy".upper(), raising=False)


@pytest.fixture
def folder(tmp_path):
    """A data folder with one case."""
    site = tmp_path / "data"
    for part, value in (("imagesTr", 40), ("labelsTr", 1)):
        (site / part).mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), value, np.int16), np.eye(4)), site / part / "a.nii.gz")
    content = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}}
    listed = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    (site / "dataset.json").write_text(json.dumps({**content, "training": listed}))
    return site


@pytest.fixture
def setup(coordinator, north, folder, tmp_path):
    """A site in perfect health."""
    north.key.chmod(0o600)
    keep_bank(tmp_path / "site", coordinator.space)
    return SiteSetup(folder, tmp_path / "site", "cpu", coordinator.address, coordinator.address, north, timeout_s=10.0)


def findings(setup):
    return {finding.name: finding for finding in examine(setup, [*MACHINE, *NETWORK]).findings}


def planted(setup, name, state=FAULT):
    """The finding about a planted fault: of this state, with a remedy, and the only one that is no better."""
    found = findings(setup)
    assert found[name].state is state, found[name]
    assert found[name].remedy
    others = [finding for finding in found.values() if finding.state is FAULT and finding.name != name]
    assert not others, others
    return found[name].found + "; " + found[name].remedy


def test_a_healthy_site_has_no_fault_and_no_warning(setup, monkeypatch):
    plenty = namedtuple("Usage", "total used free")(1 << 40, 0, 1 << 39)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: plenty)
    found = findings(setup)
    assert {finding.state for finding in found.values()} == {OK}, found
    assert list(found) == [
        *("data folder", "disk", "device", "proxy", "certificate"),
        *("name", "port", "TLS", "coordinator", "clock", "releases", "text space", "fleet"),
    ]
    assert "knows this site as 'north'" in found["coordinator"].found
    assert not list(setup.state.glob(".doctor*"))


def test_bad_data_folder(setup, tmp_path):
    assert "1 fault(s)" in planted(replace(setup, data=tmp_path / "absent"), "data folder")
    (setup.data / "labelsTr" / "a.nii.gz").unlink()
    assert "dsm-site check" in planted(setup, "data folder")


def test_disk_that_cannot_be_written(setup, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    keep = setup.state / BANK
    assert "cannot be written" in planted(replace(setup, state=tmp_path / "file" / "site"), "disk")
    assert keep.is_file()


def test_full_disk(setup, monkeypatch):
    def usage(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(free))

    usage(100 << 20)
    assert "0.1 GiB free" in planted(setup, "disk")
    usage(5 << 30)
    assert "5.0 GiB free" in planted(setup, "disk", WARNING)


def test_device_that_is_not_there(setup):
    assert "set the device to cpu" in planted(replace(setup, device="cuda:7"), "device")
    assert "is not available" in planted(replace(setup, device="abacus"), "device")


def test_proxy_variable_that_catches_the_coordinator(setup, monkeypatch):
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy.hospital:3128")
    assert findings(setup)["proxy"].state is OK
    monkeypatch.setenv("no_proxy", "elsewhere")
    finding = next(iter(MACHINE[3].ask(setup)))
    assert finding.state is WARNING
    assert "https_proxy set" in finding.found
    assert "no_proxy" in finding.remedy
    assert "secret" not in f"{finding}"


def test_wrong_authority(setup, other_authority):
    foreign = other_authority.issue("north")
    foreign.key.chmod(0o600)
    unsigned = replace(setup, tls=replace(setup.tls, ca=foreign.ca))
    assert "was not issued by the authority" in planted(unsigned, "certificate")
    found = findings(replace(setup, tls=foreign))
    for name in ("TLS", "fleet"):
        assert found[name].state is FAULT
        assert "certificate of another authority" in found[name].found
    assert found["coordinator"].found == "not checked"


def test_certificate_that_has_expired_or_will_soon_or_that_others_read(setup, authority):
    def issued(*days):
        files = authority.issue("north", *days)
        files.key.chmod(0o600)
        return replace(setup, tls=files)

    assert "expired on" in planted(issued(-9, -1), "certificate")
    assert "valid until" in planted(issued(-9, 20), "certificate", WARNING)
    setup.tls.key.chmod(0o644)
    assert "chmod 600" in planted(setup, "certificate", WARNING)


def test_certificate_of_the_coordinator_that_ends_soon(setup, coordinator, authority):
    coordinator.service.stop(0)
    coordinator.own = authority.issue("coordinator", -9, 20, is_server=True)
    coordinator.service = coordinator.start(f"127.0.0.1:{coordinator.service.port}")
    assert "renew its certificate" in planted(setup, "TLS", WARNING)


def test_revoked_site(setup, coordinator, north):
    coordinator.revoked.append(north)
    assert "of site 'north' was revoked" in planted(setup, "coordinator")


@pytest.mark.parametrize(("skew_s", "state", "words"), [(-3600, FAULT, "ahead of"), (20, WARNING, "behind")])
def test_clock_skew(setup, monkeypatch, skew_s, state, words):
    now = time.time
    monkeypatch.setattr("server.text_service.time.time", now)
    monkeypatch.setattr("client.doctor_network.time", FakeTime(lambda: now() - skew_s))
    assert words in planted(setup, "clock", state)


class FakeTime:
    monotonic = staticmethod(time.monotonic)

    def __init__(self, now):
        self.time = now


@pytest.mark.parametrize(
    ("field", "there", "told"),
    [
        ("release", "9.9", "fed-dsm 0.1.0 here, 9.9 there"),
        ("flower", "1.40.0", "flwr 1.41.0 here"),
        ("protocol", 99, "99 there"),
    ],
)
def test_other_releases(setup, coordinator, monkeypatch, field, there, told):
    about = TextService.About

    def other(self, request, context):
        reply = about(self, request, context)
        setattr(reply, field, there)
        return reply

    monkeypatch.setattr(TextService, "About", other)
    coordinator.service.stop(0)
    coordinator.service = coordinator.start(f"127.0.0.1:{coordinator.service.port}")
    assert told in planted(setup, "releases")


def test_other_text_space_damaged_one_and_none(setup, coordinator):
    keep_bank(setup.state, replace(coordinator.space, encoder="another"))
    assert coordinator.space.hash[:12] in planted(setup, "text space")
    (setup.state / BANK).write_bytes(b"damaged")
    assert "fetch" in planted(setup, "text space")
    (setup.state / BANK).unlink()
    assert "dsm-site bank" in planted(setup, "text space", WARNING)


def test_name_that_is_not_known_and_port_where_nothing_listens(setup):
    found = findings(replace(setup, service="no-such-host.invalid:5000"))
    assert found["name"].state is FAULT
    assert [found[each].found for each in ("port", "TLS", "coordinator", "clock")] == ["not checked"] * 4
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"localhost:{free.getsockname()[1]}"
    assert f"nothing listens on {address}" in planted(replace(setup, service=address), "port")
    assert "wanted HOST:PORT" in planted(replace(setup, service="https://x"), "name")
    assert "nothing listens" in planted(replace(setup, fleet=address), "fleet")


def test_a_site_that_has_not_joined_is_examined_as_far_as_it_is(setup):
    found = findings(SiteSetup(data=setup.data, state=setup.state))
    assert [found[each].state for each in ("data folder", "device", "proxy")] == [OK] * 3
    assert found["certificate"].remedy == found["name"].remedy == "join with `dsm-site join`"
    assert not [finding for finding in found.values() if finding.state is FAULT]
    known_address = findings(replace(setup, tls=None, fleet=None))
    assert known_address["port"].state is OK
    assert known_address["TLS"].found == "not checked"


def test_a_probe_that_hangs_or_breaks_is_a_finding_and_the_others_go_on():
    release = threading.Event()

    def broken(setup):
        raise ZeroDivisionError("by hand")

    probes = [
        Probe(("slow", "after"), lambda setup: [release.wait(20)]),
        Probe(("broken",), broken),
        Probe(("dependent",), broken, needs=("after",)),
        Probe(("good",), lambda setup: [Finding("good", OK, "yes")]),
    ]
    started = time.monotonic()
    report = examine(SiteSetup(timeout_s=0.2), probes)
    release.set()
    assert time.monotonic() - started < 5
    assert [finding.state for finding in report.findings] == [FAULT, WARNING, FAULT, WARNING, OK]
    assert "no answer within 0.2 s" in report.findings[0].found
    assert "ZeroDivisionError: by hand" in report.findings[2].found


def test_report_counts_and_speaks_json(setup, coordinator, north):
    report = examine(setup, [*MACHINE, *NETWORK])
    assert report.is_able
    assert "ok      clock        agrees with the coordinator's" in report.to_text()
    assert report.to_text().splitlines()[-1].startswith("0 fault(s)")
    coordinator.revoked.append(north)
    told = examine(setup, [*MACHINE, *NETWORK]).to_dict()
    assert told["is_able"] is False
    assert [each["name"] for each in told["findings"] if each["state"] == "fault"] == ["coordinator"]


def test_releases_are_read_from_the_installed_packages():
    assert consortium.release("flwr").startswith("1.41")
    assert consortium.release("no-such-package") == "not installed"

"""From `init` to a member and out again, by the commands: who gets in, who does not, and what lies where afterwards."""

from pathlib import Path

import pytest

from client.cli import main as dsm_site
from client.membership import load_site
from server.cli import main as dsm_server
from server.consortium import load_consortium
from strategies.deployment.certificates import read_certificate
from strategies.deployment.errors import DeploymentError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dsm_server(["init", "demo", "--host", "127.0.0.1", "--host", "fed.example.org"]) == 0
    assert dsm_server(["add-site", "north"]) == 0
    return tmp_path


@pytest.fixture
def member(here):
    """A consortium with the member north."""
    assert dsm_site(["join", "consortium/kits/north.kit.tar.gz", "--data", "."]) == 0
    assert dsm_server(["accept", "north", "site/north.csr"]) == 0
    assert dsm_site(["join", "--certificate", "consortium/sites/north/north.crt"]) == 0
    return here


def serial(path):
    return read_certificate(Path(path)).serial_number


def test_a_site_becomes_a_member_and_its_key_never_leaves_it(member):
    consortium, site = load_consortium("consortium"), load_site("site")
    assert site.is_member
    assert set(consortium.members()) == {"north"}
    assert (site.fleet, site.service) == ("127.0.0.1:9443", "127.0.0.1:9444")
    certificate, ca = read_certificate(site.certificate), read_certificate(site.ca_certificate)
    certificate.verify_directly_issued_by(ca)
    secret = site.key.read_text().splitlines()[1]
    assert not any(secret in path.read_text("latin1") for path in consortium.folder.rglob("*") if path.is_file())


def test_private_files_are_private(member):
    for path in [*member.glob("consortium/**/*"), *member.glob("site/**/*")]:
        private = path.is_dir() or path.suffix in (".key", ".ssh", ".json", ".jsonl", ".lock", ".secret", ".gz")
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600 if private else 0o644), path


def test_fingerprints_are_the_same_on_both_screens(here, capsys):
    dsm_site(["join", "consortium/kits/north.kit.tar.gz"])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fingerprint")]
    dsm_server(["accept", "north", "site/north.csr", "--fingerprint", said[0].removeprefix("fingerprint ")])
    assert said[0] in capsys.readouterr().out.splitlines()


def test_another_fingerprint_than_the_telephone_says_is_refused(here, capsys):
    dsm_site(["join", "consortium/kits/north.kit.tar.gz"])
    assert dsm_server(["accept", "north", "site/north.csr", "--fingerprint", "0" * 32]) == 1
    assert "not accepted" in capsys.readouterr().err
    assert load_consortium("consortium").members() == {}


def test_a_revoked_site_is_on_the_list_and_needs_a_new_kit(member, capsys):
    assert dsm_server(["revoke", "north", "--reason", "left"]) == 0
    consortium = load_consortium("consortium")
    assert consortium.revoked_serials() == {serial("site/site.crt")}
    assert consortium.members() == {}
    assert dsm_server(["accept", "north", "site/north.csr"]) == 1
    assert "was revoked; invite it anew" in capsys.readouterr().err
    assert dsm_server(["add-site", "north", "--again"]) == 0
    assert dsm_server(["accept", "north", "site/north.csr"]) == 1
    assert "not made from the latest kit" in capsys.readouterr().err


def test_a_rotated_key_replaces_the_old_one_only_when_its_certificate_has_come(member):
    before = (member / "site/site.key").read_bytes(), serial("site/site.crt")
    assert dsm_site(["rotate"]) == 0
    assert (member / "site/site.key").read_bytes() == before[0]
    assert dsm_server(["accept", "north", "site/next/north.csr"]) == 0
    assert dsm_site(["join", "--certificate", "consortium/sites/north/north.crt"]) == 0
    assert (member / "site/site.key").read_bytes() != before[0]
    assert not (member / "site/next").exists()
    assert load_consortium("consortium").revoked_serials() == {before[1]}


def test_the_coordinator_rotates_and_sites_need_nothing_new(member):
    before = serial("consortium/server/server.crt")
    assert dsm_server(["rotate", "--host", "10.0.0.7"]) == 0
    after = read_certificate(member / "consortium/server/server.crt")
    assert after.serial_number != before
    after.verify_directly_issued_by(read_certificate(load_site("site").ca_certificate))
    assert load_consortium("consortium").hosts == ("127.0.0.1", "fed.example.org", "10.0.0.7")


def test_a_certificate_of_another_consortium_or_site_is_refused(member, capsys):
    dsm_server(["init", "other", "--host", "localhost", "--folder", "other"])
    for folder, name in (("other", "north"), ("consortium", "south")):
        dsm_server(["add-site", name, "--folder", folder])
        dsm_site(["join", f"{folder}/kits/{name}.kit.tar.gz", "--folder", f"{name}-of-{folder}"])
        dsm_server(["accept", name, f"{name}-of-{folder}/{name}.csr", "--folder", folder])
    capsys.readouterr()
    assert dsm_site(["join", "--certificate", "other/sites/north/north.crt"]) == 1
    assert "was not issued by the authority of demo: found issuer 'other authority'" in capsys.readouterr().err
    assert dsm_site(["join", "--certificate", "consortium/sites/south/south.crt"]) == 1
    assert "is the certificate of 'south'; this site is 'north'" in capsys.readouterr().err


def test_a_site_that_leaves_keeps_its_settings_and_no_key(member):
    assert dsm_site(["leave", "--yes"]) == 0
    assert sorted(path.name for path in (member / "site").iterdir()) == ["ca.crt", "site.yaml"]
    with pytest.raises(DeploymentError, match="holds no membership"):
        load_site("site")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["add-site", "../north"], "wanted 1 to 63 letters"),
        (["add-site", "north"], "was invited already; --again"),
        (["add-site", "NORTH"], "differs from 'north' by capitals only"),
        (["revoke", "south"], "no site 'south'"),
        (["init", "demo", "--host", "localhost"], "holds a consortium already"),
        (["init", "x", "--folder", "x", "--host", "https://fed.example.org"], "neither a host name nor an IP address"),
        (["init", "x", "--folder", "x", "--host", "h", "--port", "9092"], "want different ports"),
        (["add-site", "south", "--folder", "nowhere"], "holds no consortium"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_changes_nothing(here, capsys, words, reason):
    before = sorted(here.rglob("*"))
    assert dsm_server(words) == 1
    said = capsys.readouterr().err
    assert reason in said
    assert "Traceback" not in said
    assert sorted(here.rglob("*")) == before

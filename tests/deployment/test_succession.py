"""An authority is exchanged in two steps: no site is cut off between them, and nobody names a successor but itself."""

import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.cli import main as dsm_site
from client.membership import forget_former_authorities, import_certificate, load_site
from server.authority import Authority
from server.cli import main as dsm_server
from server.consortium import load_consortium
from server.succession import is_exchanging
from strategies.deployment.certificates import certificate_pem, new_key, read_certificate
from strategies.deployment.errors import DeploymentError
from strategies.deployment.flower import free_port
from strategies.deployment.handshake import HandshakeError, check_coordinator
from strategies.deployment.succession import find_successor, is_successor
from strategies.tls import TlsFiles, is_issued_by


@pytest.fixture
def member(tmp_path, monkeypatch):
    """A consortium with the member north, in this folder."""
    monkeypatch.chdir(tmp_path)
    port = f"{free_port()}"
    assert dsm_server(["init", "demo", "--host", "127.0.0.1", "--port", port, "--no-proxy"]) == 0
    assert dsm_server(["add-site", "north"]) == 0
    assert dsm_site(["join", "consortium/kits/north.kit.tar.gz", "--data", "."]) == 0
    assert dsm_server(["accept", "north", "site/north.csr"]) == 0
    assert dsm_site(["join", "--certificate", "consortium/sites/north/north.crt"]) == 0
    return tmp_path


@contextmanager
def coordinator(consortium):
    """The consortium's certificate on its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(consortium.server_certificate, consortium.server_key)
    with socket.create_server(("127.0.0.1", consortium.fleet_port)) as server:

        def answer():
            with suppress(OSError):  # the test is over, or a client has hung up
                while True:
                    connection, _ = server.accept()
                    with suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def services_files(consortium):
    return TlsFiles(consortium.ca_certificate, consortium.server_certificate, consortium.server_key)


def site_files(site):
    return TlsFiles(site.ca_certificate, site.certificate, site.key)


def test_an_authority_is_exchanged_and_no_site_is_cut_off(member, capsys):
    consortium, site = load_consortium("consortium"), load_site("site")
    old, key = consortium.authority().certificate, site.key.read_bytes()
    assert dsm_server(["rotate", "--authority"]) == 0
    assert "consortium/sites/north/north.crt" in capsys.readouterr().out
    new = consortium.authority().certificate
    assert consortium.authorities() == [new, old] != [old, new]
    services_files(consortium).read()  # the coordinator's own certificate, of the old authority, serves on
    with coordinator(consortium):
        check_coordinator(site.fleet, site.ca_certificate)
        assert dsm_site(["join", "--certificate", "consortium/sites/north/north.crt"]) == 0
        assert site.authorities() == [new, old]
        assert is_issued_by(read_certificate(site.certificate), new)
        site_files(site).read()
        check_coordinator(site.fleet, site.ca_certificate)
        assert not forget_former_authorities(site)  # the coordinator has not come so far
    assert dsm_server(["rotate"]) == 0
    assert consortium.authorities() == [new]
    assert not is_exchanging(consortium)
    with coordinator(consortium):
        assert forget_former_authorities(site)
        assert site.authorities() == [new]
        check_coordinator(site.fleet, site.ca_certificate)
    assert site.key.read_bytes() == key


def test_a_site_that_missed_the_exchange_is_told_and_imports_its_certificate_later(member):
    consortium, site = load_consortium("consortium"), load_site("site")
    assert dsm_server(["rotate", "--authority"]) == dsm_server(["rotate"]) == 0
    with coordinator(consortium):
        with pytest.raises(HandshakeError, match="was not issued by this consortium's authority"):
            check_coordinator(site.fleet, site.ca_certificate)
        assert dsm_site(["join", "--certificate", "consortium/sites/north/north.crt"]) == 0
        check_coordinator(site.fleet, site.ca_certificate)


def test_a_site_that_makes_a_new_key_after_the_exchange_learns_of_it_with_its_certificate(member):
    assert dsm_server(["rotate", "--authority"]) == 0
    assert dsm_site(["rotate"]) == 0
    assert dsm_server(["accept", "north", "site/next/north.csr"]) == 0
    assert dsm_site(["join", "--certificate", "consortium/sites/north/north.crt"]) == 0
    site_files(load_site("site")).read()


def test_a_new_site_trusts_both_from_its_kit(member):
    assert dsm_server(["rotate", "--authority"]) == dsm_server(["add-site", "south"]) == 0
    assert dsm_site(["join", "consortium/kits/south.kit.tar.gz", "--folder", "south"]) == 0
    assert load_site("south").authorities() == load_consortium("consortium").authorities()


def test_an_exchange_that_was_killed_is_given_again_and_one_under_way_is_not(member, monkeypatch, capsys):
    consortium = load_consortium("consortium")
    old = consortium.authority().certificate

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("server.succession.key_pem", killed)
        assert dsm_server(["rotate", "--authority"]) == 130
    assert consortium.authority().certificate == old
    assert dsm_server(["rotate", "--authority"]) == 0
    assert consortium.authorities()[1:] == [old]
    assert dsm_site(["join", "--certificate", "consortium/sites/north/north.crt"]) == 0
    assert dsm_server(["rotate", "--authority"]) == 1
    assert "is being exchanged already; `dsm-server rotate` ends that" in capsys.readouterr().err


def test_only_the_authority_itself_names_its_successor():
    old, new, foreign = (Authority.create(name) for name in ("old", "new", "foreign"))
    statement = old.name_successor(new.certificate)
    assert is_successor(new.certificate, statement, old.certificate)
    long_ago = datetime.now(UTC) - timedelta(days=398)
    # A site's own certificate must not make its key an authority.
    thief = Authority.create("thief")
    own = old.issue_site("thief", thief.key.public_key())
    server = old.issue_server(["localhost"], thief.key.public_key())
    for successor, said in (
        (foreign.certificate, statement),
        (new.certificate, foreign.name_successor(new.certificate)),
        (new.certificate, old.name_successor(new.certificate, long_ago)),
        (thief.certificate, own),
        (thief.certificate, server),
        (own, own),
        (statement, statement),
    ):
        assert not is_successor(successor, said, old.certificate), successor.subject
    leaf = foreign.issue_site("north", new_key().public_key())
    assert find_successor(leaf, [foreign.certificate, statement], [old.certificate]) is None
    assert find_successor(leaf, [foreign.certificate, old.name_successor(foreign.certificate)], [old.certificate])


def test_a_certificate_file_of_a_foreign_authority_is_refused_and_nothing_changes(member):
    site, foreign = load_site("site"), Authority.create("demo authority")
    before = site.ca_certificate.read_bytes()
    own = foreign.issue_site("north", read_certificate(site.certificate).public_key())
    statement = foreign.name_successor(foreign.certificate)
    content = b"".join(map(certificate_pem, [own, foreign.certificate, statement]))
    Path("evil.crt").write_bytes(content)
    with pytest.raises(DeploymentError, match="was not issued by the authority of demo"):
        import_certificate(site, Path("evil.crt"))
    assert site.ca_certificate.read_bytes() == before

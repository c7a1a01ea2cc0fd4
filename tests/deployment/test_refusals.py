"""Who does not get in, and that everybody is told why: sites and strangers against a running coordinator."""

import json
import socket
import ssl
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from io import BytesIO

import grpc
import pytest

from client.membership import load_site
from client.services import explain, site_services
from client.site_file import read_site_file
from server.authority import Authority
from server.consortium import load_consortium
from strategies.deployment.certificates import certificate_pem, key_pem, new_key, read_key
from strategies.proto import consortium_pb2 as wire
from strategies.proto.consortium_pb2_grpc import ConsortiumStub

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes left over are found in /proc"),
]


@pytest.fixture(scope="module")
def consortium(typed_consortium):
    made = typed_consortium("refusals", "--no-proxy")
    made.done(made.server("start", "--services", "--detach"))
    return made


def run_supernode(consortium, name):
    """Flower's own program with the site's key, past the checks of our command."""
    site = load_site(consortium.folder / name)
    program = site_services(site, read_site_file(site.settings))[0].program
    environment = {**consortium.environment, **program.environment}
    return subprocess.run(program.command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_an_unregistered_site_is_refused_by_its_own_command_and_by_the_coordinator(consortium, empty_data):
    consortium.join("unregistered", empty_data)
    reason = consortium.refused(consortium.site("unregistered", "start"))
    assert "unregistered is not registered yet: send" in reason
    refused = run_supernode(consortium, "unregistered")
    assert refused.returncode == 1
    assert "the coordinator does not let this site in" in explain(refused.stdout + refused.stderr)


def test_a_revoked_site_is_thrown_out_and_told_so(consortium, empty_data):
    consortium.join("revoked", empty_data)
    consortium.accept("revoked")
    consortium.done(consortium.site("revoked", "start", "--detach"))
    said = consortium.done(consortium.server("revoke", "revoked", "--reason", "contract ended"))
    assert "the running SuperLink has been told" in said
    log = consortium.folder / "revoked" / "logs" / "supervisor.log"
    deadline = time.monotonic() + 240
    while "has revoked" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)
    consortium.done(consortium.site("revoked", "stop"))
    assert "it has revoked it" in consortium.refused(consortium.site("revoked", "start"))
    status = json.loads(consortium.done(consortium.server("status", "--json")))
    found = next(site for site in status["sites"] if site["site"] == "revoked")
    assert (found["state"], found["reason"]) == ("revoked", "contract ended")


def test_a_site_with_another_consortium_s_authority_is_refused(consortium, empty_data):
    words = ("init", "other", "--host", "127.0.0.1", "--port", consortium.port, "--folder", "other", "--no-proxy")
    consortium.done(consortium.server(*words))
    consortium.join("stranger", empty_data, folder="other")
    consortium.accept("stranger", folder="other")
    reason = consortium.refused(consortium.site("stranger", "start"))
    assert "was not issued by this consortium's authority" in reason


def test_a_site_whose_certificate_has_expired_is_refused_with_the_remedy(consortium, empty_data):
    consortium.join("expired", empty_data)
    consortium.accept("expired")
    site = load_site(consortium.folder / "expired")
    authority = load_consortium(consortium.folder / "consortium").authority()
    long_ago = datetime.now(UTC) - timedelta(days=398)
    old = authority.issue_site("expired", read_key(site.key).public_key(), long_ago)
    site.certificate.write_bytes(certificate_pem(old))
    reason = consortium.refused(consortium.site("expired", "start"))
    assert "the certificate of expired expired on" in reason
    assert "renew it with `dsm-site rotate`" in reason


def test_a_client_that_speaks_plain_text_gets_no_answer(consortium):
    with socket.create_connection(("127.0.0.1", consortium.port), 30) as plain:
        plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        try:
            answer = plain.recv(1000)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP" not in answer


LONG_AGO = datetime.now(UTC) - timedelta(days=398)
HANDSHAKES = {
    "plain text": (None, None, "WRONG_VERSION_NUMBER"),
    "another authority": (lambda own: Authority.create("other"), None, "unable to get local issuer certificate"),
    "expired": (lambda own: own, LONG_AGO, "certificate has expired"),
}


@pytest.mark.parametrize("client", HANDSHAKES)
def test_the_service_answers_no_stranger_and_its_log_says_why(consortium, client):
    made = load_consortium(consortium.folder / "consortium")
    signer, since, reason = HANDSHAKES[client]
    address, log = f"127.0.0.1:{made.service_port}", consortium.folder / "consortium" / "logs" / "text-service.log"
    before = log.read_text().count(reason)
    if signer is None:
        channel = grpc.insecure_channel(address)
    else:
        key = new_key()
        certificate = certificate_pem(signer(made.authority()).issue_site("north", key.public_key(), since))
        own = grpc.ssl_channel_credentials(made.ca_certificate.read_bytes(), key_pem(key), certificate)
        channel = grpc.secure_channel(address, own)
    with channel, pytest.raises(grpc.RpcError) as refused:
        ConsortiumStub(channel).About(wire.AboutRequest(), timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert log.read_text().count(reason) > before


def test_a_client_without_a_key_is_refused(consortium):
    ca = consortium.folder / "consortium" / "ca" / "ca.crt"
    context = ssl.create_default_context(cafile=ca)
    headers = {"Content-Type": "application/protobuf"}
    address = f"https://127.0.0.1:{consortium.port}/v1/fleet/pull-messages"
    request = urllib.request.Request(address, data=b"", headers=headers, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(request, timeout=30)
    assert refused.value.code == 401
    assert b"authentication" in refused.value.read().lower()


def test_a_kit_with_a_path_that_leads_out_is_refused_and_nothing_is_written(consortium):
    kit = consortium.folder / "evil.tar.gz"
    with tarfile.open(kit, "w:gz") as archive:
        member = tarfile.TarInfo("../../evil")
        member.size = 4
        archive.addfile(member, BytesIO(b"evil"))
    assert "a path that leads out of its folder" in consortium.refused(consortium.site("evil", "join", kit))
    assert not (consortium.folder / "evil").exists()
    assert not (consortium.folder.parent.parent / "evil").exists()

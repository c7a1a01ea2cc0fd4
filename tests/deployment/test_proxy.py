"""Real nginx before a real SuperLink: sites get through to the fleet path, nobody gets through to anything else."""

import http.client
import json
import ssl
import sys

import pytest

from server.consortium import load_consortium
from server.control import open_control
from server.nginx import find_nginx
from strategies.deployment.errors import DeploymentError
from strategies.deployment.flower import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes left over are found in /proc"),
]


@pytest.fixture(scope="module")
def consortium(typed_consortium):
    try:
        find_nginx()
    except DeploymentError as error:
        pytest.skip(f"{error}")
    ports = ("--flower-port", free_port(), "--service-port", free_port())
    made = typed_consortium("proxy", *map(str, ports))
    made.done(made.server("start", "--services", "--detach"))
    return made


@pytest.fixture(scope="module")
def ask(consortium):
    """Status of a request to the public port, the path sent as it stands."""
    ca = consortium.folder / "consortium" / "ca" / "ca.crt"

    def send(path, method="POST", version="HTTP/1.1"):
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection("127.0.0.1", consortium.port, context=context, timeout=60)
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.putheader("Content-Type", "application/protobuf")
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        status = connection.getresponse().status
        connection.close()
        return status

    return send


def test_a_site_connects_through_the_proxy(consortium, empty_data):
    consortium.join("north", empty_data)
    consortium.accept("north")
    consortium.done(consortium.site("north", "start", "--detach"))
    status = json.loads(consortium.done(consortium.server("status", "--json")))
    assert [(site["site"], site["connection"]) for site in status["sites"]] == [("north", "online")]
    assert status["processes"]["proxy"]


def test_plain_text_is_refused_with_the_reason(consortium):
    connection = http.client.HTTPConnection("127.0.0.1", consortium.port, timeout=60)
    connection.request("POST", "/v1/fleet/pull-messages")
    answer = connection.getresponse()
    assert answer.status == 400
    assert b"plain HTTP request was sent to HTTPS port" in answer.read()
    connection.close()


def test_control_answers_on_loopback_and_not_outside(consortium, ask):
    with open_control(load_consortium(consortium.folder / "consortium")) as control:
        control.nodes()
    for path in ("list-runs", "start-run", "register-node", "list-nodes", "stream-logs"):
        assert ask(f"/v1/control/{path}") == 403


@pytest.mark.parametrize("path", ["/v1/runtime/acquire-task", "/health", "/docs", "/openapi.json", "/", "/v1/fleet"])
def test_nothing_else_of_the_superlink_answers_outside(ask, path):
    assert ask(path) == 403
    assert ask(path, "GET") == 403


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet/x/../../control/list-runs",
        "//v1/control/list-runs",
        "/v1/%63ontrol/list-runs",
        "/v1/control/list-runs/../../fleet/",
        "/v1/fleet/..;/control/list-runs",
        "/v1/fleet/\\..\\control/list-runs",
        "/V1/CONTROL/list-runs",
        "/v1/fleet/%252e%252e/control/list-runs",
    ],
)
def test_no_spelling_of_a_path_reaches_control(ask, path):
    assert ask(path) in (400, 403, 404)


def test_the_fleet_path_asks_who_is_there(ask):
    assert ask("/v1/fleet/pull-messages") == 401
    assert ask("/v1/fleet/pull-messages", "GET") == 403

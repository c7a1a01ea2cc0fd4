"""The coordinator's programs: Control on loopback, sites known by their keys, state that survives a crash."""

import pytest

from server import nginx
from server.consortium import Consortium
from server.nginx import proxy_configuration
from server.run_config import HOME
from server.services import NAMES, coordinator_services
from strategies.deployment.errors import DeploymentError


@pytest.fixture
def consortium(tmp_path, monkeypatch):
    monkeypatch.setattr(nginx, "find_nginx", lambda: "/usr/sbin/nginx")
    made = Consortium(tmp_path, "demo", ("fed.example.org", "10.0.0.7"), 9443, 9444, 9092, True)
    (tmp_path / "ca").mkdir()
    from server.authority import Authority
    from strategies.deployment.certificates import certificate_pem

    made.ca_certificate.write_bytes(certificate_pem(Authority.create("demo").certificate))
    return made


def programs(consortium, **options):
    return {s.program.name: s.program for s in coordinator_services(consortium, **options)}


def value(program, option):
    return program.command[program.command.index(option) + 1]


def test_superlink_listens_on_loopback_with_tls_and_lets_in_known_keys_only(consortium):
    superlink = programs(consortium)["superlink"]
    assert (value(superlink, "--host"), value(superlink, "--port")) == ("127.0.0.1", "9092")
    assert "--enable-supernode-auth" in superlink.command
    assert value(superlink, "--ssl-certfile") == f"{consortium.server_certificate}"
    assert "--insecure" not in superlink.command


def test_superlink_survives_and_runs_no_app_itself(consortium):
    superlink = programs(consortium)["superlink"]
    assert value(superlink, "--database") == f"{consortium.flower_home / 'state.db'}"
    assert value(superlink, "--isolation") == "process"
    assert "--disable-runtime-dependency-installation" in superlink.command
    assert superlink.environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_only_what_starts_the_server_app_is_told_the_folder(consortium):
    told = {name: program.environment.get(HOME) for name, program in programs(consortium).items()}
    assert told == {**dict.fromkeys(NAMES), "superexec": f"{consortium.folder}"}


def test_every_program_has_its_turn_in_the_end(consortium):
    assert set(programs(consortium)) == set(NAMES)
    assert "proxy" not in programs(consortium, with_proxy=False)


def test_the_proxy_serves_the_fleet_path_and_checks_the_superlink(consortium):
    text = proxy_configuration(consortium)
    assert "listen 9443 ssl;" in text
    assert "server_name fed.example.org 10.0.0.7;" in text
    assert text.count("proxy_pass") == 1
    assert "proxy_pass https://superlink/v1/fleet/;" in text
    assert "proxy_ssl_verify on;" in text
    assert "server 127.0.0.1:9092;" in text


def test_a_missing_nginx_is_named_with_the_ways_out(consortium, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(nginx, "PLACES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeploymentError, match=r"nginx is not installed.*apt-get.*--no-proxy"):
        programs(consortium)

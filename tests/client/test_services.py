"""A site's programs: its own key and folder, nothing but the loopback address open, only its own code."""

import json
import os
import shlex

import pytest

from client.membership import Site
from client.services import explain, site_services
from client.site_file import SiteSettings


@pytest.fixture
def site(tmp_path):
    (tmp_path / "flower").mkdir()
    return Site(tmp_path, "demo", "north", "fed.example.org:9443", "fed.example.org:9444", "ab" * 32, "1.41.0")


def programs(site, **own):
    return {s.program.name: s.program for s in site_services(site, SiteSettings(site.folder / "data", **own))}


def options(program):
    words = program.command
    return {words[i]: words[i + 1] for i in range(1, len(words) - 1) if words[i].startswith("--")}


def test_a_supernode_proves_who_it_is_and_checks_whom_it_talks_to(site):
    found = options(programs(site)["supernode"])
    assert found["--superlink"] == "fed.example.org:9443"
    assert found["--root-certificates"] == f"{site.ca_certificate}"
    assert found["--auth-supernode-private-key"] == f"{site.flower_key}"
    assert "--insecure" not in programs(site)["supernode"].command


def test_nothing_listens_beyond_this_machine(site):
    found = programs(site, port=9100)
    assert options(found["supernode"])["--host"] == "127.0.0.1"
    assert options(found["superexec"])["--runtime-api-address"] == "127.0.0.1:9100"
    assert found["supernode"].port == 9100


def test_tasks_are_given_to_who_knows_the_secret_only(site):
    found = programs(site)
    told = {options(program)["--superexec-auth-secret-file"] for program in found.values()}
    assert told == {f"{site.superexec_secret}"}
    assert options(found["supernode"])["--isolation"] == "process"


def test_the_app_learns_the_site_s_file_and_name_from_the_node(site):
    config = dict(word.split("=", 1) for word in shlex.split(options(programs(site)["supernode"])["--node-config"]))
    assert config == {"site-file": f"{site.settings}", "site-name": "north", "audit": f"{site.audit}"}


def test_nothing_is_installed_and_nobody_is_told(site):
    for program in programs(site).values():
        assert program.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert program.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert "--allow-runtime-dependency-installation" not in program.command


def test_own_code_stands_first_on_the_path_unless_the_site_allows_any(site):
    first = programs(site)["superexec"].environment["PATH"].split(os.pathsep)[0]
    assert first == f"{site.folder / 'programs'}"
    assert (site.folder / "programs" / "flwr-clientapp").exists()
    assert programs(site, code="any")["superexec"].environment["PATH"].split(os.pathsep)[0] != first


def test_threads_are_the_site_s_choice(site):
    assert programs(site, threads=3)["superexec"].environment["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in programs(site)["superexec"].environment


def test_the_key_s_content_is_in_no_command(site):
    site.flower_key.write_text("SECRET")
    assert "SECRET" not in json.dumps([program.command for program in programs(site).values()])


def test_flower_s_refusal_is_put_in_words():
    assert "it has revoked it" in explain("Exit Code: 305\n[code: 2004] Failed to activate SuperNode.")
    assert explain("Connection refused") == ""

"""`site.yaml` says every fault at once, and what a site did not write it does not allow by accident."""

import pytest

from client.site_file import LEAVES, SiteFileError, SiteSettings, read_site_file, write_site_file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    return tmp_path


def read(folder, text):
    (folder / "site.yaml").write_text(text)
    return read_site_file(folder / "site.yaml")


def test_the_first_file_that_join_writes_is_read_back_as_the_defaults(folder):
    write_site_file(folder / "site.yaml", folder / "data", port=9100)
    assert read_site_file(folder / "site.yaml") == SiteSettings((folder / "data").resolve(), port=9100)


def test_code_of_the_coordinator_is_not_run_unless_the_site_says_so(folder):
    assert read(folder, "data: data").code == "installed"
    assert read(folder, "data: data\ncode: any").code == "any"


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "auto"])
def test_the_site_chooses_its_device(folder, device):
    assert read(folder, f"data: data\ndevice: {device}").device == device


@pytest.mark.parametrize("device", ["tpu", "'cuda:'", "[cpu]", "3", "cpu:0;rm"])
def test_what_is_no_device_is_named(folder, device):
    with pytest.raises(SiteFileError, match=r"device: found .* wanted cpu, cuda, cuda:N or auto"):
        read(folder, f"data: data\ndevice: {device}")


def test_a_deleted_line_forbids(folder):
    assert read(folder, "data: data\nleaves:\n  - loss\n").leaves == {"loss"}
    assert read(folder, "data: data\nleaves:\n").leaves == set()
    assert read(folder, "data: data\n").leaves == set(LEAVES)


def test_every_fault_is_told_at_once(folder):
    text = """
data: nowhere
device: tpu
threads: -1
port: 80
epsilon_ceiling: infinite
leaves: [scans]
code: maybe
secret: 1
"""
    with pytest.raises(SiteFileError) as caught:
        read(folder, text)
    told = "\n".join(caught.value.faults)
    for key in ("data", "device", "threads", "port", "epsilon_ceiling", "leaves", "code", "secret"):
        assert f"{key}:" in told
    assert len(caught.value.faults) == 8


@pytest.mark.parametrize("value", ["true", "0", "-3", ".inf", ".nan", "'3'"])
def test_a_ceiling_is_a_positive_number_or_null(folder, value):
    with pytest.raises(SiteFileError, match="epsilon_ceiling"):
        read(folder, f"data: data\nepsilon_ceiling: {value}")
    assert read(folder, "data: data\nepsilon_ceiling: 3").epsilon_ceiling == 3.0


@pytest.mark.parametrize(("text", "reason"), [("- a", "holds a list"), ("a: [", "no YAML"), ("", "NoneType")])
def test_what_is_no_settings_file_is_named(folder, text, reason):
    with pytest.raises(SiteFileError, match=reason):
        read(folder, text)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "data: !!python/name:os.system"])
def test_yaml_that_would_run_code_is_refused(folder, text):
    with pytest.raises(SiteFileError):
        read(folder, text)

"""A site kit comes through whole, holds no key, and whatever else an archive may hold is refused by name."""

import gzip
import io
import json
import tarfile

import pytest

from server.authority import Authority
from strategies.deployment.certificates import certificate_pem
from strategies.deployment.kit import CA, FACTS, INSTRUCTIONS, KitError, SiteKit, pack_kit, unpack_kit


@pytest.fixture(scope="module")
def kit():
    ca = certificate_pem(Authority.create("demo").certificate).decode()
    return SiteKit("demo", "north", "fed.example.org:9443", "fed.example.org:9444", "ab" * 32, "1.41.0", ca)


@pytest.fixture
def members(kit, tmp_path):
    """Names and bytes of a sound kit."""
    pack_kit(kit, tmp_path / "sound")
    with tarfile.open(tmp_path / "sound") as archive:
        return {name: archive.extractfile(name).read() for name in archive.getnames()}


@pytest.fixture
def archive(tmp_path):
    """Writes an archive of (TarInfo, bytes) and returns its path."""

    def write(*entries):
        path = tmp_path / "kit.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            for info, data in entries:
                if isinstance(info, str):
                    info = tarfile.TarInfo(info)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return path

    return write


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_a_kit_comes_through_whole_and_only_its_owner_reads_it(kit, tmp_path):
    pack_kit(kit, tmp_path / "kit")
    assert unpack_kit(tmp_path / "kit") == kit
    assert (tmp_path / "kit").stat().st_mode & 0o777 == 0o600


def test_a_kit_holds_no_private_key_and_tells_how_to_join(members):
    assert set(members) == {CA, FACTS, INSTRUCTIONS}
    assert not any(b"PRIVATE" in content for content in members.values())
    assert b"dsm-site join" in members[INSTRUCTIONS]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (("../../etc/cron.d/job", b"x"), "leads out of its folder"),
        (("/etc/passwd", b"x"), "leads out of its folder"),
        (("keys/../../ca.crt", b"x"), "leads out of its folder"),
        ((special(CA, tarfile.SYMTYPE, "/etc/passwd"), b""), "a link"),
        ((special(CA, tarfile.LNKTYPE, "../secret"), b""), "a link"),
        ((special("ca.crt", tarfile.CHRTYPE), b""), "no plain file"),
        ((special("ca.crt", tarfile.FIFOTYPE), b""), "no plain file"),
        ((special("folder", tarfile.DIRTYPE), b""), "no plain file"),
        (("run.sh", b"x"), "a file of another name"),
        ((CA, b"x" * 70_000), "of 70000 bytes"),
    ],
)
def test_what_is_no_kit_is_refused_by_name_and_nothing_is_written(members, archive, tmp_path, entry, reason):
    path = archive(*members.items(), entry) if entry[0] in ("run.sh",) else archive(entry, *members.items())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KitError, match=reason):
        unpack_kit(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_given_twice_is_refused(members, archive):
    with pytest.raises(KitError, match=r"'kit.json' twice"):
        unpack_kit(archive(*members.items(), (FACTS, members[FACTS])))


def test_a_small_archive_that_unpacks_to_a_gigabyte_is_refused(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(50 << 20)))
    with pytest.raises(KitError, match="unpacks to more than"):
        unpack_kit(path)


def test_a_truncated_or_foreign_file_is_refused(kit, tmp_path):
    path = tmp_path / "kit"
    pack_kit(kit, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(KitError, match="only a part of one"):
        unpack_kit(path)
    path.write_bytes(b"hello")
    with pytest.raises(KitError, match="no site kit"):
        unpack_kit(path)


def test_a_missing_part_is_named(members, archive):
    with pytest.raises(KitError, match=r"ca\.crt missing"):
        unpack_kit(archive(*[(name, data) for name, data in members.items() if name != CA]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"site": "../north"}, r"site is '\.\./north'"),
        ({"fleet": "fed.example.org"}, "fleet is"),
        ({"service": "a b:1"}, "service is"),
        ({"secret": "short"}, "secret is"),
        ({"format": 9}, "format 9, wanted 1"),
        ({"extra": 1}, "cannot be read"),
    ],
)
def test_facts_that_cannot_be_are_named(members, archive, change, reason):
    members[FACTS] = json.dumps(json.loads(members[FACTS]) | change).encode()
    with pytest.raises(KitError, match=reason):
        unpack_kit(archive(*members.items()))

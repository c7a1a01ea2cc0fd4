"""What is in a site kit? Packed by the coordinator, unpacked by the site, both here.

A kit is a gzipped tar archive of three small files. It is opened in memory, name by name, and nothing that an archive
may hold besides (paths, links, devices) ever reaches the disk; a foreign archive is refused with its fault named.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509

from strategies.deployment.certificates import certificate_pem
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import read_file, write_file

FORMAT = 1
CA, FACTS, INSTRUCTIONS = "ca.crt", "kit.json", "README.txt"
MEMBERS = (CA, FACTS, INSTRUCTIONS)
LARGEST_KIT = 256 << 10  # a real one is 2 kB
LARGEST_MEMBER = 64 << 10
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


class KitError(DeploymentError):
    """An archive that is no site kit; nothing of it was written."""


@dataclass(frozen=True)
class SiteKit:
    """What a site needs to join; it holds no private key, yet whoever has it can ask to join under the site's name.

    Attributes:
        fleet: host:port of the coordinator's public Flower address.
        service: host:port of the coordinator's text-space and enrolment service.
        secret: hex digits that prove to the coordinator that a signing request was made from this kit.
        flower: Flower release of the coordinator.
        ca: certificate of the consortium's authority, PEM; two while it is exchanged.
    """

    consortium: str
    site: str
    fleet: str
    service: str
    secret: str
    flower: str
    ca: str


def check_site_name(name: str) -> str:
    """The name, found fit for folders, certificates and messages.

    Raises:
        DeploymentError: it is empty, too long, or has other characters.
    """
    if not SITE_NAME.fullmatch(name):
        raise DeploymentError(
            f"site name {name!r}: wanted 1 to 63 letters, digits, - and _, beginning with a letter or a digit"
        )
    return name


def pack_kit(kit: SiteKit, path: Path) -> None:
    """Write a kit; only its owner can read it.

    Raises:
        DeploymentError: it cannot be written.
    """
    facts = {"format": FORMAT} | {key: value for key, value in asdict(kit).items() if key != "ca"}
    contents = {CA: kit.ca, FACTS: json.dumps(facts, indent=1) + "\n", INSTRUCTIONS: _instructions(kit, path.name)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in MEMBERS:
            data = contents[name].encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    write_file(path, buffer.getvalue())


def unpack_kit(path: Path) -> SiteKit:
    """The kit in an archive.

    Raises:
        KitError: it is no kit, or holds anything that a kit does not.
        DeploymentError: the file cannot be read.
    """
    contents = _members(_inflate(path), path)
    try:
        facts = json.loads(contents[FACTS])
        version = facts.pop("format")
        if version != FORMAT:
            raise KitError(f"{path} is a kit of format {version}, wanted {FORMAT}; install the coordinator's fed-dsm")
        kit = SiteKit(**{key: str(value) for key, value in facts.items()}, ca=contents[CA].decode("ascii"))
        authorities = x509.load_pem_x509_certificates(kit.ca.encode())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise KitError(f"{path}: {FACTS} or {CA} cannot be read ({type(error).__name__}); ask for a new kit") from error
    faults = [
        f"{name} is {value!r}"
        for name, value, pattern in (
            ("site", kit.site, SITE_NAME),
            ("fleet", kit.fleet, ADDRESS),
            ("service", kit.service, ADDRESS),
            ("secret", kit.secret, re.compile(r"[0-9a-f]{64}")),
        )
        if not pattern.fullmatch(value)
    ]
    if faults:
        raise KitError(f"{path}: {', '.join(faults)}; ask for a new kit")
    return SiteKit(**{**asdict(kit), "ca": b"".join(map(certificate_pem, authorities)).decode()})


def _inflate(path: Path) -> bytes:
    packed = read_file(path, "a site kit", limit=LARGEST_KIT)
    limit = len(MEMBERS) * LARGEST_MEMBER
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise KitError(f"{path} is no site kit, or only a part of one; fetch it again") from error
    if len(content) > limit:
        raise KitError(f"{path} unpacks to more than {limit} bytes; a site kit is a few thousand")
    return content


def _members(content: bytes, path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                if fault := _fault_of(member, found):
                    raise KitError(f"{path} is refused: it holds {fault}; a site kit holds {', '.join(MEMBERS)}")
                file = archive.extractfile(member)
                found[member.name] = file.read() if file else b""
    except tarfile.TarError as error:
        raise KitError(f"{path} is no site kit: {error}") from error
    if missing := [name for name in MEMBERS if name not in found]:
        raise KitError(f"{path} is no site kit: {', '.join(missing)} missing")
    return found


def _fault_of(member: tarfile.TarInfo, found: dict[str, bytes]) -> str | None:
    name = member.name[:80]
    if member.issym() or member.islnk():
        return f"a link, {name!r}"
    if not member.isreg():
        return f"something that is no plain file, {name!r}"
    if name.startswith("/") or ".." in Path(name).parts:
        return f"a path that leads out of its folder, {name!r}"
    if member.name not in MEMBERS:
        return f"a file of another name, {name!r}"
    if member.name in found:
        return f"{name!r} twice"
    return f"{name!r} of {member.size} bytes" if member.size > LARGEST_MEMBER else None


def _instructions(kit: SiteKit, file: str) -> str:
    return f"""Site kit of {kit.site} for the consortium {kit.consortium}

This archive holds no private key; the key is made at your site and never leaves it. Keep the kit to yourselves all the
same: whoever has it can ask to join under your name until you have joined.

Install the release of fed-dsm that the coordinator runs (with Flower {kit.flower}), then, at the site:

    dsm-site join {file} --data DIR        # DIR holds dataset.json, imagesTr/ and labelsTr/
    # send site/{kit.site}.csr to the coordinator, and read the fingerprint to them over the telephone
    dsm-site join --certificate {kit.site}.crt      # the file that the coordinator sends back
    # look through site/site.yaml: it says what this site allows, and nobody else can change it
    dsm-site check DIR
    dsm-site start

The coordinator is reached at {kit.fleet} (training) and {kit.service} (text space, enrolment); outgoing TCP connections
to these two are all that the site's firewall has to allow.
"""

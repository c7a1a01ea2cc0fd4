"""What does a site hold of its membership in a consortium? The folder that `dsm-site join` fills.

membership.json            consortium, name of the site, the coordinator's addresses
ca.crt                     certificate of the consortium's authority
site.key  site.ssh         the site's private key, for TLS and for Flower; made here, never sent
NAME.csr                   what goes back to the coordinator
site.crt                   what the coordinator made of it
next/                      key and request of a rotation that the coordinator has not answered
site.yaml                  what this site allows
audit.jsonl                what happened here, and what left
flower/  logs/  processes/ what runs here
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509

from client.site_file import SITE_FILE
from strategies.deployment.certificates import (
    certificate_pem,
    common_name,
    fingerprint,
    key_openssh,
    key_pem,
    new_key,
    read_key,
    signing_request,
)
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import EVERYONE_READS, check_owner_only, make_private_folder, read_file, write_file
from strategies.deployment.handshake import HandshakeError, check_coordinator
from strategies.deployment.kit import SiteKit
from strategies.deployment.succession import find_successor
from strategies.tls import is_issued_by, is_key_of, read_certificates

FOLDER = "site"
KEYS = ("site.key", "site.ssh")


@dataclass(frozen=True)
class Site:
    """A site's membership and the places of its files.

    Attributes:
        fleet: host:port of the coordinator for Flower.
        service: host:port of the coordinator's gRPC service.
        secret: of the kit; proves to the coordinator that a request comes from here.
        flower: Flower release of the coordinator when the kit was made.
    """

    folder: Path
    consortium: str
    name: str
    fleet: str
    service: str
    secret: str
    flower: str

    @property
    def ca_certificate(self) -> Path:
        return self.folder / "ca.crt"

    def authorities(self) -> list[x509.Certificate]:
        """The authorities that this site trusts, the newest first; several only while the authority is exchanged."""
        return read_certificates(read_file(self.ca_certificate, "a certificate (PEM)"), f"{self.ca_certificate}")

    @property
    def key(self) -> Path:
        """Private key for TLS, PEM."""
        return self.folder / "site.key"

    @property
    def flower_key(self) -> Path:
        """The same key as Flower reads it, OpenSSH."""
        return self.folder / "site.ssh"

    @property
    def certificate(self) -> Path:
        return self.folder / "site.crt"

    @property
    def request(self) -> Path:
        """The signing request that goes back to the coordinator."""
        return self.folder / f"{self.name}.csr"

    @property
    def settings(self) -> Path:
        """The site's own file, see `client.site_file`."""
        return self.folder / SITE_FILE

    @property
    def audit(self) -> Path:
        """Record of what happened here and of what left, see `strategies.audit`."""
        return self.folder / "audit.jsonl"

    @property
    def flower_home(self) -> Path:
        return self.folder / "flower"

    @property
    def superexec_secret(self) -> Path:
        return self.flower_home / "superexec.secret"

    @property
    def is_member(self) -> bool:
        """True where the coordinator's certificate has been imported."""
        return self.certificate.exists()


def load_site(folder: Path | str) -> Site:
    """The membership in a folder.

    Raises:
        DeploymentError: there is none, it cannot be read, or a private key is readable by others.
    """
    folder = Path(folder).resolve()
    path = folder / "membership.json"
    if not path.exists():
        raise DeploymentError(f"{folder} holds no membership; begin with `dsm-site join KIT`, or name it by --folder")
    try:
        site = Site(folder, **json.loads(read_file(path, "the site's membership")))
    except (ValueError, TypeError) as error:
        raise DeploymentError(f"{path} cannot be read: {error}") from error
    for key in (site.key, site.flower_key):
        if not key.exists():
            raise DeploymentError(f"{key} is missing: this site has left, or lost its key; join with a new kit")
        check_owner_only(key)
    return site


def join(kit: SiteKit, folder: Path | str) -> Site:
    """Make the site's key and signing request from a kit.

    Raises:
        DeploymentError: the folder holds a membership already.
    """
    folder = Path(folder).resolve()
    if (folder / "membership.json").exists():
        raise DeploymentError(
            f"{folder} holds a membership already; `dsm-site rotate` makes a new key for it, `dsm-site leave` ends it"
        )
    facts = {key: value for key, value in asdict(kit).items() if key not in ("ca", "site")} | {"name": kit.site}
    site = Site(make_private_folder(folder), **facts)
    make_private_folder(site.flower_home)
    # A secret that flower-superexec shows to the SuperNode, so that no other local process can take its tasks.
    write_file(site.superexec_secret, os.urandom(32))
    write_file(site.ca_certificate, kit.ca, EVERYONE_READS)
    _write_identity(site, folder)
    write_file(folder / "membership.json", json.dumps(facts, indent=1) + "\n")  # last: without it nothing is joined
    return site


def rotate(site: Site) -> Path:
    """Make a new key beside the present one, which stays in use until the certificate for the new one is imported.

    Returns:
        The signing request for the coordinator.
    """
    return _write_identity(site, make_private_folder(site.folder / "next"))


def import_certificate(site: Site, path: Path) -> x509.Certificate:
    """Take the coordinator's certificate into use, and with it a new key where one was waiting.

    Raises:
        DeploymentError: another authority's certificate, another site's, or one for neither of this site's keys.
    """
    certificate, *beside = read_certificates(read_file(path, "a certificate (PEM)"), f"{path}")
    authorities = site.authorities()
    successor = find_successor(certificate, beside, authorities)
    if successor is None and not any(is_issued_by(certificate, authority) for authority in authorities):
        raise DeploymentError(
            f"{path} was not issued by the authority of {site.consortium}: found issuer "
            f"{common_name(certificate.issuer)!r}; ask the coordinator for the file that `dsm-server accept` wrote"
        )
    if (name := common_name(certificate.subject)) != site.name:
        raise DeploymentError(f"{path} is the certificate of {name!r}; this site is {site.name!r}")
    waiting = site.folder / "next"
    for place in (waiting, site.folder):
        if (place / KEYS[0]).exists() and is_key_of(read_key(place / KEYS[0]), certificate):
            break
    else:
        raise DeploymentError(
            f"{path} belongs to none of this site's keys; send the coordinator the latest request, {_latest(site)}"
        )
    if place == waiting:
        for name in (*KEYS, site.request.name):
            (waiting / name).replace(site.folder / name)
        waiting.rmdir()
    if successor is not None and successor not in authorities:
        # Both, since the coordinator's own certificate is still of the old one; see forget_former_authorities.
        write_file(site.ca_certificate, b"".join(map(certificate_pem, [successor, *authorities])), EVERYONE_READS)
    write_file(site.certificate, certificate_pem(certificate), EVERYONE_READS)
    return certificate


def forget_former_authorities(site: Site) -> bool:
    """Trust the newest authority only, once the coordinator answers under it; True where another was forgotten."""
    newest, *former = site.authorities()
    if not former:
        return False
    content = certificate_pem(newest)
    with tempfile.NamedTemporaryFile(suffix=".crt") as alone:
        alone.write(content)
        alone.flush()
        try:
            check_coordinator(site.fleet, Path(alone.name))
        except HandshakeError:
            return False
    write_file(site.ca_certificate, content, EVERYONE_READS)
    return True


def leave(site: Site) -> None:
    """Destroy the site's keys; data, settings, logs and the record of what left stay."""
    for path in (site.key, site.flower_key, site.certificate, site.request, site.folder / "membership.json"):
        path.unlink(missing_ok=True)
    shutil.rmtree(site.folder / "next", ignore_errors=True)
    shutil.rmtree(site.flower_home, ignore_errors=True)


def key_fingerprint(site: Site, request: Path | None = None) -> str:
    """What a person at the site reads to the coordinator over the telephone."""
    folder = site.folder if request is None else request.parent
    return fingerprint(read_key(folder / KEYS[0]).public_key())


def _write_identity(site: Site, folder: Path) -> Path:
    key = new_key()
    for name, content in zip(KEYS, (key_pem(key), key_openssh(key)), strict=True):
        write_file(folder / name, content)
    request = folder / site.request.name
    write_file(request, signing_request(key, site.name, site.secret), EVERYONE_READS)
    return request


def _latest(site: Site) -> Path:
    waiting = site.folder / "next" / site.request.name
    return waiting if waiting.exists() else site.request

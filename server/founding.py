"""How is a consortium founded? Its folder, and what the authority signs for the coordinator itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from server.authority import Authority, alternative_name
from server.consortium import Consortium
from strategies.deployment.certificates import certificate_pem, key_pem, new_key
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import EVERYONE_READS, make_private_folder, write_file
from strategies.deployment.flower import LOOPBACK


def create_consortium(consortium: Consortium) -> Consortium:
    """A new folder with the authority and the server's certificate.

    Raises:
        DeploymentError: the folder holds a consortium already, or a host is no host.
    """
    if (consortium.folder / "consortium.json").exists():
        raise DeploymentError(f"{consortium.folder} holds a consortium already; choose another --folder")
    for host in consortium.hosts:
        alternative_name(host)
    authority = Authority.create(consortium.name)
    for name in ("ca", "server", "sites", "kits", "flower"):
        make_private_folder(make_private_folder(consortium.folder) / name)
    write_file(consortium.ca_key, key_pem(authority.key))
    write_file(consortium.ca_certificate, certificate_pem(authority.certificate), EVERYONE_READS)
    write_revocations(consortium, authority, ())
    write_server_certificate(consortium, authority)
    # A secret that flower-superexec shows to the SuperLink, so that no other local process can take its tasks.
    write_file(consortium.superexec_secret, os.urandom(32))
    consortium.save()  # last: a folder without it is no consortium
    return consortium


def write_server_certificate(consortium: Consortium, authority: Authority) -> None:
    """A new key and certificate for the coordinator, in place of those before."""
    key = new_key()
    # Control and Runtime are spoken to on the loopback address, under the same certificate.
    names = dict.fromkeys([*consortium.hosts, "localhost", LOOPBACK])
    certificate = authority.issue_server(names, key.public_key())
    write_file(consortium.server_key, key_pem(key))
    write_file(consortium.server_certificate, certificate_pem(certificate), EVERYONE_READS)


def write_revocations(consortium: Consortium, authority: Authority, serials: Iterable[int]) -> None:
    """Add serial numbers to the revocation list."""
    path, now = consortium.revocation_list, datetime.now(UTC)
    known = {}
    if path.exists():
        known = {e.serial_number: e.revocation_date_utc for e in x509.load_pem_x509_crl(path.read_bytes())}
    crl = authority.revocation_list((known | {serial: known.get(serial, now) for serial in serials}).items())
    write_file(path, crl.public_bytes(Encoding.PEM), EVERYONE_READS)

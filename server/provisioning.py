"""Who belongs to the consortium? Inviting, accepting and revoking a site, on the consortium's folder alone."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from server.consortium import ACCEPTED, INVITED, REVOKED, Consortium, SiteRecord
from server.founding import write_revocations
from strategies.deployment.certificates import (
    certificate_pem,
    expiry_warning,
    fingerprint,
    read_certificate,
    read_request,
)
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import EVERYONE_READS, make_private_folder, write_file
from strategies.deployment.kit import SiteKit, check_site_name, pack_kit


def invite(consortium: Consortium, name: str, flower: str, again: bool = False) -> Path:
    """Make a site's kit; a second one makes the first worthless.

    Args:
        flower: Flower's release here.
        again: the site was invited or has left before.

    Raises:
        DeploymentError: the name is unfit or taken.
    """
    check_site_name(name)
    known = consortium.sites()
    # On a disk that does not tell capitals apart, two such sites would share a folder.
    if twin := next((other for other in known if other != name and other.lower() == name.lower()), None):
        raise DeploymentError(f"site {name!r} differs from {twin!r} by capitals only; choose another name")
    if name in known and known[name].state == ACCEPTED:
        raise DeploymentError(f"site {name} has joined already; `dsm-server revoke {name}` ends that")
    if name in known and not again:
        raise DeploymentError(f"site {name} was invited already; --again makes a new kit, and the old one worthless")
    record = SiteRecord(name, INVITED, secrets.token_hex(32))
    kit = SiteKit(
        consortium=consortium.name,
        site=name,
        fleet=consortium.fleet_address,
        service=consortium.service_address,
        secret=record.secret,
        flower=flower,
        ca=consortium.ca_certificate.read_text(),
    )
    path = make_private_folder(consortium.folder / "kits") / f"{name}.kit.tar.gz"
    pack_kit(kit, path)
    consortium.save_site(record)
    return path


def accept(consortium: Consortium, name: str, request: Path, stated_fingerprint: str | None = None) -> tuple[Path, str]:
    """Issue a site's certificate for the key in its signing request; a key and certificate before it are revoked.

    Args:
        stated_fingerprint: what the site read over the telephone; compared where it is given.

    Returns:
        The certificate's file, to be sent to the site, and the key's fingerprint.

    Raises:
        DeploymentError: no such site, a revoked one, a request that is not this site's, or another fingerprint.
    """
    record = consortium.site(name)
    if record.state == REVOKED:
        raise DeploymentError(f"site {name} was revoked; invite it anew with `dsm-server add-site {name} --again`")
    key = read_request(request, name, record.secret)
    found = fingerprint(key)
    if stated_fingerprint is not None and _digits(stated_fingerprint) != _digits(found):
        raise DeploymentError(
            f"{request} has the fingerprint {found}, the site reads {stated_fingerprint}: not accepted"
        )
    authority = consortium.authority()
    certificate = authority.issue_site(name, key)
    if record.serial:
        write_revocations(consortium, authority, [int(record.serial, 16)])
    public = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_file(consortium.site_file(name, ".pub"), public, EVERYONE_READS)
    shown = consortium.succession.read_bytes() if consortium.succession.exists() else b""
    write_file(consortium.site_file(name, ".crt"), certificate_pem(certificate) + shown, EVERYONE_READS)
    consortium.save_site(replace(record, state=ACCEPTED, serial=f"{certificate.serial_number:x}"))
    return consortium.site_file(name, ".crt"), found


def revoke(consortium: Consortium, name: str, reason: str) -> SiteRecord:
    """End a site's membership: its certificate enters the revocation list.

    Raises:
        DeploymentError: no such site, or one that was revoked before.
    """
    record = consortium.site(name)
    if record.state == REVOKED:
        raise DeploymentError(f"site {name} was revoked before ({record.reason})")
    if record.serial:
        write_revocations(consortium, consortium.authority(), [int(record.serial, 16)])
    return consortium.save_site(replace(record, state=REVOKED, reason=reason))


def expiry_warnings(consortium: Consortium) -> list[str]:
    """A sentence for every certificate that has expired or ends within 30 days."""
    server = expiry_warning(
        "the coordinator's certificate",
        read_certificate(consortium.server_certificate),
        "renew it with `dsm-server rotate`, then `dsm-server stop` and `start`",
    )
    authority = expiry_warning(
        "the authority's certificate",
        read_certificate(consortium.ca_certificate),
        "exchange it with `dsm-server rotate --authority`",
    )
    sites = [
        expiry_warning(
            f"the certificate of site {name}",
            read_certificate(consortium.site_file(name, ".crt")),
            "renew it with `dsm-site rotate` at the site",
        )
        for name in consortium.members()
    ]
    return [warning for warning in (authority, server, *sites) if warning]


def _digits(text: str) -> str:
    return "".join(text.split()).replace(":", "").lower()

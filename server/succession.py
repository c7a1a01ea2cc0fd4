"""How does a consortium change its authority while it runs? In two steps, and no site is cut off between them.

1. `exchange_authority` makes the new one. Both are trusted from then on, and every member's certificate is issued anew;
   the file that a site receives shows that the old authority names the new one, so nothing is read over the telephone.
2. Once the sites have imported them, the coordinator's own certificate is issued anew and the old one is forgotten.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from server.authority import Authority
from server.consortium import Consortium
from server.founding import write_revocations
from strategies.deployment.certificates import certificate_pem, key_pem, read_certificate
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import EVERYONE_READS, write_file


def exchange_authority(consortium: Consortium) -> dict[str, Path]:
    """A new authority beside the present one, and a new certificate for the key of every member.

    A command that was killed half way is given again: the new authority signs once its key is in place, which is last.

    Returns:
        The file to be sent to each site.

    Raises:
        DeploymentError: an exchange is under way, or a file cannot be written.
    """
    before = consortium.authority()
    if is_exchanging(consortium):
        raise DeploymentError("the authority is being exchanged already; `dsm-server rotate` ends that")
    after = Authority.create(consortium.name)
    statement, files = before.name_successor(after.certificate), {}
    both = certificate_pem(after.certificate) + certificate_pem(before.certificate)
    shown = certificate_pem(after.certificate) + certificate_pem(statement)
    write_file(consortium.ca_certificate, both, EVERYONE_READS)
    write_file(consortium.succession, shown, EVERYONE_READS)
    for name, record in consortium.members().items():
        key = read_certificate(consortium.site_file(name, ".crt")).public_key()
        own = after.issue_site(name, key)  # type: ignore[arg-type]
        files[name] = consortium.site_file(name, ".crt")
        write_file(files[name], certificate_pem(own) + shown, EVERYONE_READS)
        consortium.save_site(replace(record, serial=f"{own.serial_number:x}"))
    write_file(consortium.ca_key, key_pem(after.key))
    write_revocations(consortium, after, ())
    return files


def is_exchanging(consortium: Consortium) -> bool:
    """True between the two steps."""
    authority, *others = consortium.authorities()
    return bool(others) and authority == consortium.authority().certificate


def forget_former_authorities(consortium: Consortium) -> None:
    """Trust the present authority only."""
    write_file(consortium.ca_certificate, certificate_pem(consortium.authority().certificate), EVERYONE_READS)

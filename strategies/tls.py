"""Is this certificate usable, and whom does it name? Checked before a call, so that a refusal has a reason.

A TLS handshake that fails tells neither side more than an alert; what can be known beforehand is said here in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from strategies.deployment.errors import DeploymentError


class TlsError(DeploymentError):
    """A certificate or key that cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class TlsPems:
    """What a TLS connection is made from, PEM encoded; the key never enters a message."""

    ca: bytes
    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class TlsFiles:
    """The three files of one side of mutual TLS.

    Attributes:
        ca: certificates that the other side's must be issued by.
        certificate: this side's, followed by intermediate ones if there are any.
        key: private key of the certificate, without a passphrase.
    """

    ca: Path
    certificate: Path
    key: Path

    def read(self, now: datetime | None = None) -> TlsPems:
        """The files' content, found to belong together and to be valid now.

        Raises:
            TlsError: a file is missing or no PEM, the certificate is expired, not valid yet or issued by another
                authority, or the key is another one's.
        """
        pems = TlsPems(*(_read(path) for path in (self.ca, self.certificate, self.key)))
        authorities = read_certificates(pems.ca, f"{self.ca}")
        chain = read_certificates(pems.certificate, f"{self.certificate}")
        check_validity(chain[0], now)
        if not any(is_issued_by(chain[0], issuer) for issuer in [*authorities, *chain[1:]]):
            raise TlsError(
                f"{self.certificate} was not issued by the authority in {self.ca}: found issuer "
                f"{chain[0].issuer.rfc4514_string()!r}; use the two files of one site kit"
            )
        if not is_key_of(load_key(pems.key, f"{self.key}"), chain[0]):
            raise TlsError(
                f"{self.key} is not the key of {self.certificate}; use the key that its request was made with"
            )
        return pems


def read_certificates(pem: bytes, source: str) -> list[x509.Certificate]:
    """Every certificate in PEM text.

    Raises:
        TlsError: there is none, or one cannot be read.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise TlsError(f"{source} holds no certificate that can be read (PEM): {error}") from error


def load_key(pem: bytes, source: str) -> PrivateKeyTypes:
    """The private key in PEM text.

    Raises:
        TlsError: there is none, or it is encrypted.
    """
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsError(f"{source} holds no private key that can be read without a passphrase (PEM)") from error


def validity_fault(what: str, certificate: x509.Certificate, remedy: str, now: datetime | None = None) -> str | None:
    """A sentence where a certificate has expired or is not valid yet, None where it is valid."""
    now = now or datetime.now(UTC)
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        return f"{what} expired on {ends:%Y-%m-%d %H:%M} UTC; {remedy}"
    if now < starts:
        return (
            f"{what} is valid from {starts:%Y-%m-%d %H:%M} UTC, and this clock says {now:%Y-%m-%d %H:%M}; "
            "set the clock, or wait"
        )
    return None


def check_validity(certificate: x509.Certificate, now: datetime | None = None) -> None:
    """Raise where the certificate is not valid at this time.

    Raises:
        TlsError: expired, or not valid yet.
    """
    what = f"the certificate of {certificate.subject.rfc4514_string()!r}"
    if fault := validity_fault(what, certificate, "ask for a new one", now):
        raise TlsError(fault)


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """True where the authority signed the certificate and is named in it."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_key_of(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    """True where the certificate was issued for this private key."""
    return public_der(key.public_key()) == public_der(certificate.public_key())


def public_der(key: PublicKeyTypes) -> bytes:
    """A public key as it is compared and hashed (SubjectPublicKeyInfo, DER)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def site_name(certificate: x509.Certificate) -> str:
    """The site that a certificate names: its common name, or its only alternative DNS name where it has none.

    Raises:
        TlsError: it names nobody, or several.
    """
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if not names:
        try:
            alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            raise TlsError("the certificate names no site; wanted a common name") from None
        names = alternative.get_values_for_type(x509.DNSName)
    if len(names) != 1 or not names[0].strip():
        raise TlsError(f"the certificate names {names or 'nobody'}; wanted the name of one site")
    return names[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read ({error.strerror}); it is part of the site's kit") from error

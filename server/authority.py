"""What does the consortium's authority sign? Its own certificate, the server's, the sites', and the revocation list."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strategies.deployment.certificates import DIGEST, new_key
from strategies.deployment.errors import DeploymentError
from strategies.deployment.succession import SUCCESSION

AUTHORITY_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=397)  # the longest that browsers and the CA/Browser Forum accept for a server
CLOCK_TOLERANCE = timedelta(hours=1)  # certificates begin this much earlier: a site's clock may run behind


@dataclass(frozen=True)
class Authority:
    """The key that signs, with its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, consortium: str, now: datetime | None = None) -> Authority:
        """A new authority; it may sign leaves only."""
        now, key = now or datetime.now(UTC), new_key()
        name = _name(f"{consortium} authority")
        certificate = (
            _builder(name, name, key.public_key(), now, AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, DIGEST())
        )
        return cls(key, certificate)

    def issue_server(
        self, hosts: Iterable[str], key: ec.EllipticCurvePublicKey, now: datetime | None = None
    ) -> x509.Certificate:
        """The coordinator's certificate for host names and IP addresses.

        Raises:
            DeploymentError: a host is neither.
        """
        names = [alternative_name(host) for host in hosts]
        leaf = self._leaf(f"{names[0].value}", key, ExtendedKeyUsageOID.SERVER_AUTH, now)
        return leaf.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(self.key, DIGEST())

    def issue_site(self, site: str, key: ec.EllipticCurvePublicKey, now: datetime | None = None) -> x509.Certificate:
        """A site's certificate; its common name is the site's."""
        return self._leaf(site, key, ExtendedKeyUsageOID.CLIENT_AUTH, now).sign(self.key, DIGEST())

    def name_successor(self, successor: x509.Certificate, now: datetime | None = None) -> x509.Certificate:
        """The statement that another authority follows this one, see `strategies.deployment.succession`."""
        name, key = f"successor of {self.certificate.subject.rfc4514_string()}", successor.public_key()
        return self._leaf(name, key, SUCCESSION, now).sign(self.key, DIGEST())  # type: ignore[arg-type]

    def revocation_list(self, revoked: Iterable[tuple[int, datetime]]) -> x509.CertificateRevocationList:
        """The list of serial numbers that are no longer valid, with the time of each revocation (RFC 5280)."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(datetime.now(UTC))
            # The list is read from the folder in which it is written, so it never grows stale.
            .next_update(self.certificate.not_valid_after_utc)
        )
        for serial, at in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, DIGEST())

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, use: x509.ObjectIdentifier, now: datetime | None
    ) -> x509.CertificateBuilder:
        now = now or datetime.now(UTC)
        life = min(LEAF_LIFE, self.certificate.not_valid_after_utc - now)
        return (
            _builder(_name(name), self.certificate.subject, key, now, life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
        )


def alternative_name(host: str) -> x509.GeneralName:
    """A host name or IP address as certificates state it.

    Raises:
        DeploymentError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if len(host) > 253 or not all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "a").isalnum() for label in labels
    ):
        raise DeploymentError(f"{host!r} is neither a host name nor an IP address; leave out the scheme and the port")
    return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])  # X.520's upper bound


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_TOLERANCE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )

"""What do keys and certificates say? Made, read and checked here; only the coordinator's authority signs.

One key is a site's whole identity: the certificate for the gRPC service is issued for it, and Flower's SuperNode signs
with it. Flower wants a NIST curve and OpenSSH's key format, TLS wants PEM, so one key is written in both.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AttributeOID, NameOID

from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import check_owner_only, read_file
from strategies.tls import load_key, public_der, read_certificates, validity_fault

WARNING_TIME = timedelta(days=30)
DIGEST = hashes.SHA384  # of the same strength as the curve P-384


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key on P-384, the curve that Flower recommends for SuperNodes."""
    return ec.generate_private_key(ec.SECP384R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as TLS libraries read it; not encrypted, the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as `flower-supernode --auth-supernode-private-key` reads it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a PEM file that only its owner can read.

    Raises:
        DeploymentError: no such file, others may read it, or it holds no key on P-384.
    """
    content = read_file(path, "a private key (PEM)")
    check_owner_only(path)
    key = load_key(content, f"{path}")
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DeploymentError(f"{path} holds another kind of key; wanted an elliptic curve key on P-384")
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file.

    Raises:
        DeploymentError: no such file, or no certificate in it.
    """
    return read_certificates(read_file(path, "a certificate (PEM)"), f"{path}")[0]


def common_name(name: x509.Name) -> str:
    """The common name, empty where there is none."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """First 32 hex digits of the SHA-256 of a public key, in groups of four: short enough to be read aloud."""
    digest = hashlib.sha256(public_der(key)).hexdigest()[:32]
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


def expiry_warning(what: str, certificate: x509.Certificate, remedy: str, now: datetime | None = None) -> str | None:
    """A sentence where a certificate has expired, is not valid yet or ends within 30 days; None where all is well."""
    now = now or datetime.now(UTC)
    end = certificate.not_valid_after_utc
    fault = validity_fault(what, certificate, remedy, now)
    if fault is None and end - now < WARNING_TIME:
        return f"{what} expires on {end:%Y-%m-%d}, in {(end - now).days} days; {remedy}"
    return fault


def ownership_proof(secret: str, key: ec.EllipticCurvePublicKey) -> str:
    """What shows that a public key comes from whoever holds the kit's secret, without showing the secret."""
    return hmac.new(bytes.fromhex(secret), public_der(key), hashlib.sha256).hexdigest()


def signing_request(key: ec.EllipticCurvePrivateKey, site: str, secret: str) -> bytes:
    """A PEM certificate signing request (PKCS#10) for a site's key, with the kit's proof as its challenge password."""
    request = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    )
    request = request.add_attribute(AttributeOID.CHALLENGE_PASSWORD, ownership_proof(secret, key.public_key()).encode())
    return request.sign(key, DIGEST()).public_bytes(serialization.Encoding.PEM)


def read_request(path: Path, site: str, secret: str) -> ec.EllipticCurvePublicKey:
    """The public key of a site's signing request, found to come from the holder of that site's kit.

    Raises:
        DeploymentError: not a request, made by another key, another site's, another curve, or without the kit's proof.
    """
    what = f"the signing request that `dsm-site join` wrote at {site}"
    try:
        request = x509.load_pem_x509_csr(read_file(path, what, limit=64 << 10))
        is_signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeploymentError(f"{path} is no signing request (PEM); wanted {what}") from error
    key = request.public_key()
    if not is_signed:
        raise DeploymentError(f"{path}: the request is not signed by its own key; it was damaged or altered")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DeploymentError(f"{path}: the key is of another kind; wanted an elliptic curve key on P-384")
    if (name := common_name(request.subject)) != site:
        raise DeploymentError(f"{path}: the request is of site {name!r}, wanted {site!r}; accept it under its own name")
    try:
        proof = request.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD).value.decode(
            "ascii", "replace"
        )
    except x509.AttributeNotFound:
        proof = ""
    if not hmac.compare_digest(proof.encode(), ownership_proof(secret, key).encode()):
        raise DeploymentError(
            f"{path}: the request was not made from the latest kit of site {site}; "
            f"have the site join with that kit, or make a new one with `dsm-server add-site {site} --again`"
        )
    return key

"""Keys stay private, requests prove where they come from, and an end that is near is announced."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_ssh_private_key
from cryptography.x509.oid import NameOID

from server.authority import Authority
from strategies.deployment.certificates import (
    expiry_warning,
    fingerprint,
    key_openssh,
    key_pem,
    new_key,
    read_key,
    read_request,
    signing_request,
)
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import write_file

SECRET, OTHER = "0a" * 32, "0b" * 32


@pytest.fixture
def request_file(tmp_path):
    def write(content):
        (tmp_path / "north.csr").write_bytes(content)
        return tmp_path / "north.csr"

    return write


def test_one_key_is_written_in_the_formats_of_tls_and_of_flower(tmp_path):
    key = new_key()
    write_file(tmp_path / "site.key", key_pem(key))
    assert read_key(tmp_path / "site.key").private_numbers() == key.private_numbers()
    assert load_ssh_private_key(key_openssh(key), None).private_numbers() == key.private_numbers()


def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path):
    write_file(tmp_path / "site.key", key_pem(new_key()), 0o640)
    with pytest.raises(DeploymentError, match=r"mode 0640, so others may read it; `chmod 600"):
        read_key(tmp_path / "site.key")


def test_a_request_from_the_kit_gives_its_key(request_file):
    key = new_key()
    found = read_request(request_file(signing_request(key, "north", SECRET)), "north", SECRET)
    assert fingerprint(found) == fingerprint(key.public_key())


@pytest.mark.parametrize(
    ("site", "secret", "reason"),
    [("south", SECRET, "of site 'north', wanted 'south'"), ("north", OTHER, "not made from the latest kit")],
)
def test_a_request_of_another_site_or_kit_is_refused(request_file, site, secret, reason):
    path = request_file(signing_request(new_key(), "north", SECRET))
    with pytest.raises(DeploymentError, match=reason):
        read_request(path, site, secret)


def test_a_request_whose_key_was_exchanged_on_the_way_is_refused(request_file):
    # The thief knows the kit's proof of another key, and not the secret.
    honest = x509.load_pem_x509_csr(signing_request(new_key(), "north", SECRET))
    proof = honest.attributes.get_attribute_for_oid(x509.oid.AttributeOID.CHALLENGE_PASSWORD).value
    stolen = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")]))
        .add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, proof)
        .sign(new_key(), hashes.SHA384())
    )
    with pytest.raises(DeploymentError, match="not made from the latest kit"):
        read_request(request_file(stolen.public_bytes(Encoding.PEM)), "north", SECRET)


def test_a_request_on_a_weak_curve_or_none_at_all_is_refused(request_file):
    weak = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    weak = weak.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    with pytest.raises(DeploymentError, match="wanted an elliptic curve key on P-384"):
        read_request(request_file(weak.public_bytes(Encoding.PEM)), "north", SECRET)
    with pytest.raises(DeploymentError, match="is no signing request"):
        read_request(request_file(b"hello"), "north", SECRET)


@pytest.mark.parametrize(
    ("days", "words"),
    [(0, None), (366, None), (380, "in 17 days; renew it"), (400, "expired on"), (-2, "set the clock")],
)
def test_an_end_that_is_near_is_announced(days, words):
    start = datetime(2030, 1, 1, tzinfo=UTC)
    certificate = Authority.create("demo", start).issue_site("north", new_key().public_key(), start)
    warning = expiry_warning("the certificate of north", certificate, "renew it", start + timedelta(days=days))
    assert (warning is None) if words is None else (words in warning)

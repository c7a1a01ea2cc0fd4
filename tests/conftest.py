"""One torch thread, since tests are small and two threads on a busy machine wait for each other; test certificates."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from strategies.tls import TlsFiles

torch.set_num_threads(1)


@dataclass
class Authority:
    """A certificate authority that issues whatever a test wants, expired or not."""

    folder: Path
    name: str

    def __post_init__(self):
        self.folder.mkdir(exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self.name, self.key, self.name, -3650, 3650, is_ca=True)
        (self.folder / "ca.pem").write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(self, name, from_days=-1, to_days=365, is_server=False) -> TlsFiles:
        """Certificate and key of a site, or of the coordinator on loopback; valid between two days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key, self.name, from_days, to_days, is_server=is_server)
        stem = f"{name}-{certificate.serial_number:x}"
        files = TlsFiles(self.folder / "ca.pem", self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        files.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def _sign(self, name, key, issuer, from_days, to_days, is_ca=False, is_server=False):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=from_days))
            .not_valid_after(now + timedelta(days=to_days))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if not is_ca:
            usage = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if is_server:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def _serial(files):
    return x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number


def _name(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """The consortium's certificate authority."""
    return Authority(tmp_path_factory.mktemp("authority"), "consortium")


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory):
    """An authority of the same name that nobody in the consortium trusts."""
    return Authority(tmp_path_factory.mktemp("other-authority"), "consortium")


class Coordinator:
    """A running gRPC service on loopback, and the switches that a test turns."""

    def __init__(self, authority, folder):
        from dsm_core.classes import ATLAS
        from dsm_core.config import TextConfig
        from dsm_core.text_building import build_text_space
        from server.admission import Admission
        from server.banks import Banks
        from server.contract_book import ContractBook
        from server.serving import serve
        from server.text_service import Desk
        from strategies.audit import AuditLog

        self.revoked, self.sites = [], {"north", "south"}
        self.audit = AuditLog(folder / "audit.jsonl")
        self.space = build_text_space([ATLAS["liver"], ATLAS["spleen"]], TextConfig())

        self.desk = Desk(
            Admission(lambda: self.sites, lambda: {_serial(files) for files in self.revoked}),
            Banks(folder / "banks"),
            ContractBook(folder / "contracts.json", lambda: self.sites),
            folder / "runs",
            self.audit,
            watch_lease_s=0.5,
        )
        self.desk.runs.mkdir(parents=True)
        self.desk.banks.put(self.space)
        self.own = authority.issue("coordinator", is_server=True)
        self.start = lambda address="127.0.0.1:0": serve(self.desk, self.own, address)
        self.service = self.start()
        self.address = f"localhost:{self.service.port}"

    def recorded(self, event):
        """Facts of the records of one kind in the coordinator's audit log."""
        if not self.audit.path.exists():
            return []
        records = map(json.loads, self.audit.path.read_text().splitlines())
        return [record["facts"] for record in records if record["event"] == event]

    def channel(self, files):
        """A channel that checks nothing beforehand, as an attacker's would."""
        import grpc

        ca, key, certificate = (path.read_bytes() for path in (files.ca, files.key, files.certificate))
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(ca, key, certificate))


@pytest.fixture
def coordinator(authority, tmp_path):
    """A coordinator that knows the sites north and south."""
    running = Coordinator(authority, tmp_path / "coordinator")
    yield running
    running.service.stop(0)


@pytest.fixture(scope="session")
def north(authority):
    """Certificate and key of the site north."""
    return authority.issue("north")

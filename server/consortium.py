"""What is a consortium on disk? Its folder, the sites in it, and where each file lies.

consortium.json            name, hosts, ports
ca/                        ca.key, ca.crt, crl.pem: the authority, and what it has revoked; succession.pem
server/                    server.key, server.crt: the coordinator's identity
sites/NAME/                site.json, NAME.crt, NAME.pub: one site
kits/                      archives made by `add-site`, one a site
audit.jsonl                what happened here
banks/  contracts.json     text spaces that the gRPC service hands out; label contracts of enrolled sites
flower/                    Flower's home, state database, secret; nodes.json and order.json for the ServerApp
logs/  processes/          what runs, and what it said
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509

from server.authority import Authority
from strategies.deployment.certificates import read_key
from strategies.deployment.errors import DeploymentError
from strategies.deployment.files import make_private_folder, read_file, write_file
from strategies.deployment.kit import check_site_name
from strategies.tls import is_key_of, read_certificates

INVITED, ACCEPTED, REVOKED = "invited", "accepted", "revoked"
FOLDER = "consortium"
NODE_NAMES = "flower/nodes.json"  # JSON object, Flower's node id -> name of the accepted site
ORDER_FILE = "flower/order.json"  # what the latest run is to do, see server.run_config
_FORMAT = 1


@dataclass(frozen=True)
class SiteRecord:
    """One site as the coordinator knows it.

    Attributes:
        state: invited (a kit was made), accepted (its key is known), or revoked.
        secret: of the site's latest kit.
        serial: serial number of its certificate in hex, empty before it was accepted.
    """

    site: str
    state: str
    secret: str
    serial: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Consortium:
    """A consortium's facts and the places of its files.

    Attributes:
        hosts: names and addresses under which the sites reach the coordinator; the first is put into kits.
        fleet_port: public port on which the sites' SuperNodes connect.
        service_port: public port of the text-space and enrolment service (gRPC, mutual TLS).
        flower_port: port of the SuperLink, on the loopback address only.
        has_proxy: nginx stands between `fleet_port` and `flower_port`. Without, both are one port and only sites on
            this machine can connect.
    """

    folder: Path
    name: str
    hosts: tuple[str, ...]
    fleet_port: int
    service_port: int
    flower_port: int
    has_proxy: bool

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca" / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        return self.folder / "ca" / "ca.crt"

    @property
    def revocation_list(self) -> Path:
        return self.folder / "ca" / "crl.pem"

    @property
    def succession(self) -> Path:
        """The present authority with its predecessor's statement, for every certificate file; absent for the first."""
        return self.folder / "ca" / "succession.pem"

    @property
    def server_key(self) -> Path:
        return self.folder / "server" / "server.key"

    @property
    def server_certificate(self) -> Path:
        return self.folder / "server" / "server.crt"

    @property
    def flower_home(self) -> Path:
        return self.folder / "flower"

    @property
    def superexec_secret(self) -> Path:
        return self.flower_home / "superexec.secret"

    @property
    def node_names(self) -> Path:
        """Which node is which accepted site; the ServerApp reads it."""
        return self.folder / NODE_NAMES

    @property
    def audit(self) -> Path:
        """Record of what happened here, see `strategies.audit`."""
        return self.folder / "audit.jsonl"

    @property
    def fleet_address(self) -> str:
        """host:port that sites are told for Flower."""
        return f"{_bracketed(self.hosts[0])}:{self.fleet_port}"

    @property
    def service_host(self) -> str:
        """The address that the gRPC service listens on: every one of this machine."""
        return "::" if any(":" in host for host in self.hosts) else "0.0.0.0"

    @property
    def service_address(self) -> str:
        """host:port that sites are told for the gRPC service."""
        return f"{_bracketed(self.hosts[0])}:{self.service_port}"

    def authority(self) -> Authority:
        """The key that signs for this consortium, with the certificate that is its own.

        Raises:
            DeploymentError: its files are missing, readable by others, or do not belong together.
        """
        key = read_key(self.ca_key)
        for certificate in self.authorities():
            if is_key_of(key, certificate):
                return Authority(key, certificate)
        raise DeploymentError(f"{self.ca_key} is not the key of {self.ca_certificate}; bring both back from one copy")

    def authorities(self) -> list[x509.Certificate]:
        """The authorities that are trusted: the present one, and while it is exchanged the one before it."""
        return read_certificates(read_file(self.ca_certificate, "a certificate (PEM)"), f"{self.ca_certificate}")

    def sites(self) -> dict[str, SiteRecord]:
        """Every site ever invited, by name; read anew at each call."""
        records = (json.loads(path.read_text()) for path in sorted((self.folder / "sites").glob("*/site.json")))
        return {record["site"]: SiteRecord(**record) for record in records}

    def site(self, name: str) -> SiteRecord:
        """One site.

        Raises:
            DeploymentError: there is none of this name.
        """
        sites = self.sites()
        if name not in sites:
            raise DeploymentError(f"no site {name!r} in {self.folder}; it knows {', '.join(sites) or 'none yet'}")
        return sites[name]

    def members(self) -> dict[str, SiteRecord]:
        """The accepted sites by name; read anew at each call."""
        return {name: record for name, record in self.sites().items() if record.state == ACCEPTED}

    def revoked_serials(self) -> frozenset[int]:
        """Serial numbers of revoked certificates; read anew at each call."""
        crl = x509.load_pem_x509_crl(read_file(self.revocation_list, "the revocation list (PEM)", limit=64 << 20))
        return frozenset(entry.serial_number for entry in crl)

    def site_file(self, name: str, suffix: str) -> Path:
        """A site's certificate (`.crt`) or Flower public key (`.pub`)."""
        return self.folder / "sites" / name / f"{name}{suffix}"

    def save_site(self, record: SiteRecord) -> SiteRecord:
        """Write one site's record."""
        folder = make_private_folder(self.folder / "sites" / check_site_name(record.site))
        write_file(folder / "site.json", json.dumps(asdict(record), indent=1) + "\n")
        return record

    def save(self) -> None:
        """Write the consortium's facts."""
        facts = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_file(self.folder / "consortium.json", json.dumps({"format": _FORMAT, **facts}, indent=1) + "\n")


def load_consortium(folder: Path | str) -> Consortium:
    """The consortium in a folder.

    Raises:
        DeploymentError: there is none, it was made by another release, or a private file is readable by others.
    """
    folder = Path(folder).resolve()
    path = folder / "consortium.json"
    if not path.exists():
        raise DeploymentError(f"{folder} holds no consortium; make one with `dsm-server init`, or name it by --folder")
    try:
        facts = json.loads(read_file(path, "the consortium's facts"))
        if (version := facts.pop("format")) != _FORMAT:
            raise DeploymentError(f"{path} is of format {version}, wanted {_FORMAT}; use the release that made it")
        consortium = Consortium(folder, **{**facts, "hosts": tuple(facts["hosts"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DeploymentError(f"{path} cannot be read: {error}") from error
    return consortium


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

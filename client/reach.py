"""Why can the coordinator not be reached? Address, name, port and TLS handshake, one after the other, each in words."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from client.deadlines import DeadlinePassed, within
from strategies.tls import TlsError, TlsFiles

_LISTEN_S = 2.0  # under TLS 1.3 a server refuses the client's certificate only after the client's handshake is done
_UNTRUSTED = {18, 19, 20, 21}  # OpenSSL: self-signed certificate, or an issuer that is not at hand
_OUTSIDE_VALIDITY = {9: "is not valid yet", 10: "has expired"}
_OTHER_NAME = {62, 64}
_ALERTS = {
    "CERTIFICATE_EXPIRED": "this site's certificate has expired; ask for a new one",
    "UNKNOWN_CA": "this site's certificate was issued by another authority; use the files of this consortium's kit",
    "CERTIFICATE_UNKNOWN": "this site's certificate was not accepted; use the files of this consortium's kit",
    "BAD_CERTIFICATE": "this site's certificate was not accepted; use the files of this consortium's kit",
    "CERTIFICATE_REQUIRED": "a certificate is wanted; give the site's certificate and key",
    "CERTIFICATE_REVOKED": "this site's certificate was revoked; ask the coordinator for a new kit",
    "DECRYPT_ERROR": "this site's certificate was issued by another authority; use this consortium's kit",
}


class Unreachable(ConnectionError):
    """The coordinator cannot be reached.

    Attributes:
        stage: `address`, `name`, `port` or `TLS`: what failed first.
        remedy: what to do.
    """

    def __init__(self, stage: str, found: str, remedy: str) -> None:
        super().__init__(f"{found}; {remedy}")
        self.stage, self.found, self.remedy = stage, found, remedy


@dataclass(frozen=True)
class Address:
    """Host and port of a service."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address in `host:port`, `[::1]:port`.

        Raises:
            Unreachable: the text is no address.
        """
        host, _, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
            raise Unreachable("address", f"found {text!r} as the coordinator's address", "wanted HOST:PORT")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def resolve(address: Address, timeout_s: float) -> list[str]:
    """The machine addresses of the host.

    Raises:
        Unreachable: the name is unknown, or no name server answers.
    """
    remedy = "check the name, and ask the hospital's network staff whether this machine may resolve it"
    try:
        found = within(
            timeout_s,
            "the name server",
            lambda: socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM),
        )
    except DeadlinePassed as error:
        raise Unreachable("name", f"{error}", remedy) from error
    except OSError as error:
        raise Unreachable("name", f"the name {address.host!r} is not known ({error.strerror})", remedy) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(address: Address, timeout_s: float) -> socket.socket:
    """An open connection.

    Raises:
        Unreachable: nobody listens, a firewall is silent, or the network has no way there.
    """
    try:
        return socket.create_connection((address.host, address.port), timeout_s)
    except TimeoutError as error:
        found = f"{address} gave no answer within {timeout_s:g} s"
        raise Unreachable("port", found, "ask for outgoing connections to this port to be let through") from error
    except ConnectionRefusedError as error:
        found = f"nothing listens on {address}"
        raise Unreachable("port", found, "ask the coordinator whether the service runs, and check the port") from error
    except OSError as error:
        raise Unreachable("port", f"{address}: {error.strerror or error}", "check this machine's network") from error


def handshake(address: Address, ca: Path, timeout_s: float, own: TlsFiles | None = None) -> x509.Certificate:
    """The certificate that the other side proved to hold, after a handshake with the real chain.

    Args:
        ca: the consortium's authority. own: this side's certificate, where the other side wants one.

    Raises:
        Unreachable: see `connect`; or no TLS, another authority, another name, an expired or refused certificate.
    """
    context = ssl.create_default_context(cafile=str(ca))
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    deadline = time.monotonic() + timeout_s
    with connect(address, timeout_s) as raw:
        try:
            raw.settimeout(max(0.1, deadline - time.monotonic()))
            with context.wrap_socket(raw, server_hostname=address.host) as secure:
                if own is not None:
                    _listen(secure, min(_LISTEN_S, max(0.1, deadline - time.monotonic())))
                return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
        except ssl.SSLCertVerificationError as error:
            raise _untrusted(error, address) from error
        except ssl.SSLError as error:
            raise _failed(error, address) from error
        except TimeoutError as error:
            found = f"{address} did not finish the TLS handshake within {timeout_s:g} s"
            raise Unreachable(
                "TLS", found, "check that the port is the gRPC service's, and that no proxy holds it"
            ) from error
        except _HungUp as error:
            raise _refused_silently(own) from error
        except OSError as error:
            found = f"{address} closed the connection in the TLS handshake ({error.strerror or type(error).__name__})"
            raise Unreachable("TLS", found, "check that the port is the gRPC service's, not plain text") from error


class _HungUp(OSError):
    """The other side ended the connection after this side's handshake was done."""


def _listen(secure: ssl.SSLSocket, timeout_s: float) -> None:
    """Wait for the first byte: a gRPC server greets at once, or it refuses the certificate."""
    secure.settimeout(timeout_s)
    try:
        if not secure.recv(1):
            raise _HungUp
    except (ConnectionResetError, ssl.SSLEOFError) as error:
        raise _HungUp from error
    except TimeoutError:
        return


def _refused_silently(own: TlsFiles | None) -> Unreachable:
    """gRPC refuses a certificate without an alert; what is wrong with it can mostly be seen from here."""
    found = "the coordinator hung up on seeing this site's certificate"
    try:
        if own is not None:
            own.read()
    except TlsError as fault:
        return Unreachable("TLS", found, f"{fault}")
    return Unreachable("TLS", found, "compare the clocks, and ask for the reason in the coordinator's log")


def _untrusted(error: ssl.SSLCertVerificationError, address: Address) -> Unreachable:
    code = error.verify_code
    if code in _OUTSIDE_VALIDITY:
        found = f"the coordinator's certificate {_OUTSIDE_VALIDITY[code]}"
        return Unreachable("TLS", found, "check this machine's clock; if it is right, the coordinator must renew it")
    if code in _OTHER_NAME:
        found = f"the coordinator's certificate is not for {address.host!r} ({error.verify_message})"
        return Unreachable("TLS", found, "use the name that the site kit states, or have it added to the certificate")
    found = f"{address} shows a certificate of another authority ({error.verify_message})"
    if code not in _UNTRUSTED:
        found = f"{address} shows a certificate that is refused ({error.verify_message})"
    return Unreachable(
        "TLS", found, "use this consortium's CA file; if a proxy opens TLS traffic, have this address exempted"
    )


def _failed(error: ssl.SSLError, address: Address) -> Unreachable:
    reason = error.reason or ""
    for alert, meaning in _ALERTS.items():
        if "ALERT" in reason and reason.endswith(alert):
            found, _, remedy = meaning.partition("; ")
            return Unreachable("TLS", f"the coordinator refuses: {found}", remedy)
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"):
        return Unreachable("TLS", f"{address} speaks no TLS", "check the port: plain text is never used")
    found = f"the TLS handshake with {address} failed ({reason or error})"
    return Unreachable("TLS", found, "check that the port is the gRPC service's, and that no proxy stands between")

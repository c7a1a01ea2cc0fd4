"""Can the coordinator be reached, and is it the coordinator? One TLS handshake, every way to fail told in words."""

from __future__ import annotations

import http.client
import socket
import ssl
from base64 import b64encode
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from strategies.deployment.errors import DeploymentError
from strategies.deployment.flower import LOOPBACK

TIMEOUT_S = 10.0
_EXPIRED, _NOT_YET, _HOST, _ADDRESS = 10, 9, 62, 64  # X509_V_ERR_* of OpenSSL


class HandshakeError(DeploymentError):
    """The coordinator cannot be reached, or what answers is not it; the message names the cause."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_coordinator(address: str, authority: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Shake hands with the coordinator over TLS.

    Args:
        address: host:port. authority: the consortium's CA certificate, PEM.

    Raises:
        HandshakeError: no such name, nobody listens, silence, no TLS, or a certificate that is not the coordinator's.
    """
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority)
    connection = _connection(host, port, context, timeout_s)
    try:
        connection.connect()
        return
    except socket.gaierror as error:
        raise HandshakeError(f"{host} is no name that this machine can resolve; check DNS, or /etc/hosts") from error
    except ssl.SSLCertVerificationError as error:
        raise HandshakeError(_certificate_fault(address, host, error)) from error
    except ssl.SSLError as error:
        raise HandshakeError(
            f"what answers at {address} speaks no TLS that this site accepts ({error.reason}); a proxy in between?"
        ) from error
    except TimeoutError as error:
        raise HandshakeError(f"{address} does not answer within {timeout_s:g} s; does a firewall stop it?") from error
    except OSError as error:
        raise HandshakeError(
            f"{address}: {(error.strerror or str(error)).lower()}; is the coordinator running, and the port open?"
        ) from error
    finally:
        connection.close()


def _connection(host: str, port: int, context: ssl.SSLContext, timeout_s: float) -> http.client.HTTPSConnection:
    """Through the machine's proxy where it has one, as Flower will go; TLS reaches from here to the coordinator."""
    proxy = urlsplit(getproxies().get("https", ""))
    if not proxy.hostname or proxy_bypass(host) or host in (LOOPBACK, "localhost"):
        return http.client.HTTPSConnection(host, port, context=context, timeout=timeout_s)
    connection = http.client.HTTPSConnection(proxy.hostname, proxy.port or 3128, context=context, timeout=timeout_s)
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}" if proxy.username else ""
    headers = {"Proxy-Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}
    connection.set_tunnel(host, port, headers)
    return connection


def _certificate_fault(address: str, host: str, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return f"the certificate of {address} has expired; the coordinator renews it with `dsm-server rotate`"
    if error.verify_code == _NOT_YET:
        return f"the certificate of {address} is not valid yet; compare this machine's clock with the coordinator's"
    if error.verify_code in (_HOST, _ADDRESS):
        return (
            f"the certificate of {address} does not state {host}; the coordinator adds it with "
            f"`dsm-server rotate --host {host}`"
        )
    return (
        f"the certificate of {address} was not issued by this consortium's authority ({error.verify_message}); "
        f"it is not this consortium's coordinator, or something between decrypts the connection"
    )

"""Whom does the coordinator's gRPC service let in: certificates of sites that belong to the consortium, not revoked.

TLS has shown by now that the consortium's authority issued the certificate; a revocation list is unknown to gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import grpc
from cryptography import x509

from strategies.tls import TlsError, check_validity, read_certificates, site_name


class Refusal(Exception):
    """A call that is not served.

    Attributes:
        code: gRPC status that the caller sees.
        reason: said to the caller; holds no path and nothing about another site's data.
    """

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Admission:
    """Decides at every call, so that a revocation holds for connections that are open already.

    Attributes:
        sites: names of the sites that belong to the consortium now.
        revoked: serial numbers of certificates that were revoked.
    """

    sites: Callable[[], Collection[str]]
    revoked: Callable[[], Collection[int]]

    def caller(self, context: grpc.ServicerContext) -> str:
        """The site that calls.

        Raises:
            Refusal: no certificate, an expired or revoked one, or a site that does not belong to the consortium.
        """
        pems = context.auth_context().get("x509_pem_cert", ())
        if not pems:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "the call came without a certificate; use mutual TLS")
        return self.site_of(read_certificates(bytes(pems[0]), "the call")[0])

    def site_of(self, certificate: x509.Certificate) -> str:
        """The site of a certificate that the consortium's authority issued.

        Raises:
            Refusal: see `caller`.
        """
        try:
            check_validity(certificate)
            site = site_name(certificate)
        except TlsError as error:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, f"{error}") from error
        if certificate.serial_number in self.revoked():
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the certificate {certificate.serial_number:x} of site {site!r} was revoked; "
                "ask the coordinator for a new site kit",
            )
        if site not in self.sites():
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                f"site {site!r} does not belong to this consortium; ask the coordinator to add it",
            )
        return site

"""Is one authority the successor of another? A statement of the old one, checked by every site that trusts it.

A certificate file that a site receives after the exchange holds three certificates: the site's own, the new
authority's, and the statement. The statement is a certificate for the new authority's key that the old one signed, for
this use and no other: a certificate of a site or of the coordinator says nothing about authorities.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509

from strategies.tls import is_issued_by, public_der, validity_fault

SUCCESSION = x509.ObjectIdentifier("2.25.212474157430951857291036471245307139217")  # of a UUID, X.667


def is_successor(successor: x509.Certificate, statement: x509.Certificate, authority: x509.Certificate) -> bool:
    """True where the authority states, in a statement valid now, that the successor's key follows its own."""
    try:
        uses = list(statement.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        signs = successor.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    return (
        uses == [SUCCESSION]
        and signs
        and is_issued_by(successor, successor)
        and is_issued_by(statement, authority)
        and public_der(statement.public_key()) == public_der(successor.public_key())
        and validity_fault("the statement", statement, "") is None
    )


def find_successor(
    certificate: x509.Certificate, beside: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    """The authority that issued a certificate, found beside it, where one of these authorities names it; else None."""
    for successor in beside:
        if is_issued_by(certificate, successor) and any(
            is_successor(successor, statement, authority) for statement in beside for authority in authorities
        ):
            return successor
    return None

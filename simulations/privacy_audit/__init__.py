"""Private training under attack: what attackers prove of it, beside what it promises. Results are read from here."""

from simulations.privacy_audit.results import AuditError, Finding, PrivacyAudit, read_audit

__all__ = ["AuditError", "Finding", "PrivacyAudit", "read_audit"]

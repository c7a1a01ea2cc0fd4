"""What goes wrong when training cannot be private: one error, raised before a patient's data is touched."""

from __future__ import annotations

from dsm_core.config import ConfigError


class PrivacyError(ConfigError):
    """Private training that cannot keep its promise; the message says what was found, what is wanted, what to do."""

"""Differential privacy at a site, the patient as the unit; the only folder that knows Opacus, slow to import."""

from client.privacy.accounting import PatientAccountant, Spending
from client.privacy.faults import PrivacyError
from client.privacy.private_training import train_private_round

__all__ = ["PatientAccountant", "PrivacyError", "Spending", "train_private_round"]

"""Differential privacy at a site, the patient as the unit; the only folder that knows Opacus."""

"""What coordinator and hospital share as machines: identities, kits, processes. Knows no torch and no federation."""

from strategies.deployment.errors import DeploymentError

__all__ = ["DeploymentError"]

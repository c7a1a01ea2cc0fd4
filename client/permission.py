"""Does the site allow what the server asks, and what may go back? The site's settings against an order and a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.site_file import SiteSettings
from dsm_core.config import PrivacyConfig
from strategies.messages import LOSS, SECONDS, MessageFault, TrainOrder

METRICS = {"loss": LOSS, "seconds": SECONDS}


class Forbidden(MessageFault):
    """The site does not allow what the server asks."""


def check_order(settings: SiteSettings, order: TrainOrder) -> None:
    """Refuse an order that the site's settings forbid; nothing has been trained then.

    Raises:
        Forbidden: the order asks for more than `site.yaml` allows.
    """
    if order.share_moments and "moments" not in settings.leaves:
        raise Forbidden("this site lets no optimiser moments leave; run with server.moments=local")


def check_privacy(settings: SiteSettings, privacy: PrivacyConfig) -> None:
    """Refuse training that is less private than the site's settings want.

    Raises:
        Forbidden: a ceiling is set, and the order asks for no privacy or for a larger epsilon.
    """
    ceiling = settings.epsilon_ceiling
    if ceiling is None:
        return
    if privacy.mode == "none":
        raise Forbidden(
            f"this site trains with differential privacy only (epsilon_ceiling {ceiling:g}); the order asks for none"
        )
    if privacy.epsilon > ceiling:
        raise Forbidden(f"this site allows epsilon up to {ceiling:g}, and the order asks for {privacy.epsilon:g}")


def allowed_metrics(settings: SiteSettings, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without those that the site keeps to itself."""
    kept = {METRICS[name] for name in METRICS if name not in settings.leaves}
    return {key: value for key, value in metrics.items() if key not in kept}

"""What travels between server and sites, and how the sites' answers are combined.

Names are looked up late, so that a command about certificates or audit logs loads neither Flower nor PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.query_fedavg import QueryFedAvg, ServerState, SiteFailure, SiteUpdate
    from strategies.refusal import UpdateRefused

__all__ = ["QueryFedAvg", "ServerState", "SiteFailure", "SiteUpdate", "UpdateRefused"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"strategies has no {name!r}")
    home = "strategies.refusal" if name == "UpdateRefused" else "strategies.query_fedavg"
    return getattr(importlib.import_module(home), name)

"""What travels between server and sites, and how the sites' answers are combined."""

from strategies.query_fedavg import QueryFedAvg, ServerState, SiteFailure, SiteUpdate
from strategies.refusal import UpdateRefused

__all__ = ["QueryFedAvg", "ServerState", "SiteFailure", "SiteUpdate", "UpdateRefused"]

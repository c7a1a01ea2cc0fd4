"""What leaves this site in answer to the server is recorded in the site's audit log first; unrecorded, nothing leaves.

The log is a fact of the site: `audit="FILE"` in the SuperNode's node config. Without it, as in a simulation, none is
kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message

from client.whereabouts import AUDIT
from strategies import messages
from strategies.audit import AuditError, AuditLog
from strategies.manifest import layout, manifest, order_hashes

log = logging.getLogger(__name__)
Handler = Callable[[Message, Context], Message]

_LISTED = "audit-layout"  # in the node's state: digest of the tensors whose names are in the log already


def records_what_leaves(handler: Handler) -> Handler:
    """Put a record of the reply on the disk before the reply is handed to Flower."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        reply = handler(message, context)
        if not (path := context.node_config.get(AUDIT)):
            return reply
        try:
            event, facts = _describe(message, reply, context)
            AuditLog(Path(str(path))).record(event, **facts)
        except AuditError as error:
            log.error("%s", error)
            cause = f" ({error.cause})" if error.cause else ""
            reason = f"the site's audit log cannot be written{cause}, so nothing leaves the site; see its own log"
            return messages.error_reply(messages.FAULT_CODE, reason, message)
        return reply

    return answer


def _describe(message: Message, reply: Message, context: Context) -> tuple[str, dict[str, Any]]:
    asked = {
        "run": f"{message.metadata.run_id}",
        "kind": message.metadata.message_type,
        "group": message.metadata.group_id,
        **order_hashes(message.content),
    }
    if reply.has_error():
        return "refused", {**asked, "code": reply.error.code, "reason": reply.error.reason}
    facts = {**asked, **manifest(reply.content)}
    for record in reply.content.array_records.values():
        listed = context.state.config_records.get(_LISTED, ConfigRecord({"digest": ""}))["digest"]
        if facts["layout"] != listed:  # names are the same every round; once is enough
            facts["names"] = layout(messages.unpack_arrays(record))
            context.state[_LISTED] = ConfigRecord({"digest": facts["layout"]})
    return "left", facts

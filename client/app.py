"""The site's porter: unpack the message, call one function, pack the answer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import wraps

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.ledger import LedgerFault
from client.memory import keep_moments, keep_text, kept_text, recall_moments
from client.permission import allowed_metrics, check_order, check_privacy
from client.trail import records_what_leaves
from client.training import site_session, train_round, training_cases
from client.whereabouts import budget, site_name, site_settings
from dsm_core.config import ConfigError
from dsm_core.data import DatalistError, label_contract
from dsm_core.text_space import TextSpaceError
from strategies import messages

log = logging.getLogger(__name__)
Handler = Callable[[Message, Context], Message]

app = ClientApp()


def _answers_faults(handler: Handler) -> Handler:
    """Turn whatever goes wrong into a named error reply; the details, which may hold paths, stay in the site's log."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except messages.StaleTextSpace as fault:
            return messages.error_reply(messages.TEXT_CODE, f"{fault}", message)
        except (messages.MessageFault, ConfigError, TextSpaceError) as fault:
            return messages.error_reply(messages.FAULT_CODE, f"{type(fault).__name__}: {fault}", message)
        except DatalistError as fault:
            log.error("%s", fault)
            reason = f"{len(fault.faults)} faults in the site's data folder; `dsm-site check` at the site lists them"
            return messages.error_reply(messages.FAULT_CODE, reason, message)
        except LedgerFault as fault:
            log.error("refused: %s", fault)
            return messages.error_reply(messages.BUDGET_CODE, messages.BUDGET_REASON, message)
        except Exception as error:
            log.exception("the site could not answer %s", message.metadata.message_type)
            # The system's own words for a full or failing disk name no file, whatever the error itself says.
            cause = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
            reason = f"{type(error).__name__}{cause} at the site; its own log has the details"
            return messages.error_reply(messages.FAULT_CODE, reason, message)

    return answer


@app.query("enrol")
@records_what_leaves
@_answers_faults
def enrol(message: Message, context: Context) -> Message:
    """Label contract of this site, over the cases that it trains on."""
    held_out = messages.unpack_enrol(message.content)
    contract = label_contract(training_cases(site_settings(context).data, held_out))
    if name := site_name(context):
        contract = replace(contract, site=name)
    return Message(messages.pack_contract(contract.to_dict()), reply_to=message)


@app.query("text")
@records_what_leaves
@_answers_faults
def text(message: Message, context: Context) -> Message:
    """Keep the server's text space; its content must have the hash that the server states."""
    held = keep_text(context, *messages.unpack_text(message.content))
    return Message(messages.pack_text_receipt(held), reply_to=message)


@app.train()
@records_what_leaves
@_answers_faults
def train(message: Message, context: Context) -> Message:
    """One round of local training."""
    request = messages.unpack_train(message.content)
    settings = site_settings(context)
    check_order(settings, request.order)
    space = kept_text(context, request.text_hash)
    config = messages.unpack_config(request.config)
    is_private = config.privacy.mode != "none"
    check_privacy(settings, config.privacy)
    session = site_session(settings.data, config, space, settings.device)
    session.begin(request.order.stage)
    recall_moments(context, session, request.order)
    result = train_round(session, request.arrays, request.order, budget(context))
    keep_moments(context, session, request.order)
    metrics = allowed_metrics(settings, result.metrics)
    return Message(messages.pack_trained(result.arrays, metrics, is_private), reply_to=message)

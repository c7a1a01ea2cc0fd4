"""Why a site gave no update, in words that say where to look."""

from types import SimpleNamespace

import pytest
from flwr.app import Error
from flwr.common.constant import ErrorCode

from server.exchange import LONGEST_REASON, reason_of, silence


def said(code, reason):
    return reason_of(SimpleNamespace(error=Error(code, reason)))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (ErrorCode.NODE_UNAVAILABLE, "its connection was lost: no sign of life for 60 s"),
        (ErrorCode.CLIENT_APP_CRASHED, "its training process ended without an answer: killed, or out of memory"),
    ],
)
def test_flower_s_own_errors_are_put_in_words_and_keep_their_number(code, words):
    assert said(code, "Error: something of Flower").startswith(words)
    assert said(code, None).endswith(f"(error {code})")


def test_what_a_site_says_stays_as_it_is_on_one_line_and_no_longer_than_a_record_bears():
    assert said(100, "disk\n full") == "disk full"
    assert len(said(100, "x" * 1000)) == LONGEST_REASON
    assert said(ErrorCode.UNKNOWN, None) == "no reason given (error 0)"


def test_silence_of_a_connected_site_is_not_called_a_lost_connection():
    assert silence(False, 600.0) == "no answer within 600 s: its connection was lost"
    assert "though it is connected: slower than server.round_timeout_s, or cut off less than 60 s ago" in silence(
        True, 600.0
    )

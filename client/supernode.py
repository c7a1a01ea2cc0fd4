"""Flower's SuperNode as a site runs it: it tries again what passes by itself, and ends when its work has ended.

Flower 1.41 takes every error of TLS for a wrong certificate and gives up, also a handshake that was cut off, as by a
balancer whose coordinator is just starting anew. And once it has given up, on that or on any other error, its process
lingers behind the threads of its own server: alive for whoever looks after it, and deaf to every order.
"""

from __future__ import annotations

import os
import ssl
import sys
import traceback
from typing import NoReturn


def was_cut_off(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, a TLS handshake that the other side did not finish."""
    while error is not None:
        # Which of the two it is depends on how far the handshake had come when the other side hung up.
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> NoReturn:
    """`flower-supernode`, patient with handshakes that are cut off; its process is gone when it returns."""
    from flwr.supernode import fleet_http_connection as fleet
    from flwr.supernode.cli import flower_supernode

    make_invoker = fleet.make_simple_http_retry_invoker

    def make_patient_invoker() -> object:
        invoker = make_invoker()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: not was_cut_off(error) and bool(gives_up and gives_up(error))
        return invoker

    fleet.make_simple_http_retry_invoker = make_patient_invoker  # type: ignore[assignment]
    code: object = 1  # a SuperNode that just returns has given up
    try:
        flower_supernode()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()

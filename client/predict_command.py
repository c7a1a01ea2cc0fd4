"""The site's command `dsm-site predict`: dsm-predict, with phrases unknown here encoded by the coordinator."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from client.connection import add_connection
from dsm_core.predict_arguments import add_arguments
from strategies.deployment.command_line import Commands


def add_commands(commands: Commands) -> None:
    """Add `predict`."""
    predict = commands.add_parser(
        "predict",
        help="segment what phrases name in a scan; the coordinator encodes the phrases that are unknown here",
        description="dsm-predict for a site without a text tower. Only phrases leave the site, each of them once; "
        "where all are known already, the coordinator is not called.",
    )
    add_arguments(predict)
    add_connection(predict)
    predict.set_defaults(run=_predict, device=None)  # the site's own, unless one is typed


def _predict(options: argparse.Namespace) -> int:
    from client.consortium_commands import named_failures
    from dsm_core.predict import answer

    options.device = options.device or _own_device(options.folder)
    if not options.text_weights and (code := named_failures("predict", _learn, options)):
        return code
    return answer(options)


def _own_device(folder: Path) -> str:
    """The device that `site.yaml` names; without such a file CUDA where there is one.

    Raises:
        SiteFileError: it has faults.
    """
    from client.site_file import SITE_FILE, read_site_file

    path = folder / SITE_FILE
    return read_site_file(path).device if path.exists() else "auto"


def _learn(options: argparse.Namespace) -> None:
    from grpc import StatusCode

    from client.errands import Errands
    from client.retries import CallRefused
    from dsm_core.checkpoint import TEXT
    from dsm_core.phrase_cache import cache_folder, with_cached_phrases
    from dsm_core.text_space import TextSpace

    folder = options.phrase_cache or cache_folder()
    space = with_cached_phrases(TextSpace.load(options.checkpoint / TEXT), folder)
    if space.phrase_encoder is None and space.unknown(options.query):
        with Errands.open(options) as errands:
            try:
                errands.learn(space, options.query, folder)
            except CallRefused as refusal:
                if refusal.code is not StatusCode.NOT_FOUND:
                    raise
                # It has no text tower either: dsm-predict composes what it can from the text space, and says so.
                print(f"dsm-site predict: {refusal}", file=sys.stderr)

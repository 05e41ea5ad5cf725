"""``spgm web``: a page in the browser, to try it."""

from __future__ import annotations

import argparse
import copy
import math
from typing import TYPE_CHECKING

from speechbrain_spgm.commands.common import SOURCE, add_device_options, load_model, say
from speechbrain_spgm.errors import UserError

if TYPE_CHECKING:
    from speechbrain_spgm.inference import SPGMSeparation


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the arguments of ``spgm web``."""
    command = commands.add_parser(
        "web",
        help="show a page in the browser: recordings in, voices to hear and to save",
        description="Show a page in the browser of this machine (needs gradio and "
        "matplotlib): upload or record, hear the mixture and its voices, see their "
        "spectrograms, save the files that spgm separate writes. Nothing leaves the "
        "machine, and nothing stays on it when the page ends.",
    )
    command.add_argument(
        "--model",
        nargs="+",
        metavar="SOURCE",
        help=f"what can be chosen: {SOURCE}; by default the shipped model and those of "
        "the authors",
    )
    add_device_options(command)
    command.add_argument(
        "--max-minutes",
        type=float,
        default=10,
        metavar="N",
        help="the longest recording that is taken, by default 10",
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 lets other machines see the page; by default this one alone",
    )
    command.add_argument(
        "--port", type=int, help="by default the first free one from 7860"
    )
    command.add_argument(
        "--share",
        action="store_true",
        help="make a public link, through Gradio's servers, which are asked for it",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows the page until it is interrupted."""
    from speechbrain_spgm.web.page import MODELS, serve

    minutes = arguments.max_minutes
    if not 0 < minutes < math.inf:
        raise UserError(f"--max-minutes is {minutes:g}, but must be above 0.")

    def load(name: str) -> SPGMSeparation:
        chosen = copy.copy(arguments)
        chosen.model = name
        return load_model(chosen)

    models = arguments.model or MODELS
    if arguments.model:
        load(models[0])  # a wrong name is said at once
    serve(load, models, minutes, arguments.host, arguments.port, arguments.share, say)
    return 0

"""``spgm convert``: a model in the other layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from speechbrain_spgm.choices import LAYOUTS
from speechbrain_spgm.commands.common import SOURCE
from speechbrain_spgm.errors import writing


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the arguments of ``spgm convert``."""
    command = commands.add_parser(
        "convert",
        help="write a model in the other layout, or half as large",
        description="Write a model in the published layout (config.json and "
        "model.safetensors) or in SpeechBrain's (hyperparams.yaml and .ckpt files), "
        "without changing a bit of its weights (but for --half), with its card. An "
        "existing DST is replaced only if an earlier conversion wrote it.",
    )
    command.add_argument("source", metavar="SRC", help=SOURCE)
    command.add_argument("target", metavar="DST", type=Path, help="the folder to write")
    command.add_argument(
        "--to",
        required=True,
        choices=LAYOUTS,
        help="the layout to write",
    )
    command.add_argument(
        "--half",
        action="store_true",
        help="round the weights to 16 bits: half the size; SRC may be in the layout "
        "already",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Converts; returns the exit code."""
    from speechbrain_spgm.models.convert import YAML_FILE, convert
    from speechbrain_spgm.models.remote import open_source
    from speechbrain_spgm.models.sources import locate

    source = str(locate(arguments.source))
    with writing(arguments.target), open_source(source, YAML_FILE) as find:
        convert(find, source, arguments.target, arguments.to, half=arguments.half)
    print(f"Wrote {arguments.target} in the {arguments.to} layout.")
    return 0

"""``spgm info``: what a model is."""

from __future__ import annotations

import argparse

from speechbrain_spgm.commands.common import add_model_options, load_model
from speechbrain_spgm.errors import shown


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the arguments of ``spgm info``."""
    command = commands.add_parser(
        "info",
        help="show what a model is",
        description="Show a model's size, sample rate, licence, training data and "
        "measured quality.",
    )
    add_model_options(command, "model")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows the facts; returns the exit code."""
    model = load_model(arguments)

    from speechbrain_spgm.inference.facts import describe

    facts = describe(model)
    facts = {shown(label, 60): shown(value) for label, value in facts.items()}
    width = max(map(len, facts))
    for label, value in facts.items():
        print(f"{label:<{width}}  {value}")
    return 0

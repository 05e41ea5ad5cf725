"""The command ``spgm``: its parser and its exit codes.

Results go to stdout, everything else to stderr. Exit codes: 0 all is well, 2 wrong
input (arguments, model, or at least one of the files), 130 interrupted, 143 terminated.
Both signals end ``spgm stream`` with 0, its files whole.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from speechbrain_spgm import __version__
from speechbrain_spgm.commands import (
    convert,
    evaluate,
    export,
    info,
    publish,
    separate,
    stream,
    web,
)
from speechbrain_spgm.commands.common import say
from speechbrain_spgm.console import (
    WRONG_INPUT,
    Stream,
    ensure_utf8,
    errors_only,
    exit_code,
    surroundings,
)
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import scratch

# Modules of speechbrain_spgm.commands, each with add_parser(commands).
COMMANDS = (separate, stream, web, info, convert, evaluate, export, publish)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, by default with the process's arguments; the exit code."""
    if argv is None:
        ensure_utf8()
    try:
        with surroundings():
            return run_command(argv)
    except KeyboardInterrupt as interrupt:
        Stream(sys.stderr).write(
            "spgm: interrupted; every file written so far is whole.\n"
        )
        return exit_code(interrupt)
    except OSError as error:  # stdout took not all of the output
        reason: object = f"the output cannot be written ({error.strerror or error})."
        try:
            scratch()
        except UserError as lack:  # which libraries may say at any time
            reason = lack
        Stream(sys.stderr).write(f"spgm: {reason}\n")
        return WRONG_INPUT


def run_command(argv: Sequence[str] | None) -> int:
    """Runs the command; what its user can put right becomes a sentence."""
    arguments = make_parser().parse_args(argv)
    try:
        with quiet_libraries():
            return arguments.run(arguments)
    except UserError as error:
        say(f"spgm: {error}")
        return WRONG_INPUT


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command; imports nothing heavy, so that help is instant."""
    parser = argparse.ArgumentParser(
        prog="spgm", description="Separate the voices of people who talk at once."
    )
    parser.add_argument(
        "--version", action="version", version=f"speechbrain_spgm {__version__}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the warnings of libraries from the user; they are back afterwards."""
    # Those of our own part for long recordings come as sentences of this command.
    names = ("speechbrain", "speechbrain_spgm.inference")
    with warnings.catch_warnings(), errors_only(*names):
        warnings.filterwarnings("ignore")
        yield

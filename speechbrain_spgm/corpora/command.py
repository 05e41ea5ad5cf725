"""What the command ``prepare_data.py`` of every recipe shares."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from speechbrain_spgm.choices import LENGTHS
from speechbrain_spgm.console import (
    WRONG_INPUT,
    Stream,
    ensure_utf8,
    exit_code,
    positive,
    surroundings,
)
from speechbrain_spgm.corpora.generation import Plan, Report, generate
from speechbrain_spgm.data.manifests import ManifestRow, write_manifest
from speechbrain_spgm.data.recordings import tell_lower_rates
from speechbrain_spgm.errors import UserError, refusal
from speechbrain_spgm.lobes.workers import count_cores

RATES = (8000, 16000)  # in Hz


def manifest_path(folder: str | Path, split: str, mixture: str = "mix") -> Path:
    """The name of a split's manifest; corpora with one kind of mixture omit it.

    Example
    -------
    >>> manifest_path("min", "tr").as_posix()
    'min/tr.csv'
    >>> manifest_path("min", "dev", "mix_both").as_posix()
    'min/dev_mix_both.csv'
    """
    return Path(
        folder, f"{split}.csv" if mixture == "mix" else f"{split}_{mixture}.csv"
    )


def manifests_of_folder(
    scan: Callable[[str], list[ManifestRow]],
    splits: Sequence[str],
    output_folder: str | Path,
    mixture: str = "mix",
) -> dict[str, Path]:
    """Writes a manifest of each split, or nothing if anything is wrong in one of them.

    ``scan`` gives the checked mixtures of a split; returns the manifest of each.
    """
    rows = {split: scan(split) for split in splits}
    manifests = {
        split: manifest_path(output_folder, split, mixture) for split in splits
    }
    for split, path in manifests.items():
        write_manifest(path, rows[split])
    return manifests


def generate_with_manifests(
    plans: Sequence[Plan], jobs: int | None = None
) -> tuple[Report, list[Path]]:
    """Makes mixtures, and a manifest of each split beside the split's folder.

    Under ``torchrun`` every process makes its share, and process 0 writes the
    manifests, which it alone returns, when all files are there.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), launched("WORLD_SIZE")
    for rate in sorted({plan.sample_rate for plan in plans}):
        tell_lower_rates(
            (file for plan in plans if plan.sample_rate == rate for file in plan.files),
            rate,
        )
    report = generate(plans, jobs or default_jobs(), rank, world_size)
    if rank:
        return report, []
    rows: dict[Path, list] = {}
    for plan in plans:
        for mixture in plan.mixtures:
            path = manifest_path(plan.folder.parent, plan.folder.name, mixture)
            rows.setdefault(path, []).append(plan.row(mixture))
    for path, members in rows.items():
        write_manifest(path, members)
    return report, list(rows)


def generate_lists(
    arguments: argparse.Namespace,
    pattern: str,
    plan: Callable[[Path, int, str], Sequence[Plan]],
) -> Iterator[str]:
    """The subcommand ``generate``; ``plan`` takes a list, a rate in Hz and a mode."""
    lists = find_lists(arguments.lists, pattern)
    kinds = list(product(lists, arguments.sample_rates, arguments.modes))
    plans = [one for kind in kinds for one in plan(*kind)]
    report, manifests = generate_with_manifests(plans, arguments.jobs)
    yield str(report)
    yield from map(str, manifests)


def launched(name: str) -> int:
    """How many processes the environment says there are, at least 1."""
    return max(1, int(os.environ.get(name, 1)))


def default_jobs() -> int:
    """This machine's cores, shared with the other processes of the launch on it."""
    return max(1, count_cores() // launched("LOCAL_WORLD_SIZE"))


def find_lists(given: Iterable[str | Path], pattern: str) -> list[Path]:
    """The lists that the user named, those in a folder by their usual names.

    Lists whose names end in ``_info`` describe recordings, not mixtures, and are passed
    over in folders.
    """
    lists = []
    for path in map(Path, given):
        if not path.is_dir():
            lists.append(path)
            continue
        found = [p for p in sorted(path.glob(pattern)) if not p.stem.endswith("_info")]
        if not found:
            raise UserError(f"The folder {path} holds no list {pattern}.")
        lists += found
    return lists


def add_generate(
    commands: argparse._SubParsersAction, description: str, lists: str
) -> argparse.ArgumentParser:
    """The subcommand ``generate`` with the options that all corpora have."""
    command = commands.add_parser(
        "generate",
        help="make the mixtures and their manifests",
        description=description
        + " Files that are there already are kept; a run that was killed goes on when "
        "it is started again. Under torchrun, processes on one or several machines "
        "share the work.",
    )
    command.add_argument(
        "--lists", nargs="+", required=True, metavar="LIST_OR_FOLDER", help=lists
    )
    command.add_argument(
        "--output_folder", required=True, metavar="DIR", help="where to write"
    )
    command.add_argument(
        "--sample_rates",
        nargs="+",
        type=int,
        choices=RATES,
        default=[8000],
        metavar="HZ",
        help="8000 and/or 16000 (default: 8000)",
    )
    command.add_argument(
        "--modes",
        nargs="+",
        choices=LENGTHS,
        default=["min"],
        help="min cuts sources to the shortest, max pads them to the longest "
        "(default: min)",
    )
    command.add_argument(
        "--jobs",
        type=positive(int),
        metavar="N",
        help="worker processes (default: cores)",
    )
    return command


def add_manifests(
    commands: argparse._SubParsersAction, data_folder: str, splits: Sequence[str]
) -> argparse.ArgumentParser:
    """The subcommand ``manifests`` with the options that all corpora have."""
    command = commands.add_parser(
        "manifests",
        help="check an existing folder of mixtures and write its manifests",
        description="Look into every file of an existing folder of mixtures and write "
        "one manifest for each split.",
    )
    command.add_argument(
        "--data_folder", required=True, metavar="DIR", help=data_folder
    )
    command.add_argument(
        "--output_folder", required=True, metavar="DIR", help="where to write"
    )
    command.add_argument(
        "--num_spks", type=positive(int), default=2, metavar="N", help="(default: 2)"
    )
    command.add_argument(
        "--sample_rate",
        type=int,
        choices=RATES,
        default=8000,
        metavar="HZ",
        help="8000 or 16000 (default: 8000)",
    )
    command.add_argument(
        "--mode", choices=LENGTHS, default="min", help="(default: min)"
    )
    command.add_argument(
        "--splits",
        nargs="+",
        default=list(splits),
        metavar="SPLIT",
        help=f"(default: {' '.join(splits)})",
    )
    return command


def run_command(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> int:
    """Runs the subcommand that the arguments name; returns 0, 2 or 130.

    The parser sets ``run``, from the parsed arguments to the lines to print.
    """
    if argv is None:
        ensure_utf8()
    try:
        with surroundings():
            for line in (arguments := parser.parse_args(argv)).run(arguments):
                print(line)
    except UserError as error:
        Stream(sys.stderr).write(f"Error: {error}\n")
        return WRONG_INPUT
    except KeyboardInterrupt as interrupt:
        Stream(sys.stderr).write(
            "Interrupted; every file written so far is whole, start again to go on.\n"
        )
        return exit_code(interrupt)
    except Exception as error:
        if (reason := refusal(error)) is None:
            raise
        name = getattr(error, "filename", None) or "The output"
        Stream(sys.stderr).write(f"Error: {name} cannot be written ({reason}).\n")
        return WRONG_INPUT
    return 0

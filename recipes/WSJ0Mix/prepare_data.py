#!/usr/bin/env python3
"""WSJ0-mix: makes the mixtures from WSJ0, or writes manifests of mixtures on disk.

    python prepare_data.py generate --wsj0_folder /data/wsj0_wav \
        --lists /data/create-speaker-mixtures --output_folder /data/wsj0-mix
    python prepare_data.py manifests --data_folder /data/wsj0-mix \
        --output_folder manifests

Training does the second by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from speechbrain_spgm.corpora.command import (
    add_generate,
    add_manifests,
    generate_lists,
    manifests_of_folder,
    run_command,
)
from speechbrain_spgm.corpora.wsj0mix import (
    SPLITS,
    WSJ0MixPlan,
    plan_wsj0mix,
    scan_wsj0mix,
)
from speechbrain_spgm.data.manifests import ManifestRow


def prepare_wsj0mix(
    data_folder: str | Path,
    output_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    splits: Sequence[str] = SPLITS,
) -> dict[str, Path]:
    """Writes the manifests of an existing wsj0-mix folder.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds ``2speakers`` or ``3speakers``, or one further down.
    output_folder : str or Path
        Where ``<split>.csv`` are written.
    num_spks, sample_rate, mode
        What kind of mixtures: speakers, Hz, and min or max.
    splits : sequence of str
        Of tr, cv and tt.

    Returns
    -------
    dict
        The manifest of each split.

    Raises
    ------
    UserError
        If something is missing or wrong in the folder; then nothing is written.
    """

    def scan(split: str) -> list[ManifestRow]:
        return scan_wsj0mix(data_folder, split, num_spks, sample_rate, mode)

    return manifests_of_folder(scan, splits, output_folder)


def generate(arguments: argparse.Namespace) -> Iterator[str]:
    """The subcommand ``generate``."""

    def plan(path: Path, sample_rate: int, mode: str) -> list[WSJ0MixPlan]:
        return plan_wsj0mix(
            arguments.wsj0_folder,
            path,
            arguments.output_folder,
            path.stem.rpartition("_")[2],
            sample_rate,
            mode,
        )

    return generate_lists(arguments, "mix_*_spk_*.txt", plan)


def manifests(arguments: argparse.Namespace) -> Iterator[str]:
    """The subcommand ``manifests``."""
    yield from map(
        str,
        prepare_wsj0mix(
            arguments.data_folder,
            arguments.output_folder,
            arguments.num_spks,
            arguments.sample_rate,
            arguments.mode,
            arguments.splits,
        ).values(),
    )


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description="Make WSJ0-mix from WSJ0, or write manifests of it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = add_generate(
        commands,
        "Make WSJ0-2mix, WSJ0-3mix, ... from WSJ0 as WAV files, as the original MATLAB "
        "script does.",
        "the official lists, mix_2_spk_tr.txt and so on, or their folder",
    )
    command.add_argument(
        "--wsj0_folder",
        required=True,
        metavar="DIR",
        help="the folder that holds wsj0/si_tr_s and so on, as WAV files",
    )
    command.set_defaults(run=generate)
    command = add_manifests(
        commands, "the folder that holds 2speakers or 3speakers", SPLITS
    )
    command.set_defaults(run=manifests)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(make_parser()))

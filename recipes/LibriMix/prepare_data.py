#!/usr/bin/env python3
"""LibriMix: makes the mixtures from LibriSpeech, or writes manifests of those on disk.

    python prepare_data.py generate --librispeech_folder /data/LibriSpeech \
        --lists /data/LibriMix/metadata/Libri2Mix --output_folder /data/LibriMix
    python prepare_data.py manifests --data_folder /data/LibriMix \
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
from speechbrain_spgm.corpora.librimix import LibriMixPlan, plan_librimix, scan_librimix
from speechbrain_spgm.data.lists import MIXTURES
from speechbrain_spgm.data.manifests import ManifestRow

SPLITS = ("train-360", "dev", "test")


def prepare_librimix(
    data_folder: str | Path,
    output_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    mixture: str = "mix_clean",
    splits: Sequence[str] = SPLITS,
) -> dict[str, Path]:
    """Writes the manifests of an existing LibriMix folder.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds ``Libri2Mix`` or ``Libri3Mix``, or one further down.
    output_folder : str or Path
        Where ``<split>_<mixture>.csv`` are written.
    num_spks, sample_rate, mode
        What kind of mixtures: speakers, Hz, and min or max.
    mixture : str
        mix_clean, mix_both or mix_single; the last has one source, whatever num_spks.
    splits : sequence of str
        Of train-360, train-100, dev and test.

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
        return scan_librimix(data_folder, split, num_spks, sample_rate, mode, mixture)

    return manifests_of_folder(scan, splits, output_folder, mixture)


def generate(arguments: argparse.Namespace) -> Iterator[str]:
    """The subcommand ``generate``."""

    def plan(path: Path, sample_rate: int, mode: str) -> list[LibriMixPlan]:
        return plan_librimix(
            arguments.librispeech_folder,
            path,
            arguments.output_folder,
            sample_rate,
            mode,
            arguments.types,
            arguments.noise_folder,
        )

    return generate_lists(arguments, "libri*mix_*.csv", plan)


def manifests(arguments: argparse.Namespace) -> Iterator[str]:
    """The subcommand ``manifests``."""
    yield from map(
        str,
        prepare_librimix(
            arguments.data_folder,
            arguments.output_folder,
            arguments.num_spks,
            arguments.sample_rate,
            arguments.mode,
            arguments.type,
            arguments.splits,
        ).values(),
    )


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        description="Make LibriMix from LibriSpeech, or write manifests of it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = add_generate(
        commands,
        "Make Libri2Mix, Libri3Mix, ... from LibriSpeech and LibriMix's metadata.",
        "LibriMix's lists, libri2mix_dev-clean.csv and so on, or their folder",
    )
    command.add_argument(
        "--librispeech_folder",
        required=True,
        metavar="DIR",
        help="the folder that holds train-clean-100 and so on",
    )
    command.add_argument(
        "--types",
        nargs="+",
        choices=MIXTURES,
        default=["mix_clean"],
        help="which mixtures (default: mix_clean)",
    )
    command.add_argument(
        "--noise_folder",
        metavar="DIR",
        help="WHAM!'s wham_noise, for mix_both and mix_single",
    )
    command.set_defaults(run=generate)
    command = add_manifests(
        commands, "the folder that holds Libri2Mix or Libri3Mix", SPLITS
    )
    command.add_argument(
        "--type", choices=MIXTURES, default="mix_clean", help="(default: mix_clean)"
    )
    command.set_defaults(run=manifests)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(make_parser()))

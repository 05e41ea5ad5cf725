"""The command line of a study on the first mixtures of a test list."""

from __future__ import annotations

import argparse
from pathlib import Path

from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.files import replacing

ROOT = Path(__file__).resolve().parents[1]


def parse(prog: str, argv: list[str] | None) -> argparse.Namespace:
    """The list, how much of it, the model and where the results go."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--list", type=Path, required=True, help="LibriMix's CSV file")
    parser.add_argument("--data-folder", type=Path, required=True)
    parser.add_argument("--mixtures", type=int, default=100, help="the first ones")
    parser.add_argument("--model", help="by default the shipped one")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", metavar="DIR")
    return parser.parse_args(argv)


def open_list(arguments: argparse.Namespace, sample_rate: int) -> MixtureList:
    """The mixtures of two that the command line names."""
    return MixtureList(
        arguments.list,
        arguments.data_folder,
        num_spks=2,
        sample_rate=sample_rate,
        limit=arguments.mixtures,
    )


def publish(arguments: argparse.Namespace, name: str, text: str) -> None:
    """Writes a page of the results, whole or not at all."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output / name) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""The command line of a study on the first mixtures of a test list."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.files import replacing
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.training.experiment import user_errors

ROOT = Path(__file__).resolve().parents[1]


def parse(name: str, argv: list[str] | None) -> argparse.Namespace:
    """The list, how much of it, the model and where the results go."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
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
    """Writes the page of a study, whole or not at all, and prints it."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output / f"{name}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


def made_by(name: str, count: int) -> str:
    """What a page says of its origin: the command, by the usual names of its data."""
    return (
        f"Made by `python -m benchmarks.{name} --list libri2mix_test-clean.csv "
        f"--data-folder LibriSpeech --mixtures {count}`"
    )


def run_study(
    name: str,
    argv: list[str] | None,
    study: Callable[[SPGMSeparation, MixtureList], Any],
    report: Callable[[Any, str], str],
) -> None:
    """Publishes what ``report`` says of what ``study`` finds."""
    arguments = parse(name, argv)
    with user_errors():
        model = SPGMSeparation.from_pretrained(arguments.model)
        found = study(model, open_list(arguments, model.sample_rate))
    publish(arguments, name, report(found, arguments.model or "the shipped model"))

"""How training begins: the README's training command on its first 200 steps.

    python -m benchmarks.first_steps --voices FOLDER

runs it with several seeds, writes ``docs/first_steps.csv`` and draws
``docs/first_steps.md`` and ``docs/first_steps.png`` from it: the curve that a new
installation should follow. FOLDER is that of ``benchmarks.evidence``.
"""

from __future__ import annotations

import argparse
import csv
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.evidence import ROOT, check_voices, librispeech, recipe_command, train
from speechbrain_spgm.files import replacing
from speechbrain_spgm.metrics.pictures import new_figure, save
from speechbrain_spgm.training.experiment import user_errors

PART = 50  # steps, of one mixture each, between validations
PARTS = 4
FIRST = {  # an "epoch" is a part; the learning rate stays what it is in the first epoch
    "mixtures_per_epoch": PART,
    "number_of_epochs": PARTS,
    "final_lr": 0.001,
    "valid_mixtures": 20,
    "num_examples": 0,
    "metrics": "[si_sdr]",
}
COLUMNS = ["seed", "steps", "train_si_sdr", "valid_si_sdri"]
EPOCH = re.compile(r"epoch: (\d+),.* train si_sdr: (\S+),.* valid si_sdri: (\S+)")


def points(log: str, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of one run.

    Example
    -------
    >>> log = "epoch: 2, lr: 1 - train si_sdr: -1.0, train x: 0 - valid si_sdri: 0.5"
    >>> list(points(log, 7))
    [{'seed': 7, 'steps': 100, 'train_si_sdr': -1.0, 'valid_si_sdri': 0.5}]
    """
    for part, trained, valid in EPOCH.findall(log):
        values = (seed, int(part) * PART, float(trained), float(valid))
        yield dict(zip(COLUMNS, values, strict=True))


def write(folder: Path) -> None:
    """Draws first_steps.md and first_steps.png from first_steps.csv in that folder."""
    with (folder / "first_steps.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    flags = " ".join(f"--{name} {shlex.quote(str(v))}" for name, v in FIRST.items())
    lines = [
        "# The first 200 steps\n",
        "Made by `python -m benchmarks.first_steps`: the README's command for "
        "spgm-small.yaml, with `" + flags + "`. In dB; training is the mean over the "
        f"{PART} mixtures up to that step, validation over the first "
        f"{FIRST['valid_mixtures']} of dev-clean. Mean and standard deviation over "
        f"{len(seeds)} seeds ({', '.join(seeds)}); every run is in "
        "[first_steps.csv](first_steps.csv).\n",
        "| steps | training SI-SDR | validation SI-SDRi |\n|---:|---:|---:|",
    ]
    for steps in dict.fromkeys(row["steps"] for row in rows):
        runs = [row for row in rows if row["steps"] == steps]
        cells = [spread([float(run[column]) for run in runs]) for column in COLUMNS[2:]]
        lines.append(f"| {steps} | {' | '.join(cells)} |")
    lines.append("\n![Curves of all seeds](first_steps.png)\n")
    with replacing(folder / "first_steps.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    draw(folder / "first_steps.png", rows)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation.

    Example
    -------
    >>> spread([1.0, 2.0, 3.0])
    '2.00 ± 1.00'
    """
    deviation = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{deviation}"


def draw(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A line for every seed, training and validation side by side."""
    figure = new_figure(7, 3)
    titles = ("training: SI-SDR in dB", "validation: SI-SDRi in dB")
    panels = figure.subplots(1, 2)
    for axes, column, title in zip(panels, COLUMNS[2:], titles, strict=True):
        for seed in dict.fromkeys(row["seed"] for row in rows):
            runs = [row for row in rows if row["seed"] == seed]
            steps = [int(run["steps"]) for run in runs]
            axes.plot(steps, [float(run[column]) for run in runs], "o-", label=seed)
        axes.set_title(title)
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
    panels[0].legend(title="seed")
    save(figure, path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Runs all seeds (one that is finished is not run again) and draws the curve.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_steps")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1234, 1, 2])
    parser.add_argument("--voices", type=Path, default=Path("voices"), metavar="FOLDER")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "results" / "first_steps", metavar="DIR"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs", metavar="DIR")
    arguments = parser.parse_args(argv)
    with user_errors():
        check_voices(arguments.voices)
        arguments.output.mkdir(parents=True, exist_ok=True)
        rows = []
        for seed in arguments.seeds:
            run = arguments.runs.resolve() / str(seed)
            data = librispeech(arguments.voices.resolve())
            flags = {**data, "output_folder": run, "seed": seed, **FIRST}
            train(recipe_command("spgm-small", flags))
            rows += points((run / "train_log.txt").read_text(), seed)
        with replacing(arguments.output / "first_steps.csv") as temporary:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        write(arguments.output)


if __name__ == "__main__":
    main()

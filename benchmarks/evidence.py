"""SPGM against SepFormer and its own ablations, under equal conditions.

    python -m benchmarks.evidence --cell spgm --seed 0 --voices FOLDER

trains and tests one cell of the comparison, appends a row to ``docs/evidence.csv`` and
draws ``docs/evidence.md`` and ``docs/evidence.png`` anew. Every cell has the Brain, the
recipe, the data, the number of steps, the audio and (to 2%) the parameters of the
others. FOLDER holds ``LibriSpeech/{train,dev,test}-clean``, ``LibriMix-metadata`` with
LibriMix's lists, and if there are more training voices, their ``metadata.csv``. To
separate strangers takes days to learn on a CPU; with ``--budget known`` it is voices
that were trained on, in other recordings, and an hour of audio is enough.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from hyperpyyaml import load_hyperpyyaml

from benchmarks.long import interval
from benchmarks.strangers import mix_strangers
from speechbrain_spgm.data.dynamic import by_speaker
from speechbrain_spgm.data.recordings import find_voices, read_voices
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import replacing
from speechbrain_spgm.metrics.pictures import new_figure, save
from speechbrain_spgm.training.experiment import user_errors

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "LibriMix" / "separation"

NETWORK = {  # 1.3 M parameters; its chunks last a second
    "N": 128,
    "kernel_size": 64,
    "stride": 32,
    "K": 256,
    "num_blocks": 4,
    "num_layers": 2,
    "d_ffn": 256,
    "nhead": 2,
}
WIDTH_STEP = 8  # of d_ffn


class Cell(NamedTuple):
    """A row of the comparison."""

    title: str
    yaml: str  # of hparams/ and of the recipe
    knobs: dict[str, Any]  # beside NETWORK
    paper: str = ""  # SI-SDRi on Libri2Mix in dB


CELLS = {
    "spgm": Cell("SPGM, attention", "spgm", {"pool": "att"}, "20.4"),
    "sepformer": Cell(
        "SepFormer, 2 blocks of intra and inter", "sepformer", {"num_blocks": 2}, "20.1"
    ),
    "none": Cell("no modulation (control)", "spgm", {"pool": "none"}),
    "avg": Cell("SPGM, average", "spgm", {"pool": "avg"}),
    "max": Cell("SPGM, maximum", "spgm", {"pool": "max"}),
    "lem": Cell("SPGM, last element", "spgm", {"pool": "lem"}),
    "att_h": Cell(
        "SPGM, attention with hidden layer", "spgm", {"pool": "att", "att_h": 16}
    ),
}
LR = 0.001  # falls to a tenth
SCHEDULER = "!new:speechbrain.nnet.schedulers.LinearScheduler"
TRAINING = {
    "dynamic_mixing": True,
    "dynamic_seconds": 4.0,
    "filterbank": "fourier",
    "lr": LR,
    "warmup_steps": 100,
    "ema_decay": 0.99,
    "valid_mixtures": 20,
    "num_examples": 0,
    "metrics": "[si_sdr, sdr]",
}
BUDGETS = {  # what each run may use
    "cpu": {"batch_size": 2, "mixtures_per_epoch": 250, "number_of_epochs": 4},
    "known": {"batch_size": 2, "mixtures_per_epoch": 250, "number_of_epochs": 4},
    "cpu-2h": {"batch_size": 2, "mixtures_per_epoch": 500, "number_of_epochs": 4},
    "gpu": {"batch_size": 16, "mixtures_per_epoch": 16000, "number_of_epochs": 6},
}
KNOWN = 2  # voices of the budget of that name: those with most training recordings
KNOWN_TRAIN, KNOWN_DEV = 0.75, 0.1  # shares of each one's speech; the rest is for test
KNOWN_MIXTURES = {"dev": 20, "test": 150}
KNOWN_SECONDS = 6.0
COLUMNS = [
    "cell",
    "seed",
    "budget",
    "commit",
    "device",
    "parameters",
    "steps",
    "audio_hours",
    "si_sdri",
    "si_sdri_ci95",
    "sdri",
    "n",
]


def network_of(cell: str) -> dict[str, Any]:
    """The network's knobs; ``d_ffn`` makes up for parameters that the cell lacks."""
    wanted = count_parameters(CELLS["spgm"], NETWORK | CELLS["spgm"].knobs)
    knobs = NETWORK | CELLS[cell].knobs
    size, larger = (
        count_parameters(CELLS[cell], knobs | {"d_ffn": knobs["d_ffn"] + more})
        for more in (0, WIDTH_STEP)
    )
    steps = round((wanted - size) / (larger - size))  # the size is linear in d_ffn
    return knobs | {"d_ffn": knobs["d_ffn"] + steps * WIDTH_STEP}


def count_parameters(cell: Cell, knobs: Mapping[str, Any]) -> int:
    """Parameters of encoder, masknet and decoder."""
    with (ROOT / "hparams" / f"{cell.yaml}.yaml").open() as file:
        modules = load_hyperpyyaml(file, dict(knobs))["modules"]
    return sum(p.numel() for m in modules.values() for p in m.parameters())


def command_of(
    cell: str,
    seed: int,
    budget: Mapping[str, Any],
    data: Mapping[str, Any],
    output: Path,
) -> list[str]:
    """The recipe's command for a cell."""
    flags = {
        **data,
        "output_folder": output,
        "seed": seed,
        **TRAINING,
        "lr_annealing": f"{SCHEDULER} [{LR}, {LR / 10}, {budget['number_of_epochs']}]",
        **budget,
        **network_of(cell),
    }
    return recipe_command(CELLS[cell].yaml, flags)


def librispeech(voices: Path) -> dict[str, Any]:
    """The recipe's data: LibriSpeech and LibriMix's lists among the voices."""
    lists = voices / "LibriMix-metadata"
    return {
        "data_folder": voices / "LibriSpeech",
        "valid_list": lists / "libri2mix_dev-clean.csv",
        "test_list": lists / "libri2mix_test-clean.csv",
    }


def strange_voices(voices: Path) -> dict[str, Any]:
    """The recipe's data: nobody is in two of training, validation and test."""
    data = {"train_splits": "train-*", **librispeech(voices)}
    if (voices / "metadata.csv").is_file():
        data["extra_voices"] = voices / "metadata.csv"
    return data


def known_voices(voices: Path, folder: Path) -> dict[str, Any]:
    """The recipe's data: the same few voices in training, validation and test.

    No recording is in two of them. Writes the list of recordings and the mixtures of
    validation and test into the folder.
    """
    files = by_speaker(find_voices(voices / "LibriSpeech", "train-*"))
    lengths = {name: sum(f.seconds for f in those) for name, those in files.items()}
    rows = [["path", "speaker", "split"]]
    for name in sorted(files, key=lengths.get)[-KNOWN:]:
        ends = accumulate(recording.seconds for recording in files[name])
        for recording, end in zip(files[name], ends, strict=True):
            part = part_of(end / lengths[name])
            rows.append([str(recording.path.resolve()), name, part])
    folder.mkdir(parents=True, exist_ok=True)
    with (
        replacing(folder / "voices.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)
    for part, mixtures in KNOWN_MIXTURES.items():
        those = by_speaker(read_voices(folder / "voices.csv", split=part))
        mix_strangers(those, folder / part, mixtures, KNOWN_SECONDS, rate=8000, seed=0)
    return {
        "extra_voices": folder / "voices.csv",
        "valid_manifest": folder / "dev" / "mixtures.csv",
        "test_manifest": folder / "test" / "mixtures.csv",
    }


def part_of(share: float) -> str:
    """Where a recording belongs that ends after such a share of its voice's speech.

    Example
    -------
    >>> [part_of(share) for share in (0.2, 0.8, 1.0)]
    ['train', 'dev', 'test']
    """
    # 0          0.75  0.85   1
    # |---train----|-dev-|-test-|
    if share <= KNOWN_TRAIN:
        return "train"
    return "dev" if share <= KNOWN_TRAIN + KNOWN_DEV else "test"


def recipe_command(yaml: str, flags: Mapping[str, Any]) -> list[str]:
    """LibriMix's ``train.py`` with these flags."""
    words = [sys.executable, "train.py", f"hparams/{yaml}.yaml"]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    return [*words, "--noprogressbar"]


def train(words: Sequence[str]) -> None:
    """Runs the recipe, here without output; its folder has the log."""
    done = subprocess.run(words, cwd=RECIPE, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"The run failed: {shlex.join(words)} said: {done.stderr.strip()[-500:]}"
        )


def row_of(
    cell: str, seed: int, name: str, budget: Mapping[str, Any], device: str, run: Path
) -> dict[str, Any]:
    """What a finished run adds to the CSV file."""
    summary = json.loads((run / "test_summary.json").read_text())
    mixtures = budget["mixtures_per_epoch"] * budget["number_of_epochs"]
    return {
        "cell": cell,
        "seed": seed,
        "budget": name,
        "commit": commit(),
        "device": device,
        "parameters": count_parameters(CELLS[cell], network_of(cell)),
        "steps": mixtures // budget["batch_size"],
        "audio_hours": round(mixtures * TRAINING["dynamic_seconds"] / 3600, 2),
        "si_sdri": summary["si_sdri"]["mean"],
        "si_sdri_ci95": summary["si_sdri"]["ci95"],
        "sdri": summary["sdri"]["mean"],
        "n": summary["n"],
    }


def commit() -> str:
    """The commit of the working tree, marked if files that count differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    if head.returncode:
        return "unknown"
    product = [str(ROOT / part) for part in ("speechbrain_spgm", "recipes", "hparams")]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *product])
    return head.stdout.strip() + ("+" if changed.returncode else "")


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to the CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def mean(values: Sequence[float]) -> str:
    """The mean, with its 95% confidence interval where there are several values.

    Example
    -------
    >>> mean([1.5]), mean([1.5, 2.5])
    ('1.50', '2.00 ± 6.35')
    """
    center, width = interval(list(values))
    return f"{center:.2f}" + (f" ± {width:.2f}" if len(values) > 1 else "")


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A budget's rows of the CSV file as a Markdown table.

    Example
    -------
    >>> run = dict(seed="0", parameters="9", si_sdri="1.5", si_sdri_ci95="0.2", n="9")
    >>> run |= dict(sdri="2", cell="spgm")
    >>> print(table([run, run | dict(seed="1", si_sdri="2.5")]).splitlines()[-1])
    | SPGM, attention | 9 | 2 | 2.00 ± 6.35 | 2.00 |  | 20.4 |
    """
    lines = [
        "| network | parameters | seeds | SI-SDRi, dB | SDRi, dB | less than SPGM, "
        "same seeds, dB | paper, Libri2Mix, SI-SDRi, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    scores = {
        cell: {r["seed"]: float(r["si_sdri"]) for r in rows if r["cell"] == cell}
        for cell in CELLS
    }
    for name, cell in CELLS.items():
        runs = [r for r in rows if r["cell"] == name]
        if not runs:
            continue
        values = list(scores[name].values())
        both = sorted(scores["spgm"].keys() & scores[name].keys())
        gaps = [scores["spgm"][seed] - scores[name][seed] for seed in both]
        cells = [
            cell.title,
            f"{int(runs[0]['parameters']):,}",
            str(len(values)),
            mean(values),
            f"{fmean(float(r['sdri']) for r in runs):.2f}",
            mean(gaps) if gaps and name != "spgm" else "",
            cell.paper,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def split(
    rows: Sequence[Mapping[str, str]],
) -> tuple[list[Mapping[str, str]], list[str]]:
    """The first run of every budget, cell and seed, and words on repetitions.

    Example
    -------
    >>> run = dict(budget="cpu", cell="spgm", seed="0", si_sdri="1.5")
    >>> firsts, again = split([run, run | dict(si_sdri="1.47")])
    >>> firsts == [run], again
    (True, ['spgm, seed 0, budget cpu: 1.47 dB (first 1.50 dB)'])
    """
    first: dict[tuple[str, ...], Mapping[str, str]] = {}
    again = []
    for run in rows:
        key = run["budget"], run["cell"], run["seed"]
        if first.setdefault(key, run) is not run:
            again.append(
                f"{run['cell']}, seed {run['seed']}, budget {run['budget']}: "
                f"{float(run['si_sdri']):.2f} dB "
                f"(first {float(first[key]['si_sdri']):.2f} dB)"
            )
    return list(first.values()), again


def write(folder: Path) -> None:
    """Draws evidence.md and evidence.png from evidence.csv in that folder."""
    path = folder / "evidence.csv"
    if not path.is_file():
        raise UserError(f"There is no {path}: run a cell first, with --cell.")
    with path.open(newline="", encoding="utf-8") as file:
        rows, again = split(list(csv.DictReader(file)))
    parts = [
        "# Evidence: SPGM and SepFormer under equal conditions\n\nMade by "
        "`python -m benchmarks.evidence`; every run is a row of "
        "[evidence.csv](evidence.csv). The networks are small, with chunks of one "
        "second; `d_ffn` makes up for parameters that a cell lacks. All see the same "
        "seeds, steps and audio (mixed dynamically). They are tested on two-speaker "
        "mixtures of test-clean, of speakers not trained on. To separate those well "
        f"takes days on a CPU; so the budget `known` is of {KNOWN} voices only, tested "
        "in mixtures of recordings not trained on (each stretch of speech in several "
        "mixtures). ± is the 95% confidence interval over seeds (Student's t). The "
        "paper's numbers are of much larger networks and trainings."
    ]
    for budget in dict.fromkeys(r["budget"] for r in rows):
        runs = [r for r in rows if r["budget"] == budget]
        one = runs[0]
        errors = [float(r["si_sdri_ci95"]) for r in runs]
        devices = sorted({r["device"] for r in runs})
        parts.append(
            f"## Budget {budget}\n\n{one['steps']} steps, {one['audio_hours']} h of "
            f"audio, {one['n']} test mixtures, device: {', '.join(devices)}. The mean "
            f"of a single run over the mixtures is known to ± {max(errors):.2f} dB.\n\n"
            + table(runs)
        )
    if again:
        parts.append(f"Run again, and not in the table: {'; '.join(again)}.")
    parts.append("![SI-SDRi of every run](evidence.png)\n")
    with replacing(folder / "evidence.md") as temporary:
        temporary.write_text("\n\n".join(parts), encoding="utf-8")
    draw(folder / "evidence.png", rows)


def draw(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A point for every run, a column for every cell."""
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    cells = [cell for cell in CELLS if any(r["cell"] == cell for r in rows)]
    for budget, marker in zip(BUDGETS, "ods^", strict=True):
        runs = [r for r in rows if r["budget"] == budget]
        if runs:
            axes.plot(
                [cells.index(r["cell"]) for r in runs],
                [float(r["si_sdri"]) for r in runs],
                marker,
                label=budget,
                alpha=0.7,
            )
    axes.set_xticks(range(len(cells)), cells)
    axes.set_ylabel("SI-SDRi in dB")
    axes.legend(title="budget")
    axes.grid(axis="y", alpha=0.3)
    save(figure, path, dpi=120)


def check_voices(voices: Path) -> None:
    """Says what is missing."""
    for part in ("LibriSpeech", "LibriMix-metadata"):
        if not (voices / part).is_dir():
            raise UserError(
                f"There is no folder {voices / part}: give --voices a folder with "
                "LibriSpeech and LibriMix-metadata."
            )


def main(argv: list[str] | None = None) -> None:
    """Runs one cell, or with none given draws the table anew.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("--cell", choices=CELLS, help="without it only draws the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", choices=BUDGETS, default="cpu")
    parser.add_argument("--voices", type=Path, default=Path("voices"), metavar="FOLDER")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0 and so on")
    parser.add_argument("--precision", default="fp32", help="or bf16")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "results" / "evidence", metavar="DIR"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs", metavar="DIR")
    arguments = parser.parse_args(argv)
    with user_errors():
        if arguments.cell is not None:
            run(arguments)
        write(arguments.output)


def run(arguments: argparse.Namespace) -> None:
    """Trains and tests the cell of the command line."""
    check_voices(arguments.voices)
    cell, seed = arguments.cell, arguments.seed
    budget = BUDGETS[arguments.budget]
    runs, voices = arguments.runs.resolve(), arguments.voices.resolve()
    folder = runs / f"{arguments.budget}-{cell}-{seed}"
    if arguments.budget == "known":
        data = known_voices(voices, runs / "known")
    else:
        data = strange_voices(voices)
    words = command_of(cell, seed, budget, data, folder)
    words += ["--device", arguments.device, "--precision", arguments.precision]
    train(words)
    device = f"{arguments.device} {arguments.precision}"
    append(
        arguments.output / "evidence.csv",
        row_of(cell, seed, arguments.budget, budget, device, folder),
    )


if __name__ == "__main__":
    main()

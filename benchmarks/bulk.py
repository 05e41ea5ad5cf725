"""A corpus of short recordings: as fast as one long recording, and safe from kills.

    python -m benchmarks.bulk speed --data-folder LibriSpeech --turns 10 --rows 20
    python -m benchmarks.bulk kills --data-folder LibriSpeech --rows 2000 --kills 10

``speed`` takes turns: it separates a manifest of new mixtures of 1 to 20 s (all lengths
as often; with ``--short`` as many of 1 to 2 s as of 10 to 20 s) as ``spgm separate
--manifest`` does, and one recording that is as long as all of them together as ``spgm
separate`` does, same model, same cores; and prints the ratio of their seconds of audio
per second and of their processor time, and the memory after each turn. With ``--kill``
the command then does the turn's corpus once more, is killed (SIGKILL) at a random
moment, and does the rest.

``kills`` separates such a corpus undisturbed, by a small random network unless a model
is named, and again in processes that are killed (SIGKILL) at random moments, and
compares all files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from benchmarks.faults import Child
from benchmarks.inference import memory
from speechbrain_spgm.bulk.corpus import Threads, separate_corpus
from speechbrain_spgm.bulk.manifest import Manifest
from speechbrain_spgm.cli import main as spgm
from speechbrain_spgm.files import TEMPORARY, temporary_folder
from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.inference.options import Options
from speechbrain_spgm.models.config import build
from tests.conftest import CARD, CONFIG

RATE = 8000
SHORTEST, LONGEST = 1.0, 20.0  # seconds


class Turn(NamedTuple):
    """Of the corpus and of the long recording: wall and processor time in seconds."""

    audio: float
    corpus: tuple[float, float]
    long: tuple[float, float]
    mib: float


def make_corpus(
    folder: Path, rows: int, speech: list[Path], rng: np.random.Generator, short: bool
) -> float:
    """Writes mixtures of two excerpts, in.jsonl, and all in one; their seconds."""
    folder.mkdir()
    lines, everything = [], soundfile.SoundFile(folder / "long.flac", "w", RATE, 1)
    for row in range(rows):
        share = rng.uniform()
        if short:
            length = round(SHORTEST * (LONGEST / SHORTEST) ** share * RATE)
        else:
            length = round((SHORTEST + (LONGEST - SHORTEST) * share) * RATE)
        pair = rng.choice(len(speech), 2, replace=False)
        voices = [soundfile.read(speech[i], dtype="float32")[0] for i in pair]
        mix = sum(np.resize(voice, length) for voice in voices) / 2
        soundfile.write(folder / f"{row}.flac", mix, RATE)
        lines.append(json.dumps({"audio_filepath": f"{row}.flac"}) + "\n")
        everything.write(mix)
    (folder / "in.jsonl").write_text("".join(lines))
    everything.close()
    return everything.frames / RATE


def speed(arguments: argparse.Namespace) -> None:
    """Prints how a corpus compares with one long recording."""
    model = SPGMSeparation.from_pretrained(arguments.model, device="cpu")
    speech = sorted(arguments.data_folder.rglob("*.flac"))
    rng, turns = np.random.default_rng(arguments.seed), []
    if arguments.workers:
        torch.set_num_threads(arguments.workers)
    engine = Threads(model)
    with temporary_folder() as folder:
        for number in range(arguments.turns):
            place = folder / str(number)
            audio = make_corpus(place, arguments.rows, speech, rng, arguments.short)

            def corpus(place: Path = place) -> None:
                options = Options(format="flac", views=arguments.views)
                manifest, output = Manifest(place / "in.jsonl"), place / "out"
                found = separate_corpus(model, manifest, output, options, engine=engine)
                assert not found.failures

            def long(place: Path = place) -> None:
                names = [place / f"long{i}.flac" for i in range(model.num_spks)]
                model.separate_to_files(
                    place / "long.flac", names, mode="exact", views=arguments.views
                )

            ways = {"corpus": corpus, "long": long}
            order = list(ways) if number % 2 else list(ways)[::-1]
            times = {name: timed(ways[name]) for name in order}
            mib = memory("VmRSS") / 2**20
            turns.append(Turn(audio, times["corpus"], times["long"], mib))
            print(turns[-1], flush=True)
            if arguments.kill:
                print(killed(place, arguments, rng.uniform()), flush=True)
    print(table(turns, engine.workers))


def killed(place: Path, arguments: argparse.Namespace, share: float) -> str:
    """A turn's corpus by the command, killed when that share of its rows is done."""
    command = [sys.executable, "-m", "speechbrain_spgm", "separate", "--device", "cpu"]
    command += ["--manifest", place / "in.jsonl", "--output", place / "again"]
    command += ["--views", str(arguments.views)]
    command += ["--model", arguments.model] if arguments.model else []
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while count_lines(place / "again") < share * arguments.rows:
        time.sleep(0.01)
    first.kill()
    first.wait()
    at = count_lines(place / "again")
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    whole, again = files(place / "out"), files(place / "again")
    same = "equal" if whole == again else "DIFFERENT"
    return f"killed at {at} of {arguments.rows} rows: {len(whole)} files, {same}"


def timed(work: partial) -> tuple[float, float]:
    """Wall and processor time."""
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu


def table(turns: Sequence[Turn], workers: int) -> str:
    """The result in Markdown."""
    walls = [turn.long[0] / turn.corpus[0] for turn in turns]
    cpus = [turn.long[1] / turn.corpus[1] for turn in turns]
    audio = sum(turn.audio for turn in turns)
    return "\n".join(
        [
            "| what | median of the turns | from | to |\n|---|---|---|---|",
            "| audio per second, corpus over one long recording | "
            f"{median(walls):.2f} | {min(walls):.2f} | {max(walls):.2f} |",
            "| audio per second of processor time, the same | "
            f"{median(cpus):.2f} | {min(cpus):.2f} | {max(cpus):.2f} |",
            "",
            f"{len(turns)} turns, {audio:.0f} s of audio, {workers} workers; memory "
            f"after each turn from {min(t.mib for t in turns):.0f} to "
            f"{max(t.mib for t in turns):.0f} MiB, after the first "
            f"{turns[0].mib:.0f}, after the last {turns[-1].mib:.0f}.",
        ]
    )


def kills(arguments: argparse.Namespace) -> None:
    """Prints whether runs that were killed end with the files of one that was not."""
    rng, draw = np.random.default_rng(arguments.seed), random.Random(arguments.seed)
    with temporary_folder() as folder:
        speech = sorted(arguments.data_folder.rglob("*.flac"))
        place, model = folder / "in", arguments.model
        audio = make_corpus(place, arguments.rows, speech, rng, arguments.short)
        if model is None:
            torch.manual_seed(0)
            model = folder / "model"
            save_published(model, *build(CONFIG), CONFIG, CARD)

        def run(output: str) -> int:
            words = ["--manifest", place / "in.jsonl", "--output", folder / output]
            words += ["--model", model, "--device", "cpu"]
            return spgm(["separate", *map(str, words)])

        began = time.monotonic()
        assert run("whole") == 0
        seconds = time.monotonic() - began
        done = []
        while len(done) < arguments.kills:
            child = Child(partial(run, "out"))
            before, left = count_lines(folder / "out"), arguments.kills - len(done)
            share = 2 * (arguments.rows - before) / (left + 1)
            until = min(before + draw.uniform(0, share), arguments.rows - 1)
            while count_lines(folder / "out") < until:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.05))
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            os.close(child.reader)
            done.append(count_lines(folder / "out"))
            print(f"killed at {done[-1]} rows", flush=True)
        assert run("out") == 0
        whole, out = (files(folder / name) for name in ("whole", "out"))
        same = "equal" if whole == out else "DIFFERENT"
        print(
            f"{arguments.rows} rows ({audio:.0f} s of audio), {len(done)} kills, "
            f"{seconds:.0f} s undisturbed: {len(whole)} files, {same}, byte for byte."
        )


def count_lines(output: Path) -> int:
    """Recordings that are written down as done."""
    return sum(
        file.read_bytes().count(b"\n") for file in output.glob(".spgm/journal-*")
    )


def files(output: Path) -> dict[str, bytes]:
    """All that a user gets, and whatever temporary files there are."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file()
        and (".spgm" not in path.parts or TEMPORARY.fullmatch(path.name))
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    for work, rows in ((speed, 20), (kills, 2000)):
        command = commands.add_parser(work.__name__)
        command.add_argument("--rows", type=int, default=rows)
        command.add_argument("--model")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--data-folder", type=Path, required=True)
        command.add_argument("--short", action="store_true")
        command.set_defaults(work=work)
        if work is speed:
            command.add_argument("--turns", type=int, default=10)
            command.add_argument("--workers", type=int)
            command.add_argument("--views", type=int, default=2)
            command.add_argument("--kill", action="store_true")
        else:
            command.add_argument("--kills", type=int, default=10)
    arguments = parser.parse_args(argv)
    arguments.work(arguments)


if __name__ == "__main__":
    main()

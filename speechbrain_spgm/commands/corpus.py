"""``spgm separate --manifest``: a corpus, on one machine or many."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from speechbrain_spgm.commands.common import (
    load_model,
    make_folder,
    refuse_given,
    say,
    some_path,
)
from speechbrain_spgm.commands.jobs import search
from speechbrain_spgm.console import WRONG_INPUT, positive
from speechbrain_spgm.errors import UserError, count
from speechbrain_spgm.files import temporary_folder

if TYPE_CHECKING:
    from speechbrain_spgm.bulk.corpus import Engine
    from speechbrain_spgm.bulk.manifest import Manifest
    from speechbrain_spgm.inference import SPGMSeparation
    from speechbrain_spgm.metrics.scores import Score

SAID = 5  # failures that are told on the spot
# Options that only --manifest has, and those that only --engine ray has.
ON_RAY = ("ray_address", "num_gpus")
OF_CORPUS = ("shard", "scores", "resume", "engine", "workers", *ON_RAY)


def add_corpus_options(command: argparse.ArgumentParser) -> None:
    """What is done about many recordings."""
    group = command.add_argument_group(
        "a corpus",
        "With --manifest the voices go to DIR/voices, FLAC by default, and a row for "
        "each to DIR/out.jsonl in the manifest's order; rows that fail go to "
        "DIR/failed.jsonl, and the exit code is 2. The same command again does what is "
        "not done: after a kill it ends with the same files.",
    )
    group.add_argument(
        "--manifest",
        type=some_path,
        metavar="FILE_OR_FOLDER",
        help="JSON lines with audio_filepath, and offset and duration for a part; or a "
        "table with these columns (.csv, .tsv); or a folder",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="every N-th row, from row I on, I from 1 to N: for batch systems; after "
        "all shards the command without --shard writes out.jsonl",
    )
    add_scores_option(group, "")
    group.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out rows that are done (default)",
    )
    group.add_argument(
        "--engine",
        choices=["threads", "ray"],
        default="threads",
        help="threads: this process (default); ray: workers on Ray, which must see DIR "
        "and the recordings under the same paths; needs pip install 'ray[data]'",
    )
    group.add_argument(
        "--workers",
        type=positive(int),
        metavar="N",
        help="recordings that are separated at a time on CPUs, or workers on Ray; by "
        "default one per core, or per --num-gpus",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a running cluster, or auto; by default Ray starts on this machine",
    )
    group.add_argument(
        "--num-gpus",
        type=positive(float),
        metavar="G",
        help="GPUs of each worker on Ray; 0.5: two share one",
    )


def add_scores_option(command: argparse._ActionsContainer, default: str) -> None:
    """Which scores without references are measured."""
    command.add_argument(
        "--scores",
        default=default,
        metavar="LIST",
        help="scores that need no references, with commas between: agreement, "
        "shared_energy, correlation, residual, dnsmos, dnsmos_signal, "
        "dnsmos_background; DNSMOS needs pip install speechmos onnxruntime"
        + (f" (default: {default})" if default else ""),
    )


def names_in(listed: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def run_corpus(arguments: argparse.Namespace) -> int:
    """Separates a corpus; returns the exit code."""
    from speechbrain_spgm.bulk.corpus import separate_corpus
    from speechbrain_spgm.bulk.manifest import ALL, Shard
    from speechbrain_spgm.inference.options import Options

    if arguments.inputs or arguments.report:
        wrong = "files" if arguments.inputs else "--report"
        raise UserError(f"--manifest and {wrong} do not go together: leave one out.")
    if arguments.engine != "ray":
        refuse_given(arguments, ON_RAY, "goes with --engine ray")
    shard = ALL if arguments.shard is None else Shard.parse(arguments.shard)
    folder = Path(arguments.output)
    manifest, unread = open_manifest(arguments.manifest, folder)
    model = load_model(arguments)
    arguments.format = arguments.format or "flac"
    chosen = {name: vars(arguments).get(name) for name in Options.names()}
    options = Options.of({**chosen, "progress": True})
    make_folder(folder)
    engine = make_engine(arguments, model)
    outcome = separate_corpus(
        model,
        manifest,
        folder,
        options,
        shard,
        scores=names_in(arguments.scores),
        resume=arguments.resume,
        engine=engine,
    )
    failed = len(outcome.failures)
    for failure in list(outcome.failures.values())[:SAID]:
        say(f"spgm: {failure}")
    if failed > SAID:
        say(f"spgm: {failed - SAID} more in {folder / f'failed{shard.suffix}.jsonl'}.")
    done = count(outcome.rows - outcome.before - failed, "recording")
    print(
        f"Separated {done} into {folder}; {outcome.before} were done before, "
        f"{failed + unread} failed."
    )
    return WRONG_INPUT if failed + unread else 0


def make_engine(arguments: argparse.Namespace, model: SPGMSeparation) -> Engine:
    """Who separates the rows."""
    from speechbrain_spgm.bulk.cluster import Cluster
    from speechbrain_spgm.bulk.corpus import Threads

    if arguments.engine == "threads":
        return Threads(model, arguments.workers)
    words = {**vars(arguments), "run": None, "default_of": None}
    if arguments.model and os.path.exists(arguments.model):
        words["model"] = os.path.abspath(arguments.model)  # workers start elsewhere
    return Cluster(
        partial(load_model, argparse.Namespace(**words)),
        arguments.ray_address,
        arguments.num_gpus or 0.0,
        arguments.workers,
    )


def open_manifest(path: Path, output: Path) -> tuple[Manifest, int]:
    """A manifest's rows, or the recordings in a folder; how many cannot be read."""
    from speechbrain_spgm.bulk.ledger import VOICES
    from speechbrain_spgm.bulk.manifest import Manifest

    if not os.path.isdir(path):
        return Manifest(path), 0
    place, out = (Path(os.path.realpath(folder)) for folder in (path, output))
    if place == out or place.is_relative_to(out / VOICES):
        raise UserError(
            f"the voices in {output} would be recordings of {path} the next time: take "
            "another output folder."
        )
    files, problems, passed_over, lacking = search(path, output)
    for line in problems + passed_over:
        say(f"spgm: {line}")
    manifest = Manifest(path, [str(file.relative_to(path)) for file in files])
    return manifest, len(problems) + lacking


def run_without_references(arguments: argparse.Namespace, shared: Iterable[str]) -> int:
    """Separates a corpus and prints the means of its scores; returns the exit code.

    ``shared`` names the options that are those of separating.
    """
    from speechbrain_spgm.bulk.corpus import separate_corpus
    from speechbrain_spgm.inference.options import Options
    from speechbrain_spgm.metrics.reference_free import REFERENCE_FREE
    from speechbrain_spgm.metrics.scores import cells_of, summarise

    names = names_in(arguments.scores)
    if not names:
        raise UserError("scores is empty: name one, such as agreement.")
    model = load_model(arguments)
    with ExitStack() as stack:
        folder = arguments.output or stack.enter_context(temporary_folder())
        manifest, unread = open_manifest(arguments.manifest, folder)
        chosen = {name: vars(arguments)[name] for name in shared}
        options = Options.of({**chosen, "format": "flac", "progress": True})
        outcome = separate_corpus(model, manifest, folder, options, scores=names)
        scores = read_scores(folder / "out.jsonl", names)
    for failure in list(outcome.failures.values())[:SAID]:
        say(f"spgm: {failure}")
    if not scores:
        raise UserError(f"none of {arguments.manifest} could be separated: check it.")
    summary = summarise(scores)
    print("| score | mean | 95% CI |\n|---|---|---|")
    for name in names:
        measure = REFERENCE_FREE[name]
        print(
            f"| {measure.name} | {' | '.join(cells_of(summary[name], measure.unit))} |"
        )
    failed = len(outcome.failures) + unread
    print(f"\nn = {summary['n']}; {failed} failed.")
    return WRONG_INPUT if failed else 0


def read_scores(path: Path, names: list[str]) -> list[Score]:
    """The scores of each recording, the mean over its voices."""
    from speechbrain_spgm.metrics.scores import Score

    with path.open(encoding="ascii") as file:
        voices = [json.loads(line) for line in file]
    starts = [i for i, voice in enumerate(voices) if voice["speaker"] == 1]
    stops = [*starts, len(voices)][1:]  # none of nothing
    scores = []
    for start, stop in zip(starts, stops, strict=True):
        of_one = voices[start:stop]
        values = {name: fmean(voice[name] for voice in of_one) for name in names}
        scores.append(Score(of_one[0]["path"], values))
    return scores

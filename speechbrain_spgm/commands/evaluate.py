"""``spgm evaluate``: how well a model separates mixtures whose sources are known.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from speechbrain_spgm.choices import LENGTHS
from speechbrain_spgm.commands.common import (
    add_separation_options,
    load_model,
    make_folder,
    refuse_given,
    say,
    some_path,
)
from speechbrain_spgm.commands.corpus import (
    add_scores_option,
    names_in,
    run_without_references,
)
from speechbrain_spgm.console import positive
from speechbrain_spgm.errors import UserError, count, writing
from speechbrain_spgm.files import check_writable

if TYPE_CHECKING:
    from speechbrain_spgm.data import MixtureBatch
    from speechbrain_spgm.data.listed import VariedDataset
    from speechbrain_spgm.inference import SPGMSeparation
    from speechbrain_spgm.inference.options import Options
    from speechbrain_spgm.metrics.report import Worst
    from speechbrain_spgm.metrics.scores import Score

SHARED = ("views", "statistics", "statistics_seconds")  # with spgm separate
WITH_REFERENCES = (
    "data_folder mode metrics speakers batch_size batch_seconds limit jobs".split()
)
OF_LISTS = ("data_folder", "mode")
LEVEL_STEPS = (2, 5)  # dB between the loudest and the softest source


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The arguments of ``spgm evaluate``."""
    command = commands.add_parser(
        "evaluate",
        help="measure a model on mixtures with known sources",
        description="Print SI-SDR, SDR and their improvements, with 95% confidence "
        "intervals, as a Markdown table. With --output, also write a row per utterance "
        "(test_results.csv), the summary (test_summary.json, test_results.md), a "
        "picture of the spread (test_results.png) and the five worst utterances "
        "(worst/). Utterances whose sources are all silent have no score.",
    )
    add_separation_options(command)
    command.add_argument(
        "--manifest",
        required=True,
        type=some_path,
        metavar="CSV",
        help="the mixtures: a manifest with the columns id, duration, mix, s1, s2, "
        "..., or a metadata list of LibriMix (then give --data-folder)",
    )
    command.add_argument(
        "--data-folder",
        type=Path,
        metavar="DIR",
        help="the LibriSpeech folder that a metadata list refers to",
    )
    command.add_argument(
        "--mode",
        choices=LENGTHS,
        default="min",
        help="of a metadata list: cut to the shortest source (default) or pad to the "
        "longest",
    )
    command.add_argument(
        "--output", type=some_path, metavar="DIR", help="where to write"
    )
    command.add_argument(
        "--metrics",
        default="si_sdr,sdr",
        metavar="LIST",
        help="si_sdr, and if you like sdr, pesq, stoi, with commas between (default: "
        "si_sdr,sdr); pesq and stoi need the packages pesq and pystoi",
    )
    command.add_argument(
        "--speakers",
        type=Path,
        metavar="CSV",
        help="a list with the columns speaker and gender, to show the result by gender "
        "as well; ids must be as in LibriMix: <speaker>-..._<speaker>-...",
    )
    command.add_argument(
        "--batch-size",
        type=positive(int),
        metavar="N",
        help="mixtures separated at a time (default: 8, or what --batch-seconds gives)",
    )
    command.add_argument(
        "--batch-seconds",
        type=positive(float),
        metavar="S",
        help="most audio separated at a time",
    )
    command.add_argument(
        "--limit", type=positive(int), metavar="N", help="only the first N mixtures"
    )
    command.add_argument(
        "--jobs",
        type=positive(int),
        metavar="N",
        help="processes that read files ahead; by default none",
    )
    command.add_argument(
        "--no-references",
        action="store_true",
        help="the manifest names recordings only, as for separate --manifest: separate "
        "them, into --output if it is given, and print the means of --scores",
    )
    add_scores_option(command, "agreement,shared_energy,residual")
    command.set_defaults(run=run, default_of=command.get_default)


def run(arguments: argparse.Namespace) -> int:
    """Evaluates; returns the exit code."""
    if arguments.no_references:
        refuse_given(arguments, WITH_REFERENCES, "needs references")
        return run_without_references(arguments, SHARED)
    refuse_given(arguments, ["scores"], "goes with --no-references")
    from speechbrain_spgm.data.recordings import tell_lower_rates
    from speechbrain_spgm.inference.options import Options
    from speechbrain_spgm.metrics.report import (
        Worst,
        format_groups,
        format_table,
        write_results,
    )
    from speechbrain_spgm.metrics.scores import breakdown, check_metrics

    model = load_model(arguments)
    chosen = {name: vars(arguments)[name] for name in SHARED}
    options = Options.of(chosen).checked(model)
    if options.views > 1:
        say(f"spgm: test-time augmentation: the mean of {options.views} views.")
    metrics = names_in(arguments.metrics)
    check_metrics(metrics, model.sample_rate)
    dataset = open_dataset(arguments, model)
    tell_lower_rates(getattr(dataset, "recordings", []), model.sample_rate)
    genders = read_genders(arguments.speakers) if arguments.speakers else {}
    if genders:  # before the work rather than after it
        gender_groups([entry[0] for entry in dataset.entries], genders)
    if arguments.output is not None:
        make_folder(arguments.output)
        with writing(f"The output folder {arguments.output}"):
            check_writable(arguments.output)  # before the work rather than after it

    worst, levels = Worst(), {}
    scores = separate_and_score(
        model, dataset, metrics, arguments, options, worst, levels
    )
    if not scores:
        raise UserError(f"all sources in {arguments.manifest} are silent: check them.")
    if len(scores) < len(dataset):
        left_out = count(len(dataset) - len(scores), "mixture")
        say(f"spgm: {left_out} with nothing but silent sources left out.")

    groups = {"level difference": levels}
    if genders:
        groups["genders"] = gender_groups([score.id for score in scores], genders)
    print(format_table(scores))
    for heading, names in groups.items():
        print("\n" + format_groups(heading, breakdown(scores, names)))
    if arguments.output is not None:
        with writing(f"The results in {arguments.output}"):
            missing = write_results(
                scores,
                arguments.output,
                about={
                    "test_set": arguments.manifest.stem,
                    "metrics": metrics,
                    "precision": model.precision,
                    **{name: getattr(options, name) for name in SHARED},
                },
                groups=groups,
                worst=worst.examples,
                sample_rate=model.sample_rate,
            )
        if missing is not None:
            say(f"spgm: the pictures are left out. {missing}")
        say(f"spgm: wrote the results to {arguments.output}.")
    return 0


def open_dataset(arguments: argparse.Namespace, model: SPGMSeparation) -> VariedDataset:
    """The mixtures of a manifest or of a LibriMix list, all their files checked."""
    from speechbrain_spgm.audio import open_audio
    from speechbrain_spgm.data.listed import ManifestDataset, MixtureList
    from speechbrain_spgm.data.lists import count_sources
    from speechbrain_spgm.data.manifests import read_manifest
    from speechbrain_spgm.data.recordings import read_table

    path, folder = arguments.manifest, arguments.data_folder
    wanted = {"num_spks": model.num_spks, "sample_rate": model.sample_rate}
    wanted["limit"] = arguments.limit
    columns = read_table(path, columns=())[0]
    if "mixture_ID" not in columns or "mixture_path" in columns:
        refuse_given(arguments, OF_LISTS, "goes with a metadata list of LibriMix")
        first = read_manifest(path)[0]
        check_sources(path, len(first.sources), model)
        rate = open_audio(first.mix).rate
        if rate != model.sample_rate:
            raise UserError(
                f"the mixture {first.mix} is at {rate} Hz, but the model's rate is "
                f"{model.sample_rate} Hz: resample the files, or take another --model."
            )
        return ManifestDataset(path, **wanted)
    if folder is None:
        raise UserError(
            f"{path} is a metadata list of LibriMix: give the LibriSpeech folder by "
            "--data-folder."
        )
    if not folder.is_dir():
        raise UserError(
            f"the folder {folder} does not exist: give the one that holds "
            "LibriSpeech's splits by --data-folder."
        )
    check_sources(path, count_sources(columns), model)
    return MixtureList(path, folder, **wanted, mode=arguments.mode)


def check_sources(path: Path, found: int, model: SPGMSeparation) -> None:
    """Refuses mixtures of more or fewer sources than the model separates."""
    if found != model.num_spks:
        raise UserError(
            f"{path} has {count(found, 'source')} per mixture, but the model separates "
            f"{count(model.num_spks, 'voice')}: give another list, or another --model."
        )


def separate_and_score(
    model: SPGMSeparation,
    dataset: VariedDataset,
    metrics: list[str],
    arguments: argparse.Namespace,
    options: Options,
    worst: Worst,
    levels: dict[str, str],
) -> list[Score]:
    """Scores all mixtures, sorted by id; fills ``worst`` and ``levels`` on the way."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from speechbrain_spgm.data import MixtureBatch
    from speechbrain_spgm.data.batching import BucketBatchSampler
    from speechbrain_spgm.metrics.scores import match, score_batch

    batch_size = arguments.batch_size
    if batch_size is None and arguments.batch_seconds is None:
        batch_size = 8
    sampler = BucketBatchSampler(
        dataset.seconds, batch_size, arguments.batch_seconds, shuffle=False
    )
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=MixtureBatch.collate,
        num_workers=arguments.jobs or 0,
    )
    scores = []
    with tqdm(
        total=len(dataset), desc="evaluating", unit="mix", disable=None, file=sys.stderr
    ) as bar:
        for batch in loader:
            levels |= level_groups(batch)
            batch = batch.to(model.device)
            estimates = model.separate_batch(
                batch.mix,
                batch.lengths,
                options.views,
                level=True,
                statistics=options.rule(model),
            )
            pit = match(estimates, batch)
            new = score_batch(estimates, batch, pit, metrics, model.sample_rate)
            worst.add(new, estimates, batch, pit)
            scores += new
            bar.update(len(batch.ids))
    return sorted(scores, key=lambda score: score.id)


def level_groups(batch: MixtureBatch) -> dict[str, str]:
    """For each id, how far apart the levels of its sources are."""
    energy = batch.sources.square().sum(1).clamp_min(1e-20)  # [B, spks]
    differences = 10 * (energy.amax(1) / energy.amin(1)).log10()
    low, high = LEVEL_STEPS
    names = (f"0 to {low} dB", f"{low} to {high} dB", f"above {high} dB")
    places = [(d > low) + (d > high) for d in differences.tolist()]
    return {id: names[place] for id, place in zip(batch.ids, places, strict=True)}


def read_genders(path: Path) -> dict[str, str]:
    """From speaker to gender."""
    from speechbrain_spgm.data.recordings import read_table

    columns = ("speaker", "gender")
    return {row["speaker"]: row["gender"] for row in read_table(path, columns)}


def gender_groups(ids: Iterable[str], genders: dict[str, str]) -> dict[str, str]:
    """For each id, the genders of its speakers in alphabetical order.

    Example
    -------
    >>> gender_groups(["61-1-0_84-2-0"], {"61": "M", "84": "F"})
    {'61-1-0_84-2-0': 'F+M'}
    """
    groups = {}
    for id in ids:
        speakers = [part.split("-")[0] for part in id.split("_")]
        unknown = [speaker for speaker in speakers if speaker not in genders]
        if unknown:
            raise UserError(
                f"the speaker {unknown[0]} of mixture {id} is not in --speakers: add "
                "the speaker, or leave --speakers out."
            )
        groups[id] = "+".join(sorted(genders[speaker] for speaker in speakers))
    return groups

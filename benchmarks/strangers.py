"""A test list of mixtures from recordings of your own, unlike those trained on.

    python -m benchmarks.strangers --voices voices.csv --output DIR
    spgm evaluate --manifest DIR/mixtures.csv

The CSV file has the columns ``path`` (relative to it) and ``speaker``, like
``extra_voices`` of a recipe. Single words and sentences will do: recordings of a
speaker, without the silence around them, are joined to utterances of some seconds (of
several channels, the first; of a column ``split``, the rows ``test``). Each
mixture has two speakers, drawn at random, at the loudnesses of LibriMix; one that would
clip is turned down.

Axes: T samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from tqdm import trange

from speechbrain_spgm.audio import AudioFile, to_pcm16
from speechbrain_spgm.corpora.generation import load, resample, write
from speechbrain_spgm.data.dynamic import by_speaker, gain_to
from speechbrain_spgm.data.levels import PEAK, librimix_levels, loudness
from speechbrain_spgm.data.manifests import ManifestRow, write_manifest
from speechbrain_spgm.data.recordings import read_voices, trim
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.training.experiment import user_errors


def utterances(
    files: Iterable[AudioFile], seconds: float, rate: int
) -> Iterator[np.ndarray]:
    """Joins a speaker's recordings, in their order, to [T] of so many seconds each.

    Arguments
    ---------
    files : iterable of AudioFile
        Recordings of any rate and length.
    seconds : float
        What is longer is cut, what is left at the end of the files is dropped.
    rate : int
        Samples per second that are asked for.
    """
    length = round(seconds * rate)
    joined = np.zeros(0)
    for file in files:
        samples = trim(resample(load(file), file.rate, rate))
        joined = np.concatenate([joined, samples])
        while len(joined) >= length:
            yield joined[:length]
            joined = joined[length:]


def mix_strangers(
    speakers: dict[str, list[AudioFile]],
    folder: Path,
    mixtures: int,
    seconds: float,
    rate: int,
    seed: int,
) -> None:
    """Writes mixtures and ``mixtures.csv`` into a folder.

    Arguments
    ---------
    speakers : dict of list of AudioFile
        The recordings of each.
    folder : Path
        Gets ``mix``, ``s1`` and ``s2`` as well.
    mixtures : int
        How many.
    seconds : float
        Their duration.
    rate : int
        Samples per second.
    seed : int
        Of who is mixed with whom, and how loud.

    Raises
    ------
    UserError
        If fewer than two speakers have an utterance.
    """
    joined = {name: list(utterances(f, seconds, rate)) for name, f in speakers.items()}
    joined = {name: found for name, found in joined.items() if found}
    if len(joined) < 2:
        raise UserError(
            f"{len(joined)} of {len(speakers)} speakers have {seconds} s of speech: "
            "two are needed; name more recordings, or fewer --seconds."
        )
    names = sorted(joined)
    following = {name: cycle(enumerate(joined[name])) for name in names}
    rng = np.random.default_rng(seed)
    rows = []
    for mixture in trange(mixtures, unit="mixture"):
        pair = [names[i] for i in rng.choice(len(names), 2, replace=False)]
        numbers, voices = zip(*(next(following[name]) for name in pair), strict=True)
        id = "_".join(f"{n}-{i:04}" for n, i in zip(pair, numbers, strict=True))
        id += f"-{mixture:04}"  # the same utterances may meet again
        targets = librimix_levels(2, rng)
        waves = np.stack(
            [
                voice * gain_to(target, loudness(voice, rate), floor_db=-np.inf)
                for voice, target in zip(voices, targets, strict=True)
            ]
        )
        waves *= min(1, PEAK / max(np.abs(waves).max(), np.abs(waves.sum(0)).max()))
        sources = [*to_pcm16(waves)]
        files = [folder / part / f"{id}.wav" for part in ("mix", "s1", "s2")]
        for file, samples in zip(files, [sum(sources), *sources], strict=True):
            write(file, samples, rate)
        rows.append(ManifestRow(id, len(sources[0]) / rate, files[0], tuple(files[1:])))
    write_manifest(folder / "mixtures.csv", rows)


def main(argv: list[str] | None = None) -> None:
    """Mixes.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strangers")
    parser.add_argument("--voices", type=Path, required=True, help="CSV: path, speaker")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mixtures", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each mixture")
    parser.add_argument("--rate", type=int, default=8000, help="samples per second")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with user_errors():
        mix_strangers(
            by_speaker(read_voices(arguments.voices, split="test", mono=False)),
            arguments.output,
            arguments.mixtures,
            arguments.seconds,
            arguments.rate,
            arguments.seed,
        )


if __name__ == "__main__":
    main()

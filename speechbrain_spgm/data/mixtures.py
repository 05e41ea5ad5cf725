"""Mixtures that a list in LibriMix's CSV format describes.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.nn.functional import pad

from speechbrain_spgm.data.audio import (
    AudioFile,
    change_rate,
    open_audio,
    read_audio,
)
from speechbrain_spgm.data.batch import Mixture
from speechbrain_spgm.data.errors import UserError
from speechbrain_spgm.data.seeded import SeededDataset
from speechbrain_spgm.data.voices import read_table


class MixtureList(SeededDataset):
    """Mixes on the fly what a LibriMix metadata file lists.

    The columns are ``mixture_ID``, ``source_1_path``, ``source_1_gain``,
    ``source_2_path``, and so on; paths are relative to the LibriSpeech folder. A
    mixture is the sum of gain times source. Every file is opened once at the start, so
    that training does not fail on a missing one hours later.

    Arguments
    ---------
    path : str or Path
        The CSV file.
    folder : str or Path
        The LibriSpeech folder.
    num_spks : int
        How many sources each mixture must have.
    sample_rate : int
        Rate of the mixtures in Hz; sources at other rates are resampled.
    mode : str
        "min" cuts all sources to the shortest, "max" pads them to the longest.
    segment_seconds : float, optional
        If given, item i is a random crop of that many seconds (or all of a shorter
        mixture), drawn from (seed, epoch, i).
    seed : int
        Seed of the crops.
    limit : int, optional
        Use only the first ``limit`` mixtures of the list.

    Raises
    ------
    UserError
        If the list or one of its files is missing or wrong, or its number of sources
        is not ``num_spks``.
    """

    def __init__(
        self,
        path: str | Path,
        folder: str | Path,
        num_spks: int,
        sample_rate: int,
        mode: str = "min",
        segment_seconds: float | None = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(seed)
        if mode not in ("min", "max"):
            raise UserError(f"The mixture mode is {mode}, but must be min or max.")
        self.path = Path(path)
        self.sample_rate = sample_rate
        self.mode = mode
        self.segment = round(segment_seconds * sample_rate) if segment_seconds else None
        self.entries = read_mixture_list(self.path, Path(folder), num_spks)[:limit]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Mixture:
        id, sources = self.entries[index]
        waves = [
            gain * change_rate(load(file), file.rate, self.sample_rate)
            for file, gain in sources
        ]
        fit = min if self.mode == "min" else max
        length = fit(len(wave) for wave in waves)
        # A negative padding cuts. [T, spks]
        stack = torch.stack([pad(w, (0, length - len(w))) for w in waves], dim=-1)
        stack = self._crop(stack, index)
        return Mixture(id, stack.sum(-1), stack)

    def _crop(self, sources: torch.Tensor, index: int) -> torch.Tensor:
        """A random segment of [T, spks], or all of it."""
        spare = len(sources) - (self.segment or len(sources))
        if spare <= 0:
            return sources
        start = int(self.generator(index).integers(spare + 1))
        return sources[start : start + self.segment]

    @property
    def speakers(self) -> set[str]:
        """The speakers, as LibriSpeech's folder layout names them."""
        return {
            file.path.parts[-3] for _, sources in self.entries for file, _ in sources
        }


def load(file: AudioFile) -> torch.Tensor:
    """All samples of a file [T]."""
    return torch.from_numpy(read_audio(file))


def read_mixture_list(
    path: Path, folder: Path, num_spks: int
) -> list[tuple[str, list[tuple[AudioFile, float]]]]:
    """Reads and checks a list; each entry is (id, [(file, gain) of each source])."""
    if not folder.is_dir():
        raise UserError(
            f"The data folder {folder} does not exist: "
            "give the folder that holds LibriSpeech's splits as data_folder."
        )
    rows = read_table(path, columns=("mixture_ID", "source_1_path", "source_1_gain"))
    found = sum(bool(re.fullmatch(r"source_\d+_path", column)) for column in rows[0])
    if found != num_spks:
        raise UserError(
            f"The list {path} has {found} sources per mixture, but num_spks is "
            f"{num_spks}: change one of them."
        )
    read_table(path, [f"source_{i}_gain" for i in range(1, num_spks + 1)])

    opened: dict[str, AudioFile] = {}  # a recording takes part in many mixtures
    entries = []
    for row in rows:
        sources = []
        for i in range(1, num_spks + 1):
            name, gain = row[f"source_{i}_path"], row[f"source_{i}_gain"]
            if name not in opened:
                opened[name] = open_audio(folder / name)
            sources.append((opened[name], parse_gain(gain, path, row["mixture_ID"])))
        entries.append((row["mixture_ID"], sources))
    return entries


def parse_gain(text: str, path: Path, id: str) -> float:
    """A gain as a number, or a sentence that says which one is none."""
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"The gain {text!r} of mixture {id} in the list {path} is not a number."
        ) from None

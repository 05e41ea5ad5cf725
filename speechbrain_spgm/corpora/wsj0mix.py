"""WSJ0-mix: made from WSJ0 and the official lists, or found on disk.

Hershey et al., "Deep clustering" (ICASSP 2016), made the corpus with a MATLAB script,
which ``plan_wsj0mix`` follows: every source is brought to an active speech level of
0 dB (measured at 8 kHz, whatever the rate of the output), then to the gain in the list;
sources are cut to the shortest or padded to the longest, and one factor brings the
largest sample of the mixture and its sources to 0.9.

Layout: ``2speakers/wav8k/min/tr/{mix,s1,s2}/<name1>_<gain1>_<name2>_<gain2>.wav``.

Axes: T samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_spgm.audio import AudioFile, open_all, resampled_length
from speechbrain_spgm.corpora.active_level import active_level
from speechbrain_spgm.corpora.generation import Plan, fit, load, resample
from speechbrain_spgm.corpora.scanning import find_set, scan, set_folder, source_names
from speechbrain_spgm.data.lists import mixed_length
from speechbrain_spgm.data.manifests import ManifestRow
from speechbrain_spgm.data.recordings import to_number
from speechbrain_spgm.errors import UserError

SPLITS = ("tr", "cv", "tt")
LEVEL_RATE = 8000  # Hz at which levels are measured
PEAK = 0.9
SPHERE = b"NIST_1A"  # the first bytes of WSJ0's own files


class ListedSource(NamedTuple):
    """A source in a line of a list: its path there, and its gain in dB as written."""

    path: str
    gain: str


@dataclass(frozen=True)
class WSJ0MixPlan(Plan):
    """One mixture of WSJ0-mix: the recordings and their gains in dB."""

    files: tuple[AudioFile, ...] = ()
    decibels: tuple[float, ...] = ()

    def render(self) -> dict[str, np.ndarray]:
        """The sources, [T] each, scaled together to the peak of WSJ0-mix."""
        sources = [
            fit(self._source(file, gain), self.samples)
            for file, gain in zip(self.files, self.decibels, strict=True)
        ]
        peak = max(np.abs(signal).max() for signal in (*sources, sum(sources)))
        if peak == 0:
            raise UserError(
                f"The mixture {self.id} is silent: take it out of the list."
            )
        sources = [PEAK / peak * source for source in sources]
        return dict(zip(self.made_from, sources, strict=True))

    def _source(self, file: AudioFile, gain: float) -> np.ndarray:
        """A whole recording at its gain above an active level of 0 dB."""
        samples = load(file)
        level = active_level(resample(samples, file.rate, LEVEL_RATE), LEVEL_RATE)
        if level == 0:
            raise UserError(
                f"The recording {file.path} is silent, so it has no level to "
                "normalise: take it out of the list."
            )
        samples = resample(samples, file.rate, self.sample_rate)
        return 10 ** (gain / 20) / math.sqrt(level) * samples


def plan_wsj0mix(
    wsj0: str | Path,
    list_path: str | Path,
    output: str | Path,
    split: str,
    sample_rate: int = 8000,
    mode: str = "min",
) -> list[WSJ0MixPlan]:
    """Says how to make one split; ``generate`` makes it.

    Arguments
    ---------
    wsj0 : str or Path
        The folder that holds ``wsj0/si_tr_s`` and so on as WAV files, or ``wsj0``
        itself.
    list_path : str or Path
        The official list, such as ``mix_2_spk_tr.txt``.
    output : str or Path
        ``2speakers`` (or ``3speakers``, ...) is made in it.
    split : str
        Name of the split's folder: tr, cv or tt.
    sample_rate : int
        Rate of the files in Hz.
    mode : str
        min or max.

    Returns
    -------
    list of WSJ0MixPlan
        In the order of the list; the same line twice counts once.

    Raises
    ------
    UserError
        If the list is missing or wrong, or a recording is missing or unreadable.
    """
    lines = list(dict.fromkeys(read_mix_list(list_path)))
    names = sorted({source.path for line in lines for source in line})
    paths = find_recordings(Path(wsj0), names)
    files = dict(zip(names, open_all(paths), strict=True))

    parts = source_names(len(lines[0]))
    folder = set_folder(output, f"{len(parts)}speakers", sample_rate, mode) / split
    plans = []
    for line in lines:
        sources = tuple(files[source.path] for source in line)
        lengths = [resampled_length(f.frames, f.rate, sample_rate) for f in sources]
        made_from = {
            part: f"{source.path} at {source.gain} dB ({file.frames} at {file.rate} Hz)"
            for part, source, file in zip(parts, line, sources, strict=True)
        }
        plans.append(
            WSJ0MixPlan(
                id="_".join(f"{Path(path).stem}_{gain}" for path, gain in line),
                folder=folder,
                sample_rate=sample_rate,
                samples=mixed_length(lengths, mode),
                made_from=made_from,
                mixtures={"mix": parts},
                files=sources,
                decibels=tuple(float(source.gain) for source in line),
            )
        )
    return plans


def read_mix_list(path: str | Path) -> list[tuple[ListedSource, ...]]:
    """The sources, as many on each line, of a list of lines ``path gain path gain``."""
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"The list {path} does not exist.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"The list {path} cannot be read ({error.strerror}): check its rights."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"The list {path} is not a text file.") from None
    lines: list[tuple[ListedSource, ...]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        sources = tuple(
            ListedSource(name, gain)
            for name, gain in zip(words[::2], words[1::2], strict=False)
        )
        if len(words) % 2 or len(sources) < 2:
            raise UserError(
                f"Line {number} of the list {path} is not path gain path gain ...: "
                f"{line.strip()!r}."
            )
        for source in sources:
            if math.isnan(to_number(source.gain)):
                raise UserError(
                    f"Line {number} of the list {path} has the gain {source.gain!r}, "
                    "which is not a number of dB."
                )
        if lines and len(lines[0]) != len(sources):
            raise UserError(
                f"Line {number} of the list {path} has {len(sources)} sources, but the "
                f"first one has {len(lines[0])}."
            )
        lines.append(sources)
    if not lines:
        raise UserError(f"The list {path} is empty.")
    return lines


def find_recordings(wsj0: Path, names: Iterable[str]) -> list[Path]:
    """The files that a list names, which must be there and no sphere files.

    Lists begin paths with ``wsj0/``; the user may give that folder or the one above.
    """
    if not wsj0.is_dir():
        raise UserError(
            f"The WSJ0 folder {wsj0} does not exist: give the folder that holds wsj0/ "
            "as WAV files."
        )
    paths = []
    for name in names:
        path = wsj0 / name
        if not (wsj0 / "wsj0").is_dir():
            path = wsj0 / name.removeprefix("wsj0/")
        check_recording(path)
        paths.append(path)
    return paths


def check_recording(path: Path) -> None:
    """Refuses WSJ0's own compressed files, and says how to convert them."""
    originals = [path.with_suffix(end) for end in (".wv1", ".wv2", ".WV1", ".WV2")]
    if path in originals or not path.is_file():
        sphere = next((file for file in originals if file.is_file()), None)
    else:
        with path.open("rb") as file:
            sphere = path if file.read(len(SPHERE)) == SPHERE else None
    if sphere is not None:
        raise UserError(
            f"The recording {sphere} is a NIST sphere file: convert WSJ0 to WAV files "
            "in the same folders first, with sph2pipe -f wav NAME.wv1 NAME.wav."
        )
    if not path.is_file():
        raise UserError(
            f"The recording {path} does not exist: give the folder that holds wsj0/ as "
            "WAV files."
        )


def scan_wsj0mix(
    data_folder: str | Path,
    split: str,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
) -> list[ManifestRow]:
    """The mixtures of a split of an existing WSJ0-mix folder, as ``scan`` gives them.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds ``2speakers`` and so on, or one further down.
    split : str
        tr, cv or tt.
    num_spks, sample_rate, mode
        What kind of mixtures.
    """
    mixed_length([1], mode)
    tail = set_folder("", f"{num_spks}speakers", sample_rate, mode).parts
    folder = find_set(Path(data_folder), tail, split, "mix")
    return scan(folder, "mix", source_names(num_spks), sample_rate)

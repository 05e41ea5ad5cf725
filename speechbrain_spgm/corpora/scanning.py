"""From a folder of mixtures on disk to the rows of a manifest.

WSJ0-mix and LibriMix lie alike: ``<split>/<mix>/<id>.wav`` beside ``<split>/s1``,
``<split>/s2``, and so on, with the same file names in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechbrain_spgm.audio import AudioFile, open_all
from speechbrain_spgm.data.lists import NOISY
from speechbrain_spgm.data.manifests import ManifestRow
from speechbrain_spgm.data.recordings import AUDIO_SUFFIXES
from speechbrain_spgm.errors import UserError


def source_names(num_spks: int) -> tuple[str, ...]:
    """The names of the sources' folders.

    Example
    -------
    >>> source_names(3)
    ('s1', 's2', 's3')
    """
    return tuple(f"s{i}" for i in range(1, num_spks + 1))


def set_folder(output: str | Path, name: str, sample_rate: int, mode: str) -> Path:
    """Where a set of this kind has its splits, below the output folder.

    Example
    -------
    >>> set_folder("data", "Libri3Mix", 16000, "max").as_posix()
    'data/Libri3Mix/wav16k/max'
    """
    return Path(output, name, f"wav{sample_rate // 1000}k", mode)


def find_set(data_folder: Path, tail: Sequence[str], split: str, mixture: str) -> Path:
    """The folder of a split, whichever of the folders above it the user gave.

    ``tail`` are the folders between the corpus and its splits (``2speakers, wav8k,
    min``), ``mixture`` the one of mixtures that must be in the split. An error names
    what is there instead.
    """
    if not data_folder.is_dir():
        raise UserError(
            f"The data folder {data_folder} does not exist: give the folder that holds "
            f"{'/'.join(tail)} as data_folder."
        )
    wanted = (*tail, split, mixture)
    found = [deepest(data_folder, wanted[start:]) for start in range(len(tail) + 1)]
    best = max(found, key=lambda folder: len(folder.parts))
    if best.parts[-2:] == (split, mixture):
        return best.parent
    there = sorted(path.name for path in best.iterdir() if path.is_dir())
    raise UserError(
        f"The data folder {data_folder} has no {'/'.join(wanted)}: {best} holds "
        f"{'only ' + ', '.join(there[:8]) if there else 'no folders'}; change "
        "data_folder or what names that folder (num_spks, sample_rate, mixture_mode, "
        "train_set, ...)."
    )


def deepest(folder: Path, parts: Sequence[str]) -> Path:
    """The folder as far down along the parts as there are folders."""
    for part in parts:
        if not (folder / part).is_dir():
            break
        folder = folder / part
    return folder


def scan(
    folder: Path, mixture: str, sources: Sequence[str], sample_rate: int
) -> list[ManifestRow]:
    """The mixtures of a split, sorted by id, after a look into every file's header.

    ``mixture`` and ``sources`` are folders in the split's; beside them may be noise.
    Refused is a file that is missing or left over, truncated, at another rate in Hz or
    not as long as its mixture, and a further source.
    """
    further = f"s{len(sources) + 1}"
    if mixture != "mix_single" and (folder / further).is_dir():
        raise UserError(
            f"The folder {folder} has a source {further}, but num_spks is "
            f"{len(sources)}: change num_spks or data_folder."
        )
    noisy = mixture in NOISY and (folder / "noise").is_dir()
    parts = [mixture, *sources, *(["noise"] if noisy else [])]
    files = [open_folder(folder / part) for part in parts]

    rows = []
    for id, mix in files[0].items():
        for part, members in zip(parts, files, strict=True):
            check_member(id, mix, members.get(id), folder / part, sample_rate)
        first, *others = [members[id].path for members in files]
        seconds = mix.frames / mix.rate
        noise = others.pop() if noisy else None
        rows.append(ManifestRow(id, seconds, first, tuple(others), noise))
    for part, members in zip(parts, files, strict=True):
        for id in sorted(members.keys() - files[0].keys()):
            raise UserError(
                f"The file {members[id].path} belongs to no mixture, {folder / mixture}"
                f" has {len(files[0])} and {folder / part} {len(members)}: copy or "
                "prepare the data again."
            )
    return rows


def open_folder(folder: Path) -> dict[str, AudioFile]:
    """The audio files of a folder by their names without the ending, sorted."""
    paths = sorted(
        (
            path
            for path in folder.glob("[!.]*")
            if path.suffix.lower() in AUDIO_SUFFIXES
        ),
        key=lambda path: path.stem,
    )
    if not paths:
        raise UserError(
            f"The folder {folder} does not exist or has no WAV or FLAC files: check "
            "data_folder and num_spks."
        )
    for before, path in zip(paths, paths[1:], strict=False):
        if before.stem == path.stem:
            raise UserError(f"{before} and {path} share a name: remove one of them.")
    return {file.path.stem: file for file in open_all(paths)}


def check_member(
    id: str, mix: AudioFile, file: AudioFile | None, folder: Path, sample_rate: int
) -> None:
    """Makes sure that a mixture or source is there, as long and at the right rate."""
    if file is None:
        raise UserError(
            f"The file {folder / id}{mix.path.suffix} is missing, but {mix.path} is "
            "there: copy or prepare the data again."
        )
    if file.rate != sample_rate:
        raise UserError(
            f"The audio file {file.path} is at {file.rate} Hz, but sample_rate is "
            f"{sample_rate}: change sample_rate or data_folder."
        )
    if file.frames != mix.frames:
        raise UserError(
            f"The audio file {file.path} has {file.frames} samples, but its mixture "
            f"{mix.path} has {mix.frames}: copy or prepare the data again."
        )

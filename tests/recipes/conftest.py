"""Small corpora in the layouts of LibriSpeech, LibriMix, WSJ0 and WSJ0-mix."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 8000
LIBRIMIX = {"train-360": 3, "train-100": 3, "dev": 2, "test": 2}
WSJ0MIX = {"tr": 3, "cv": 2, "tt": 2}


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the flags in LibriMix.csv and WSJ0Mix.csv are relative to."""
    folder = tmp_path_factory.mktemp("corpora")
    samples = folder / "tests" / "samples"
    write_librispeech(samples / "LibriSpeech")
    voices(samples / "wsj0" / "si_tr_s", ["011", "012", "013"])
    voices(samples, ["noise"])
    write_own_corpus(samples / "own")
    for spks in (2, 3):
        name = f"Libri{spks}Mix/wav8k/min"
        for split, number in LIBRIMIX.items():
            write_mixtures(samples / "LibriMix" / name / split, spks, number, True)
        name = f"{spks}speakers/wav8k/min"
        for split, number in WSJ0MIX.items():
            write_mixtures(samples / "wsj0-mix" / name / split, spks, number, False)
    return folder


def write_librispeech(folder: Path) -> None:
    """Two splits of three speakers, and a list of two mixtures of each split."""
    for split, speakers in (("train-clean-100", "123"), ("dev-clean", "456")):
        paths = [
            voices(folder / split / speaker, ["1"], f"{speaker}-1-0000.flac")[0]
            for speaker in speakers
        ]
        name = "dev.csv" if split == "dev-clean" else "train.csv"
        with open(folder.parent / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            columns = [
                f"source_{i}_{what}" for i in (1, 2) for what in ("path", "gain")
            ]
            writer.writerow(["mixture_ID", *columns])
            for other in paths[1:]:
                pair = [
                    path.relative_to(folder).as_posix() for path in (other, paths[0])
                ]
                writer.writerow([f"{other.stem}_x", pair[0], 0.5, pair[1], 0.25])


def write_own_corpus(folder: Path) -> None:
    """A corpus that no recipe knows, with manifests."""
    for split in ("train", "valid", "test"):
        write_mixtures(folder / split, 2, 3, False)
        lines = ["id,duration,mix,s1,s2"]
        for index in range(3):
            files = [f"{split}/{part}/{index}.wav" for part in ("mix", "s1", "s2")]
            seconds = (4000 + 500 * index) / RATE
            lines.append(",".join([f"own{index}", str(seconds), *files]))
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    whole = (folder / "test" / "mix" / "0.wav").read_bytes()
    (folder / "test" / "mix" / "cut.wav").write_bytes(whole[: len(whole) // 2])
    text = (folder / "test.csv").read_text()
    for name, file in (("missing", "gone.wav"), ("truncated", "cut.wav")):
        changed = text.replace("mix/0.wav", f"mix/{file}")
        (folder / f"{name}.csv").write_text(changed)


def voices(folder: Path, speakers: list[str], name: str = "1.wav") -> list[Path]:
    """A recording of a bit more than a second in the folder of each speaker."""
    paths = []
    for speaker in speakers:
        path = folder / speaker / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = int.from_bytes(str(path.relative_to(folder.parent)).encode(), "big")
        rng = np.random.default_rng(seed)
        wave = rng.uniform(-0.5, 0.5, 9000 + int(rng.integers(4000)))
        soundfile.write(path, wave, RATE)
        paths.append(path)
    return paths


def write_mixtures(folder: Path, spks: int, number: int, noisy: bool) -> None:
    """A split: ``number`` mixtures of unequal lengths and their parts."""
    rng = np.random.default_rng(spks)
    for index in range(number):
        length = 4000 + 500 * index
        sources = [rng.uniform(-0.2, 0.2, length) for _ in range(spks)]
        noise = rng.uniform(-0.1, 0.1, length)
        parts = {f"s{i}": source for i, source in enumerate(sources, 1)}
        parts["mix_clean" if noisy else "mix"] = sum(sources)
        if noisy:
            parts["noise"] = noise
            parts["mix_both"] = sum(sources) + noise
            parts["mix_single"] = sources[0] + noise
        for part, wave in parts.items():
            path = folder / part / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, RATE, subtype="FLOAT")

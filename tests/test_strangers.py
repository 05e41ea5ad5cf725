"""Mixtures from recordings of one's own."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import strangers
from speechbrain_spgm.data.levels import loudness
from speechbrain_spgm.data.manifests import read_manifest

RATE = 16000


def record(path: Path, seconds: float, rng: np.random.Generator) -> None:
    """A file of noise between half seconds of silence."""
    noise = rng.uniform(-0.4, 0.4, round(seconds * RATE))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        path, np.pad(noise, RATE // 2), RATE, subtype="DOUBLE", format="WAV"
    )


def write_list(folder: Path, speakers: list[str], files: int = 3) -> Path:
    rng = np.random.default_rng(0)
    lines = ["path,speaker"]
    for speaker in speakers:
        for i in range(files):
            record(folder / speaker / f"{i}.wav", 0.8, rng)
            lines.append(f"{speaker}/{i}.wav,{speaker}")
    path = folder / "voices.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(voices: Path, output: Path, *more: str) -> None:
    settings = ["--mixtures", "4", "--seconds", "1", "--rate", str(RATE), *more]
    strangers.main(["--voices", str(voices), "--output", str(output), *settings])


def test_short_recordings_are_joined_without_their_silence_and_mixed(
    tmp_path: Path,
) -> None:
    run(write_list(tmp_path, ["ann", "bob", "cy"]), tmp_path / "out")
    rows = read_manifest(tmp_path / "out" / "mixtures.csv", num_spks=2)
    assert len(rows) == 4 and len({row.id for row in rows}) == 4
    for row in rows:
        mix, *sources = (
            soundfile.read(file, dtype="int16")[0].astype(int)
            for file in (row.mix, *row.sources)
        )
        assert np.array_equal(sum(sources), mix) and len(mix) == RATE
        first, second = (name.rsplit("-", 1)[0] for name in row.id.split("_"))
        assert first != second
        for source in sources:
            assert -33.1 < loudness(source / 32768, RATE) < -24.9
            quiet = np.abs(source) < 0.001 * np.abs(source).max()
            assert quiet.mean() < 0.01  # 0.8 s of noise, then the next recording's


def test_what_would_clip_is_turned_down(tmp_path: Path) -> None:
    """Clicks, whose sum would be above full scale, and a voice at -65 LUFS."""
    times = np.arange(RATE) / RATE
    clicks = 0.9 * (np.arange(RATE) % 1000 == 0)
    quiet = 8e-4 * np.sin(2 * np.pi * 1000 * times)
    for name, samples in (("ann", clicks), ("bob", clicks), ("cy", quiet)):
        soundfile.write(tmp_path / f"{name}.wav", np.tile(samples, 4), RATE, "DOUBLE")
    rows = "\n".join(f"{name}.wav,{name}" for name in ("ann", "bob", "cy"))
    (tmp_path / "voices.csv").write_text(f"path,speaker\n{rows}\n")
    run(tmp_path / "voices.csv", tmp_path / "out", "--mixtures", "12")
    for row in read_manifest(tmp_path / "out" / "mixtures.csv"):
        mix, *sources = (
            soundfile.read(file, dtype="int16")[0].astype(int)
            for file in (row.mix, *row.sources)
        )
        assert np.array_equal(sum(sources), mix) and np.abs(mix).max() < 0.91 * 2**15
        for source in sources:
            assert loudness(source / 32768, RATE) > -45


def test_the_seed_decides(tmp_path: Path) -> None:
    voices = write_list(tmp_path, ["ann", "bob", "cy"])
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(voices, tmp_path / name, "--seed", seed)
    a, b, c = ((tmp_path / n / "mixtures.csv").read_text() for n in "abc")
    assert a == b != c


def test_one_speaker_is_too_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voices = write_list(tmp_path, ["ann", "bob"], files=1)
    with pytest.raises(SystemExit) as stopped:
        run(voices, tmp_path / "out")
    assert stopped.value.code == 2
    assert "0 of 2 speakers have 1.0 s of speech" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

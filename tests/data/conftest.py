"""A small corpus in LibriSpeech's layout, every speaker with a pitch of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 8000


@pytest.fixture
def write_tone(tmp_path) -> Callable[..., Path]:
    """Writes <tmp_path>/<split>/<speaker>/<chapter>/<name>.flac, a sine."""

    def write(
        speaker: str, hertz: float, seconds: float, split: str = "train", rate=RATE
    ) -> Path:
        folder = tmp_path / split / speaker / "1"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{len(list(folder.iterdir()))}.flac"
        times = np.arange(round(seconds * rate)) / rate
        soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * times), rate)
        return path

    return write

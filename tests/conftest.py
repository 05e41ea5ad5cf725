"""Fixtures every test may use."""

import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.models.config import build
from tests.hub_server import TOKEN, serve

RATE = 8000

# A small network, as config.json of the published layout describes it.
CONFIG = {
    "model_type": "spgm",
    "config_name": "random",
    "sample_rate": 8000,
    "encoder_kernel_size": 16,
    "encoder_in_nchannels": 1,
    "encoder_out_nchannels": 16,
    "masknet_chunksize": 24,
    "masknet_numlayers": 2,
    "masknet_norm": "ln",
    "masknet_useextralinearlayer": False,
    "masknet_extraskipconnection": True,
    "masknet_numspks": 2,
    "intra_numlayers": 1,
    "intra_nhead": 2,
    "intra_dffn": 32,
    "intra_dropout": 0.1,
    "intra_use_positional": True,
    "intra_norm_before": True,
    "spgm_block_pool": "att",
    "spgm_block_att_h": None,
    "spgm_block_att_dropout": 0,
}
CARD = {"licence": "CC0-1.0", "training_data": "none", "quality": {"SI-SDRi": "0 dB"}}


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def config() -> dict:
    """The fields of config.json; a test may change its copy."""
    return dict(CONFIG)


@pytest.fixture
def untagged_mp3() -> bytes:
    """200 silent frames of 576 samples at 11025 Hz, 16 kbit/s; libsndfile guesses more.

    It takes all frames to be as short as the first, of 104 bytes; padding makes it 105.
    """
    first, padded = b"\xff\xe3\x20\xc4" + bytes(100), b"\xff\xe3\x22\xc4" + bytes(101)
    return first + 199 * padded


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real recordings and golden tensors beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SPGM_RECORDINGS", beside))
    if not folder.is_dir():
        pytest.skip(
            "needs recordings of single talkers (LibriSpeech's) and golden tensors "
            "that are not in the repository: name their folder in SPGM_RECORDINGS"
        )
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the published layout; not to be changed."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published") / "random"
    save_published(folder, *build(CONFIG), CONFIG, CARD)
    return folder


@pytest.fixture(scope="session")
def model(published: Path) -> SPGMSeparation:
    """The model in that folder."""
    return SPGMSeparation.from_pretrained(published, device="cpu")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub on this machine, in place of the real one; waiting costs no time."""
    constants = huggingface_hub.constants
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        yield hub
        huggingface_hub.close_session()


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

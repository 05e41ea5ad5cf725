"""A small model with random weights, as the published layout stores it."""

from pathlib import Path

import huggingface_hub
import pytest
import torch

from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.inference.published import build
from tests.conftest import CONFIG
from tests.hub_server import TOKEN, serve

CARD = {"licence": "CC0-1.0", "training_data": "none", "quality": {"SI-SDRi": "0 dB"}}


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

"""A small model with random weights, as the published layout stores it."""

from pathlib import Path

import pytest
import torch

from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.inference.published import build
from tests.conftest import CONFIG

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

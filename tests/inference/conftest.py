"""A small model with random weights, as the published layout stores it."""

from pathlib import Path

import pytest
import torch

from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.inference.published import build

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


@pytest.fixture
def config() -> dict:
    """The fields of config.json; a test may change its copy."""
    return dict(CONFIG)


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

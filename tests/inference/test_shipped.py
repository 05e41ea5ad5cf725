"""The model in the package: loads offline, says what it is, separates strangers."""

from pathlib import Path
from statistics import fmean

import torch
from torchmetrics.functional.audio import (
    permutation_invariant_training,
    scale_invariant_signal_distortion_ratio,
)

from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.models.sources import DEFAULT_MODEL, SHIPPED_MODELS


def test_card_states_what_a_user_must_know() -> None:
    card = SPGMSeparation.from_pretrained().hparams.config["speechbrain_spgm"]
    assert {"licence", "training_data", "seed", "quality"} <= card.keys()
    text = (SHIPPED_MODELS / DEFAULT_MODEL / "README.md").read_text()
    assert card["quality"]["SI-SDRi"].split()[0] in text


def test_improves_mixtures_of_unheard_speakers(shared: Path) -> None:
    voices = shared / "voices"
    mixtures = MixtureList(
        voices / "LibriMix-metadata" / "libri2mix_test-clean.csv",
        voices / "LibriSpeech",
        num_spks=2,
        sample_rate=8000,
    )
    model = SPGMSeparation.from_pretrained(device="cpu")
    gains = []
    for index in range(0, len(mixtures), 15):  # 20 of 300
        mixture = mixtures[index]
        references = mixture.sources.T.unsqueeze(0)  # [1, spks, T]
        estimates = model.separate_batch(mixture.mix.unsqueeze(0)).transpose(1, 2)
        after, _ = permutation_invariant_training(
            estimates, references, scale_invariant_signal_distortion_ratio
        )
        before = scale_invariant_signal_distortion_ratio(
            mixture.mix.expand_as(references), references
        )
        gains.append(float(after - before.mean()))
    assert torch.tensor(gains).isfinite().all()
    assert fmean(gains) >= 2

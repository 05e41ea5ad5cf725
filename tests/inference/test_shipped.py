"""The model in the package: loads offline, says what it is, separates strangers."""

from pathlib import Path
from statistics import fmean

import pytest
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
    text = (SHIPPED_MODELS / DEFAULT_MODEL / "README.md").read_text(encoding="utf-8")
    assert card["quality"]["SI-SDRi"].split()[0] in text


def test_separates_mixtures_of_unheard_speakers(shared: Path) -> None:
    """As well as it did, and better with two views; three seconds of each mixture."""
    voices = shared / "voices"
    mixtures = MixtureList(
        voices / "LibriMix-metadata" / "libri2mix_test-clean.csv",
        voices / "LibriSpeech",
        num_spks=2,
        sample_rate=8000,
    )
    model = SPGMSeparation.from_pretrained(device="cpu")
    gains: dict[int, list[float]] = {1: [], 2: []}
    for index in range(0, len(mixtures), 60):  # 5 of 300
        mix = mixtures[index].mix[:24_000]
        references = mixtures[index].sources[:24_000].T.unsqueeze(0)  # [1, spks, T]
        before = scale_invariant_signal_distortion_ratio(
            mix.expand_as(references), references
        )
        for views in gains:
            estimates = model.separate_batch(mix.unsqueeze(0), views=views)
            after, _ = permutation_invariant_training(
                estimates.transpose(1, 2),
                references,
                scale_invariant_signal_distortion_ratio,
            )
            gains[views].append(float(after - before.mean()))
    one, two = map(fmean, gains.values())
    assert one == pytest.approx(8.778, abs=0.02)
    assert two - one > 0.1

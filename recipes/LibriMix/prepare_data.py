"""LibriMix: from folders and lists to the datasets that train.py needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechbrain_spgm.data import (
    DynamicMixing,
    MixtureList,
    UserError,
    find_voices,
    read_voices,
)


def prepare_training(hparams: Mapping[str, Any]) -> DynamicMixing | MixtureList:
    """The training set: mixed dynamically, or the mixtures of ``train_list``.

    Arguments
    ---------
    hparams : dict
        The built yaml of a LibriMix recipe.

    Returns
    -------
    DynamicMixing or MixtureList
        According to ``dynamic_mixing``.

    Raises
    ------
    UserError
        If a folder, list or recording is missing or wrong.
    """
    if not hparams["dynamic_mixing"]:
        if hparams["train_list"] is None:
            raise UserError("With dynamic_mixing False, give a --train_list.")
        return prepare_list(
            hparams,
            "train_list",
            segment_seconds=hparams["segment_seconds"],
            seed=hparams["seed"],
        )
    voices = find_voices(hparams["data_folder"], hparams["train_splits"])
    if hparams["extra_voices"] is not None:
        voices += read_voices(hparams["extra_voices"], split="train")
    return DynamicMixing(
        voices,
        num_spks=hparams["num_spks"],
        sample_rate=hparams["sample_rate"],
        segment_seconds=hparams["segment_seconds"],
        mixtures_per_epoch=hparams["mixtures_per_epoch"],
        loudness_db=hparams["loudness_db"],
        speeds=hparams["speeds"],
        cache_audio=hparams["cache_audio"],
        seed=hparams["seed"],
    )


def prepare_list(hparams: Mapping[str, Any], key: str, **options: Any) -> MixtureList:
    """The mixtures of the list that ``hparams[key]`` names."""
    return MixtureList(
        hparams[key],
        hparams["data_folder"],
        num_spks=hparams["num_spks"],
        sample_rate=hparams["sample_rate"],
        mode=hparams["mixture_mode"],
        **options,
    )


def check_speakers(train: DynamicMixing | MixtureList, held_out: MixtureList) -> None:
    """Makes sure that no speaker of a validation or test list is trained on."""
    shared = sorted(train.speakers & held_out.speakers)
    if shared:
        raise UserError(
            f"Speaker {shared[0]} of the list {held_out.path} is also among the "
            "training recordings: separate their splits."
        )

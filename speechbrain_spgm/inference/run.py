"""From a finished run of a recipe to a model that anyone can load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain_spgm.inference.published import config_of, save_published


def save_model(hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Writes ``<output_folder>/model`` in the published layout.

    Arguments
    ---------
    hparams : mapping
        The built yaml of a recipe: ``modules`` (with the weights to save),
        ``sample_rate``, ``output_folder``, ``seed``, ``model_name`` and ``card``, what
        ``spgm info`` shows: licence, training data and so on.
    summary : mapping
        What the test measured, from ``training.evaluation.summarise``.

    Raises
    ------
    ModelError
        If the published layout cannot express the modules.
    """
    si_sdri = summary["si_sdri"]
    quality = {
        "SI-SDRi": f"{si_sdri['mean']:.2f} dB ± {si_sdri['ci95']:.2f} (95% CI)",
        "mixtures": summary["n"],
    }
    modules = dict(hparams["modules"])
    config = config_of(
        **modules, sample_rate=hparams["sample_rate"], name=hparams["model_name"]
    )
    card = {**hparams["card"], "seed": hparams["seed"], "quality": quality}
    save_published(
        Path(hparams["output_folder"]) / "model", **modules, config=config, card=card
    )

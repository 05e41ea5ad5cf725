"""From a finished run of a recipe to a model that anyone can load."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from torch import nn

from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.metrics.scores import as_quality
from speechbrain_spgm.models.config import config_of, loading
from speechbrain_spgm.models.convert import write_speechbrain
from speechbrain_spgm.models.published import (
    CARD,
    YAML_FILE,
    ModelError,
    save_published,
)

logger = logging.getLogger(__name__)


def save_model(hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Writes ``<output_folder>/model``, what ``spgm separate --model`` takes.

    The folder has the published layout where that can express the modules, else, as for
    SepFormer, the layout of SpeechBrain's own models; of a network with SPGM blocks a
    warning says why.

    Arguments
    ---------
    hparams : mapping
        The built yaml of a recipe: ``modules`` (with the weights to save),
        ``sample_rate``, ``num_spks``, ``output_folder``, ``seed``, ``model_name`` and
        ``card``, what ``spgm info`` shows: licence, training data and so on. The
        output folder holds the run's hyperparams.yaml.
    summary : mapping
        What the test measured, from ``metrics.scores.summarise``.
    """
    si_sdri = summary["si_sdri"]
    quality = {"SI-SDRi": as_quality(si_sdri), "mixtures": summary["n"]}
    card = {**hparams["card"], "seed": hparams["seed"], "quality": quality}
    folder, name = Path(hparams["output_folder"]) / "model", hparams["model_name"]
    modules = dict(hparams["modules"])
    try:
        config = config_of(**modules, sample_rate=hparams["sample_rate"], name=name)
    except ModelError as reason:
        if any(isinstance(part, SPGMBlock) for part in modules["masknet"].modules()):
            logger.warning("%s is written in SpeechBrain's layout: %s", folder, reason)
        # The card is not in the yaml, where SpeechBrain would parse its words.
        folder.mkdir(parents=True, exist_ok=True)
        state = nn.ModuleDict(modules).state_dict()
        fields = {"config_name": name, CARD: card}
        write_speechbrain(folder, state, fields, _yaml(hparams))
    else:
        save_published(folder, **modules, config=config, card=card)


def _yaml(hparams: Mapping[str, Any]) -> str:
    """What SpeechBrain builds the modules from: their definitions in the run's yaml."""
    yaml, text, modules = YAML(), StringIO(), hparams["modules"]
    run = yaml.load(Path(hparams["output_folder"]) / YAML_FILE)
    definition = {
        "sample_rate": hparams["sample_rate"],
        "num_spks": hparams["num_spks"],
        **{name: run["modules"][name] for name in modules},
    }
    yaml.dump(definition, text)
    return text.getvalue() + loading({name: name for name in modules})

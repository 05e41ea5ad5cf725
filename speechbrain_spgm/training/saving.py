"""From a finished run of a recipe to a model that anyone can load."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from speechbrain_spgm.files import replacing
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.metrics.scores import as_quality
from speechbrain_spgm.models.config import CONFIG_FILE, config_of
from speechbrain_spgm.models.published import CARD, ModelError, save_published

logger = logging.getLogger(__name__)

# What stands below the network's definition in a folder that SpeechBrain can load.
PRETRAINER = """
modules:
    encoder: !ref <encoder>
    masknet: !ref <masknet>
    decoder: !ref <decoder>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        encoder: !ref <encoder>
        masknet: !ref <masknet>
        decoder: !ref <decoder>
"""


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
        What the test measured, from ``training.evaluation.summarise``.
    """
    si_sdri = summary["si_sdri"]
    quality = {
        "SI-SDRi": as_quality(si_sdri),
        "mixtures": summary["n"],
    }
    card = {**hparams["card"], "seed": hparams["seed"], "quality": quality}
    folder, name = Path(hparams["output_folder"]) / "model", hparams["model_name"]
    modules = dict(hparams["modules"])
    try:
        config = config_of(**modules, sample_rate=hparams["sample_rate"], name=name)
    except ModelError as reason:
        if any(isinstance(part, SPGMBlock) for part in modules["masknet"].modules()):
            logger.warning("%s is written in SpeechBrain's layout: %s", folder, reason)
        save_for_speechbrain(folder, hparams, {"config_name": name, CARD: card})
    else:
        save_published(folder, **modules, config=config, card=card)


def save_for_speechbrain(
    folder: str | Path, hparams: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Writes a model as SpeechBrain's ``SepformerSeparation.from_hparams`` loads it.

    That is hyperparams.yaml, with the definitions of the three modules from the run's
    own, encoder.ckpt, masknet.ckpt and decoder.ckpt, and config.json for ``spgm info``.

    Arguments
    ---------
    folder : str or Path
        Made if need be; files of these names are replaced.
    hparams : mapping
        See ``save_model``.
    config : mapping
        ``config_name`` and the card, for ``spgm info``.
    """
    folder, modules = Path(folder), hparams["modules"]
    yaml = YAML()
    run = yaml.load(Path(hparams["output_folder"]) / "hyperparams.yaml")
    definition = {
        "sample_rate": hparams["sample_rate"],
        "num_spks": hparams["num_spks"],
        **{name: run["modules"][name] for name in modules},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        state = {key: value.cpu() for key, value in module.state_dict().items()}
        with replacing(folder / f"{name}.ckpt") as temporary:
            torch.save(state, temporary)
    with replacing(folder / "hyperparams.yaml") as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            yaml.dump(definition, file)
            file.write(PRETRAINER)
    # Not in the yaml, where SpeechBrain would parse the words of the card.
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

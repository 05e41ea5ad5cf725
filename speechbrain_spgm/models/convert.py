"""Models in SpeechBrain's layout, and the way from one layout to the other.

The published layout is config.json and model.safetensors (read is pytorch_model.bin
too). SpeechBrain's is
hyperparams.yaml and a .ckpt for the encoder, the mask network and the decoder; beside
them config.json keeps the card and what the yaml cannot say. Both hold the same tensors
under the same names, so that a conversion changes no bit of them, unless it is asked to
round them to float16.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from speechbrain.lobes.models.dual_path import Decoder, Dual_Path_Model, Encoder
from torch import Tensor, nn

from speechbrain_spgm.files import replacing, replacing_folder
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.models.config import (
    CONFIG_FILE,
    FIELDS,
    config_of,
    speechbrain_yaml,
    write_json,
)
from speechbrain_spgm.models.published import (
    WEIGHTS_FILE,
    WEIGHTS_FILES,
    YAML_FILE,
    ModelError,
    find_weights,
    found,
    load_published,
    read_published,
    write_published,
)
from speechbrain_spgm.models.safe_yaml import load_safely
from speechbrain_spgm.models.speechbrain import (
    PARTS,
    card_config,
    load_weights,
    read_ckpt,
)

README_FILE = "README.md"
INTERFACE = "speechbrain_interface"  # how the Hub knows SpeechBrain's models
INTERFACE_CLASS = "SepformerSeparation"
MARK = ".converted.json"  # in folders that convert wrote, which it may replace


def write_speechbrain(
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    text: str | None = None,
) -> None:
    """Writes SpeechBrain's layout, each file whole or not at all.

    ``state`` has published names, ``config`` the card if there is one; ``text`` is the
    yaml, by default that of the config, whose fields must then be valid.
    """
    folder = Path(folder)
    for part in PARTS:
        own = {
            name.removeprefix(f"{part}."): value.detach().cpu().clone()
            for name, value in state.items()
            if name.startswith(f"{part}.")
        }
        with replacing(folder / f"{part}.ckpt") as temporary:
            with open(temporary, "wb") as file:  # by its name, that would be in it
                torch.save(own, file)
    with replacing(folder / YAML_FILE) as temporary:
        temporary.write_text(text or speechbrain_yaml(config), encoding="utf-8")
    write_json(folder / CONFIG_FILE, config)


def convert(
    find: Callable[[str], Path],
    source: str,
    target: str | Path,
    to: str,
    half: bool = False,
) -> None:
    """Writes a model in the other layout, with the same tensors and the same card.

    The folder appears whole or not at all. What is written is loaded again and must
    give the same voices as the source.

    Arguments
    ---------
    find : Callable
        From the name of a file of the source to its local path, see ``open_source``.
    source : str
        The source's name.
    target : str or Path
        The folder to write: new, empty, or what an earlier call wrote.
    to : str
        ``"published"`` or ``"speechbrain"``.
    half : bool
        Rounds the weights to float16: half the size. Then the source may be in the
        layout already. They are computed with in float32 as ever.

    Raises
    ------
    ModelError
        If the source is no model, the layout cannot express it, a weight is too large
        for float16, or the target folder holds anything else.
    """
    target = Path(target)
    check_target(target)
    state, config, parts = read_model(find, source, to, again=half)
    if half:
        state = {
            name: round_to_half(f"{name} of {source}", value)
            for name, value in state.items()
        }
        for part in PARTS:  # what is written is compared with the rounded source
            parts[part].half()
    with replacing_folder(target) as temporary:
        if to == "published":
            kept = {name: value for name, value in config.items() if name != INTERFACE}
            write_published(temporary, state, kept)
        else:
            fields = {**config, INTERFACE: INTERFACE_CLASS}
            write_speechbrain(temporary, state, fields)
        if card := found(find, README_FILE):
            shutil.copyfile(card, temporary / README_FILE)
        write_json(temporary / MARK, {"layout": to})
        check_same(temporary, to, state, parts, config)


def check_target(target: Path) -> None:
    """Refuses a folder that holds anything but an earlier conversion."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ModelError(f"{target} is no folder: give another one.")
    if not target.exists():
        return
    names = {path.name for path in target.iterdir()}
    own = {CONFIG_FILE, WEIGHTS_FILE, YAML_FILE, README_FILE, MARK}
    own |= {f"{part}.ckpt" for part in PARTS}
    if names and not (MARK in names and names <= own):
        raise ModelError(
            f"The folder {target} is not empty and no earlier conversion: "
            "give another one."
        )


def round_to_half(name: str, value: Tensor) -> Tensor:
    """A weight in float16; refuses what is beyond 65504.

    The relative error is at most 2^-11 (below 2^-14: an absolute of 2^-25).
    """
    rounded = value.half()
    if not rounded.isfinite().all():
        raise ModelError(
            f"{name} holds {value.abs().max().item():g}, too large for half precision: "
            "convert without --half."
        )
    return rounded


def read_model(
    find: Callable[[str], Path], source: str, to: str, again: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, nn.Module]]:
    """The tensors under their published names, the config and the parts of a model.

    ``again``: the source may be in the wanted layout already.
    """
    weights = find_weights(find)
    if weights is not None:
        done = to == "published" and weights.name == WEIGHTS_FILE and not again
        if done and not found(find, YAML_FILE) and found(find, CONFIG_FILE):
            raise ModelError(f"{source} is in the published layout already.")
        model, state, config = read_published(find(CONFIG_FILE).parent)
        kept = {name: value.float() for name, value in state.items()}
        model.load_state_dict(kept, assign=True)
        return state, config, {part: model[part] for part in PARTS}

    if not found(find, YAML_FILE):
        raise ModelError(
            f"{source} has no {', no '.join(WEIGHTS_FILES)} and no {YAML_FILE}: "
            "it is no model."
        )
    if to == "speechbrain" and not again:
        raise ModelError(f"{source} is in SpeechBrain's layout already.")
    hparams = load_safely(find, YAML_FILE)
    load_weights(hparams, source, find)
    parts = {part: hparams["modules"].get(part) for part in PARTS}
    config = _config(hparams, parts, card_config(find), source)
    return _ckpts(find, parts), config, parts


def _ckpts(
    find: Callable[[str], Path], parts: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    state = {}
    for part in PARTS:
        own = read_ckpt(find(f"{part}.ckpt"), parts[part].state_dict())
        state |= {f"{part}.{name}": value for name, value in own.items()}
    return state


def _config(
    hparams: Mapping[str, Any],
    parts: Mapping[str, nn.Module],
    known: Mapping[str, Any],
    source: str,
) -> dict[str, Any]:
    """The config of a SpeechBrain folder: from its modules, with what is known."""
    kinds = {"encoder": Encoder, "masknet": Dual_Path_Model, "decoder": Decoder}
    for part, kind in kinds.items():
        if not isinstance(parts[part], kind):
            raise ModelError(
                f"The {part} of {source} is a {type(parts[part]).__name__}, but the "
                f"published layout holds only SpeechBrain's {kind.__name__}."
            )
    if "sample_rate" not in hparams:
        raise ModelError(f"The yaml of {source} names no sample_rate: add it.")
    known = known or hparams.get("config")
    known = known if isinstance(known, Mapping) else {}
    name = str(known.get("config_name", Path(source).name))
    config = config_of(**parts, sample_rate=hparams["sample_rate"], name=name)
    # The fields of config.json come back as they were, types and order included,
    # unless the yaml says otherwise.
    kept = {
        field: value
        for field, value in known.items()
        if field not in FIELDS
        or FIELDS[field].rule.holds(value)
        and (value == config[field] or _unused(field, config))
    }
    return {**config, **kept} if set(FIELDS) - set(kept) else dict(kept)


def _unused(field: str, config: Mapping[str, Any]) -> bool:
    """The rate of a dropout that only a hidden layer would have."""
    return field == "spgm_block_att_dropout" and config["spgm_block_att_h"] is None


def check_same(
    folder: Path,
    layout: str,
    state: Mapping[str, Tensor],
    parts: Mapping[str, nn.Module],
    config: Mapping[str, Any],
) -> None:
    """Loads what was written: tensors and the voices of a noise must be the same."""
    if layout == "published":
        *modules, _ = load_published(folder)
        _, found, _ = read_published(folder)
    else:
        hparams = load_safely(folder.joinpath, YAML_FILE)
        load_weights(hparams, str(folder), folder.joinpath)
        modules = [hparams["modules"][part] for part in PARTS]
        found = _ckpts(folder.joinpath, hparams["modules"])
    same = found.keys() == state.keys() and all(
        value.dtype == state[name].dtype and torch.equal(value, state[name])
        for name, value in found.items()
    )
    if not same:
        raise ModelError("The written weights differ from the source's: try again.")
    samples = 3 * config["encoder_kernel_size"] * config["masknet_chunksize"]
    generator = torch.Generator("cpu").manual_seed(0)
    mix = torch.randn(1, min(samples, 16_000), generator=generator, device="cpu")
    with torch.no_grad():
        theirs = separate(*(parts[part].float().eval() for part in PARTS), mix)
        ours = separate(*(module.eval() for module in modules), mix)
    if not theirs.isfinite().all():
        raise ModelError(
            "What the model makes of noise holds NaN or infinity: the training went "
            "wrong, take an earlier checkpoint."
        )
    if not torch.allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item()):
        raise ModelError(
            f"The {layout} layout cannot express something in this model: converted, "
            "it would give other voices."
        )

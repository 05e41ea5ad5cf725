"""Models in the published layout: config.json and a file of weights, no code.

The weights are model.safetensors or, where there is none, pytorch_model.bin, as the
authors published theirs. Of a folder only these two files are read. The sizes in
config.json must be sane and the names and shapes of the weights must be those of the
network that it describes, before any memory is taken.

Axes: N filters, K frames of a chunk, spks sources.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from speechbrain.lobes.models.dual_path import Decoder, Encoder
from torch import Tensor, nn

from speechbrain_spgm.errors import shown
from speechbrain_spgm.files import replacing
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.models.config import (
    CONFIG_FILE,
    FIELDS,
    build,
    check_config,
    config_of,
    show,
    with_defaults,
    write_json,
)
from speechbrain_spgm.models.tensors import ModelError, open_file, outline, read_tensors

logger = logging.getLogger(__name__)

YAML_FILE = "hyperparams.yaml"  # of the other layout
WEIGHTS_FILE = "model.safetensors"  # what is written
WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")  # what is read, the first there is
CARD = "speechbrain_spgm"  # key of our own card (licence, data, quality) in config.json
TENSORS_PER_LAYER = 12  # of one layer of the intra transformer
LARGEST_CONFIG = 2**20  # bytes
DEEPEST_CONFIG = 100  # objects and lists within each other
MOST_LAYERS = 2**10  # that are built before the weights are there
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_PARAMETERS = 10**9  # 4 GB; spgm-base has 26 million


class WrongLayout(ModelError):
    """A source that lacks the files of the layout it was loaded as."""


class PublishedModel(NamedTuple):
    """The parts of a loaded model, in evaluation mode, and its checked config."""

    encoder: Encoder
    masknet: SPGMMaskNet
    decoder: Decoder
    config: dict[str, Any]


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads and checks config.json; all wrong fields are named.

    Those that describe the network are valid then; others, as libraries leave them
    there, are not looked at. Without a sample_rate it is 8000 Hz.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            f"The folder {path.parent} has no {path.name}: "
            "it is not a model in the published layout."
        )
    check_inside(path.parent, path)
    given = read_fields(path)
    config = with_defaults(given)
    check_config(config, path)
    if "sample_rate" not in given:
        rate = config["sample_rate"]
        logger.warning("%s names no sample_rate: %d Hz is taken.", path, rate)
    return config


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a config.json, whatever they are, each there once."""
    with open_file(path) as file:
        text = file.read(LARGEST_CONFIG + 1)
    if len(text) > LARGEST_CONFIG:
        raise ModelError(f"{path} has more than {LARGEST_CONFIG} bytes.")
    try:
        config = json.loads(
            text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not UTF-8 text: download it again.") from None
    except _Twice as error:
        raise ModelError(f"{path} holds the field {error} twice.") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not valid JSON: download it again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold a JSON object of fields, but does not.")
    if _is_deeper(config, DEEPEST_CONFIG):
        raise ModelError(f"{path} is nested too deeply: write its card anew.")
    return config


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether values lie within more objects and lists than these."""
    inside = [value]
    for _ in range(levels):
        nested = (x.values() if isinstance(x, dict) else x for x in inside)
        inside = [x for part in nested for x in part if isinstance(x, dict | list)]
    return bool(inside)


class _Twice(ValueError):
    """A field that a JSON object holds twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose fields are all different."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _Twice(show(name))
        fields[name] = value
    return fields


def _no_constant(name: str) -> None:
    """NaN and Infinity are no JSON."""
    raise ValueError(name)


def card_of(config: object) -> Mapping[str, Any]:
    """Our own card in what a config.json holds, empty if there is none."""
    card = config.get(CARD) if isinstance(config, Mapping) else None
    return card if isinstance(card, Mapping) else {}


def check_inside(folder: Path, path: Path) -> None:
    """Refuses a link that leads out of a model's folder, but to another model.

    A model's files may be links to files of the same name in another model's folder, or
    into the Hub's cache, as SpeechBrain makes them in a ``savedir``: what they hold is
    a model's then. A link to anything else could have its text shown, or copied by
    ``spgm convert`` and published.
    """
    real, folder = path.resolve(), folder.resolve()
    cached = real.parent.name == "blobs" and real.parents[1].name.startswith("models--")
    same = real.name == path.name and is_model(real.parent)
    if not (real.is_relative_to(folder) or cached or same):
        raise ModelError(
            f"{path} is a link out of its folder, to {real}: if you trust it, "
            "put the file itself there."
        )


def weights_in(folder: str | Path) -> Path | None:
    """The file of weights in a folder in the published layout, if there is one."""
    paths = (Path(folder) / name for name in WEIGHTS_FILES)
    return next((path for path in paths if path.is_file()), None)


def largest_weights(path: Path) -> int:
    """How many bytes the weights of a config.json may have, with room for a header."""
    config = with_defaults(read_fields(path))
    check_config(config, path)
    if config["masknet_numlayers"] * config["intra_numlayers"] > MOST_LAYERS:
        return 8 * MOST_PARAMETERS
    network = _blueprint(config, TENSORS_PER_LAYER * MOST_LAYERS, path)
    return 2**20 + 8 * sum(value.numel() for value in network.state_dict().values())


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model itself, in either layout."""
    has_yaml = (folder / YAML_FILE).is_file()
    return weights_in(folder) is not None or has_yaml and any(folder.glob("*.ckpt"))


def find_weights(find: Callable[[str], Path]) -> Path | None:
    """The same of a source whose files ``find`` gives; no other file is asked for."""
    return next(filter(None, (found(find, name) for name in WEIGHTS_FILES)), None)


def found(find: Callable[[str], Path], name: str) -> Path | None:
    """One file of such a source, if it is there."""
    try:
        return find(name)
    except WrongLayout:
        return None


def load_published(folder: str | Path) -> PublishedModel:
    """Loads a model without running anything from its folder.

    Arguments
    ---------
    folder : str or Path
        Holds config.json and model.safetensors or, where that is missing,
        pytorch_model.bin; nothing else in it is opened.

    Returns
    -------
    model : PublishedModel
        Encoder, mask network and decoder on the CPU in float32 and evaluation mode, and
        the config.

    Raises
    ------
    ModelError
        If a file is missing or damaged, the config is wrong, or the weights are not
        exactly those of the network that the config describes.
    """
    model, state, config = read_published(folder)
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    model.eval()
    return PublishedModel(model["encoder"], model["masknet"], model["decoder"], config)


def read_published(
    folder: str | Path,
) -> tuple[nn.ModuleDict, dict[str, Tensor], dict[str, Any]]:
    """What :func:`load_published` loads: network (meta device), weights, config."""
    folder = Path(folder)
    config = read_config(folder / CONFIG_FILE)
    weights = weights_in(folder)
    if weights is None:
        raise ModelError(
            f"The folder {folder} has no {' and no '.join(WEIGHTS_FILES)}: "
            "it is not a model in the published layout."
        )
    check_inside(folder, weights)
    networks = []

    def check(shapes: Mapping[str, list[int]]) -> None:
        networks.append(_blueprint(config, len(shapes), weights))
        _check_shapes(shapes, networks[0].state_dict(), weights)

    state = read_tensors(weights, check)
    check_values(state, weights)
    return networks[0], state, config


def save_published(
    folder: str | Path,
    encoder: nn.Module,
    masknet: nn.Module,
    decoder: nn.Module,
    config: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Saves a model in the published layout, each file whole or not at all.

    Arguments
    ---------
    folder : str or Path
        Made if need be; its config.json and model.safetensors are replaced.
    encoder, masknet, decoder : torch.nn.Module
        The parts; ``masknet`` may be an SPGMMaskNet or a Dual_Path_Model.
    config : mapping
        The fields of config.json.
    card : mapping, optional
        What ``spgm info`` shows: ``licence``, ``training_data``, ``quality`` (a text or
        a mapping) and anything else that JSON can hold.

    Raises
    ------
    ModelError
        If the config does not describe these parts or a weight is not finite.

    Example
    -------
    >>> from speechbrain_spgm.inference.separation import find_published
    >>> *parts, config = load_published(find_published())
    >>> folder = getfixture("tmp_path") / "model"
    >>> save_published(folder, *parts, config, card={"licence": "CC0"})
    >>> load_published(folder).config["speechbrain_spgm"]
    {'licence': 'CC0'}
    """
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    check_config(config)
    parts = {"encoder": encoder, "masknet": masknet, "decoder": decoder}
    state = nn.ModuleDict(parts).state_dict()
    shapes = {name: list(value.shape) for name, value in state.items()}
    model = _blueprint(config, len(shapes), weights)
    _check_shapes(shapes, model.state_dict(), weights)
    check_values(state, weights)
    said, found = (
        config_of(*some.values(), config["sample_rate"], str(folder))
        for some in (model, parts)
    )
    for field in FIELDS:
        if said[field] != found[field] and not field.endswith("_dropout"):
            raise ModelError(
                f"{field} is {show(said[field])} in the config of {folder}, but "
                f"{show(found[field])} in the network: correct the config."
            )
    if card is not None:
        config = {**config, CARD: card}
    try:
        json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"The card of {folder} is no JSON: {error}.") from None

    folder.mkdir(parents=True, exist_ok=True)
    write_published(folder, state, config)


def write_published(
    folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Writes both files of the layout; what they hold has been checked."""
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    with replacing(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, config)


def _blueprint(config: Mapping[str, Any], tensors: int, path: Path) -> nn.ModuleDict:
    """The network without memory for its parameters."""
    layers = config["masknet_numlayers"] * config["intra_numlayers"]
    if layers * TENSORS_PER_LAYER > tensors:
        raise ModelError(
            f"{path} holds {tensors} tensors, too few for the {layers} transformer "
            f"layers of {CONFIG_FILE}: the two files do not belong together."
        )
    with outline():
        encoder, masknet, decoder = build(config)
    model = nn.ModuleDict({"encoder": encoder, "masknet": masknet, "decoder": decoder})
    parameters = sum(p.numel() for p in model.parameters())
    if parameters > MOST_PARAMETERS:
        raise ModelError(
            f"{path} would have {parameters:,} parameters by {CONFIG_FILE}, but this "
            f"package builds at most {MOST_PARAMETERS:,}."
        )
    return model


def _check_shapes(
    found: Mapping[str, list[int]], wanted: Mapping[str, Tensor], path: Path
) -> None:
    """The names and shapes in a file must be those of the network."""
    problem = misfit(found, wanted)
    if problem:
        raise ModelError(
            f"{path} does not fit the network of {CONFIG_FILE}: {problem}; "
            "the two files do not belong together."
        )


def misfit(found: Mapping[str, list[int]], wanted: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the names and shapes of a file's tensors, if anything.

    The first missing and unknown names and the first wrong shape.

    Example
    -------
    >>> misfit({"a": [2], "b": [1]}, {"a": torch.zeros(3), "c": torch.zeros(1)})
    'it lacks c and has the unknown b and has a of shape [2], not [3]'
    """
    problems = [
        *_count_names("lacks", wanted.keys() - found.keys()),
        *_count_names("has the unknown", found.keys() - wanted.keys()),
    ]
    for name in sorted(wanted.keys() & found.keys()):
        shape = list(wanted[name].shape)
        if list(found[name]) != shape:
            problems.append(f"has {name} of shape {list(found[name])}, not {shape}")
            break
    return f"it {' and '.join(problems)}" if problems else None


def _count_names(verb: str, names: set[str]) -> Iterator[str]:
    if names:
        others = f" and {len(names) - 1} others" if len(names) > 1 else ""
        yield f"{verb} {shown(min(names), 100)}{others}"


def check_values(state: Mapping[str, Tensor], path: Path) -> None:
    """Weights must be finite floating-point numbers."""
    for name, value in state.items():
        if value.dtype not in WEIGHT_TYPES:
            raise ModelError(
                f"{path} holds {name} as {value.dtype}, but weights are floating-point "
                "numbers of 16, 32 or 64 bits."
            )
        if not value.float().isfinite().all():
            raise ModelError(
                f"{path} holds NaN or infinity in {name}: the training went wrong, "
                "take an earlier checkpoint."
            )

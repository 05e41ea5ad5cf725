"""What config.json says of a network: one table for checking, building and writing.

Each field of ``FIELDS`` has a rule for its value, a getter that finds it in built
parts, and its places: the arguments of the yaml's objects that take it. From these come
``check_config``, ``build``, ``config_of`` and the text of SpeechBrain's yaml. A new
field is one entry there, with a default for the configs that lack it.

Axes: N filters, K frames of a chunk.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)
from torch import nn

from speechbrain_spgm import __version__
from speechbrain_spgm.files import replacing
from speechbrain_spgm.lobes.intra import is_standard
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.pooling import POOLINGS, find_pooling
from speechbrain_spgm.lobes.spgm import Pooling, SPGMBlock
from speechbrain_spgm.models.tensors import ModelError

CONFIG_FILE = "config.json"
LONGEST_POSITION = 2500  # where SpeechBrain's positional encoding ends


class Rule(NamedTuple):
    """What a value may be, in words and as a test."""

    words: Callable[[], str]
    holds: Callable[[Any], bool]


def whole(least: int, most: int = 2**32 - 1) -> Rule:
    """A whole number in a range."""
    words = f"a whole number from {least}" + (f" to {most}" if most < 2**32 - 1 else "")
    return Rule(
        lambda: words,
        lambda x: isinstance(x, int) and not isinstance(x, bool) and least <= x <= most,
    )


def one_of(choices: Collection[object]) -> Rule:
    """One of what is in a collection when it is asked, of the same type."""
    return Rule(
        lambda: " or ".join(json.dumps(choice) for choice in choices),
        lambda value: any(type(value) is type(c) and value == c for c in choices),
    )


def either(first: Rule, second: Rule) -> Rule:
    """What one of two rules allows."""
    return Rule(
        lambda: f"{first.words()} or {second.words()}",
        lambda value: first.holds(value) or second.holds(value),
    )


RATE = Rule(
    lambda: "a number from 0 to below 1",
    lambda value: type(value) in (int, float) and 0 <= value < 1,
)
FLAG = one_of((True, False))
LAYERS = whole(1, 1024)


class Object(NamedTuple):
    """An object of the yaml: its class, and the arguments that no field gives."""

    kind: type[nn.Module]
    others: Mapping[str, Any] = {}


class Ref(str):
    """The name of another object, which is the argument."""


OBJECTS = {  # by their names in the yaml, in the order in which they are built
    "Encoder": Object(Encoder),
    "intra": Object(SBTransformerBlock),
    "inter": Object(SPGMBlock),
    "MaskNet": Object(
        SPGMMaskNet, {"intra_model": Ref("intra"), "inter_model": Ref("inter")}
    ),
    "Decoder": Object(Decoder, {"bias": False}),
}
OBJECT_OF = {"encoder": "Encoder", "masknet": "MaskNet", "decoder": "Decoder"}


class Built(NamedTuple):
    """Built parts, and where in them most values are."""

    sample_rate: int
    encoder: Encoder
    masknet: nn.Module
    decoder: Decoder

    @property
    def block(self) -> nn.Module:
        """The first of the mask network's blocks, which are alike."""
        return self.masknet.dual_mdl[0]

    @property
    def intra(self) -> nn.Module:
        """Its intra transformer."""
        return self.block.intra_mdl

    @property
    def layer(self) -> nn.Module:
        """The first layer of that."""
        return self.intra.mdl.layers[0]

    @property
    def pool(self) -> Pooling:
        """The block's pooling."""
        return self.block.inter_mdl.pool

    @property
    def att_h(self) -> int | None:
        """The width of the pooling's hidden layer, if it has one."""
        return self.pool.att_h if find_pooling(self.pool.name).hidden else None


class Field(NamedTuple):
    """A field of config.json.

    ``rule`` says what it may hold, ``get`` finds it in built parts, ``places`` take it
    (``"object.argument"``, or a key at the top of the yaml), ``default`` is its value
    where a config lacks it (``...``: it must be there).
    """

    rule: Rule
    get: Callable[[Built], Any]
    places: tuple[str, ...]
    default: Any = ...


FIELDS: dict[str, Field] = {
    "sample_rate": Field(
        whole(1, 1_000_000),
        lambda built: built.sample_rate,
        ("sample_rate",),
        default=8000,  # the first published config has none
    ),
    "encoder_kernel_size": Field(
        whole(2, 2**16),
        lambda built: built.encoder.conv1d.kernel_size[0],
        ("Encoder.kernel_size", "Decoder.kernel_size"),
    ),
    "encoder_in_nchannels": Field(
        one_of((1,)), lambda built: built.encoder.in_channels, ("Decoder.out_channels",)
    ),
    "encoder_out_nchannels": Field(
        whole(1, 2**16),
        lambda built: built.encoder.conv1d.out_channels,
        (
            *("Encoder.out_channels", "intra.d_model", "inter.n_embd"),
            *("MaskNet.in_channels", "MaskNet.out_channels", "Decoder.in_channels"),
        ),
    ),
    "masknet_chunksize": Field(
        whole(2, 2**20),
        lambda built: built.masknet.K,
        ("inter.chunk_size", "MaskNet.K"),
    ),
    "masknet_numlayers": Field(
        LAYERS, lambda built: built.masknet.num_layers, ("MaskNet.num_layers",)
    ),
    "masknet_norm": Field(
        one_of(("ln", "gln")), lambda built: built.block.norm, ("MaskNet.norm",)
    ),
    "masknet_useextralinearlayer": Field(
        FLAG,
        lambda built: built.block.linear_layer_after_inter_intra,
        ("MaskNet.linear_layer_after_inter_intra",),
    ),
    "masknet_extraskipconnection": Field(
        FLAG,
        lambda built: built.block.skip_around_intra,
        ("MaskNet.skip_around_intra",),
    ),
    "masknet_numspks": Field(
        whole(1, 100),
        lambda built: built.masknet.num_spks,
        ("num_spks", "MaskNet.num_spks"),
    ),
    "intra_numlayers": Field(
        LAYERS, lambda built: len(built.intra.mdl.layers), ("intra.num_layers",)
    ),
    "intra_nhead": Field(
        whole(1, 2**10),
        lambda built: built.layer.self_att.att.num_heads,
        ("intra.nhead",),
    ),
    "intra_dffn": Field(
        whole(1, 2**20),
        lambda built: built.layer.pos_ffn.ffn[0].out_features,
        ("intra.d_ffn",),
    ),
    "intra_dropout": Field(
        RATE, lambda built: built.layer.dropout1.p, ("intra.dropout",)
    ),
    "intra_use_positional": Field(
        FLAG,
        lambda built: built.intra.use_positional_encoding,
        ("intra.use_positional_encoding",),
    ),
    "intra_norm_before": Field(
        FLAG, lambda built: built.layer.normalize_before, ("intra.norm_before",)
    ),
    "spgm_block_pool": Field(
        one_of(POOLINGS), lambda built: built.pool.name, ("inter.pool",)
    ),
    "spgm_block_att_h": Field(
        either(one_of((None,)), whole(1, 2**20)),
        lambda built: built.att_h,
        ("inter.att_h",),
    ),
    "spgm_block_att_dropout": Field(
        RATE,
        lambda built: 0 if built.att_h is None else built.pool.att_dropout,
        ("inter.att_dropout",),
    ),
}


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the fields that it may lack."""
    missing = {
        name: field.default
        for name, field in FIELDS.items()
        if field.default is not ... and name not in config
    }
    return {**config, **missing}


def check_config(config: Mapping[str, Any], path: str | Path = CONFIG_FILE) -> None:
    """Refuses a config that describes no SPGM separator; names every wrong field."""
    problems = list(_problems(config))
    if problems:
        raise ModelError(f"{path} describes no SPGM separator: {'; '.join(problems)}.")


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("model_type", "spgm") != "spgm":
        yield f'model_type is {show(config["model_type"])}, but must be "spgm"'
    wrong = False
    for name, field in FIELDS.items():
        if name not in config:
            wrong = True
            yield f"{name} is missing"
        elif not field.rule.holds(config[name]):
            wrong = True
            yield f"{name} is {show(config[name])}, but must be {field.rule.words()}"
    if not wrong:
        yield from _conflicts(config)


def _conflicts(config: Mapping[str, Any]) -> Iterator[str]:
    N, K = config["encoder_out_nchannels"], config["masknet_chunksize"]
    if N % config["intra_nhead"]:
        yield f"intra_nhead is {config['intra_nhead']}, but must divide the {N} filters"
    if config["intra_use_positional"] and N % 2:
        yield f"encoder_out_nchannels is {N}, but must be even for positional encoding"
    if config["intra_use_positional"] and K > LONGEST_POSITION:
        yield (
            f"masknet_chunksize is {K}, but positional encoding "
            f"ends at {LONGEST_POSITION} frames"
        )


def show(value: object) -> str:
    """A value as JSON, cut to 40 letters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else text[:37] + "..."


def _arguments(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments of each object of ``OBJECTS``; under ``""`` the keys at the top."""
    # Half the kernel size: the encoder steps so by itself.
    stride = {"stride": config["encoder_kernel_size"] // 2}
    found = {"": {}} | {name: dict(part.others) for name, part in OBJECTS.items()}
    found["Decoder"] |= stride
    for name, field in FIELDS.items():
        for place in field.places:
            owner, _, argument = place.rpartition(".")
            found[owner][argument] = config[name]
    return found


def build(config: Mapping[str, Any]) -> tuple[Encoder, SPGMMaskNet, Decoder]:
    """The network of a checked config, with fresh parameters, in training mode."""
    config, built = with_defaults(config), {}
    for name, arguments in _arguments(config).items():
        if name:
            known = {
                key: built[value] if isinstance(value, Ref) else value
                for key, value in arguments.items()
            }
            built[name] = OBJECTS[name].kind(**known)
    return tuple(built[name] for name in OBJECT_OF.values())


def config_of(
    encoder: Encoder, masknet: nn.Module, decoder: Decoder, sample_rate: int, name: str
) -> dict[str, Any]:
    """The config that describes built parts: the inverse of :func:`build`."""
    try:
        return _config_of(encoder, masknet, decoder, sample_rate, name)
    except (AttributeError, IndexError, TypeError):
        raise ModelError(
            f"The network of {name} lacks layers, or has others than the published "
            "layout can describe: it cannot be converted."
        ) from None


def _config_of(
    encoder: Encoder, masknet: nn.Module, decoder: Decoder, sample_rate: int, name: str
) -> dict[str, Any]:
    """The same of parts that have all layers."""
    if not isinstance(masknet, Dual_Path_Model):
        raise ModelError(
            "The published layout holds mask networks with two paths, not a "
            f"{type(masknet).__name__}."
        )
    built = Built(sample_rate, encoder, masknet, decoder)
    spgm = built.block.inter_mdl
    if not is_standard(built.intra) or not isinstance(spgm, SPGMBlock):
        raise ModelError(
            "The published layout holds blocks of SBTransformerBlock and SPGMBlock, "
            f"not of {type(built.intra).__name__} and {type(spgm).__name__}."
        )
    activation = built.layer.pos_ffn.ffn[1]
    if not isinstance(activation, nn.ReLU):
        raise ModelError(
            "The published layout holds transformers with ReLU, not with "
            f"{type(activation).__name__}."
        )
    if decoder.stride != encoder.conv1d.stride:
        raise ModelError(
            "The published layout holds decoders with the encoder's stride "
            f"{encoder.conv1d.stride[0]}, not with {decoder.stride[0]}."
        )
    config = {"model_type": "spgm", "sample_rate": sample_rate, "config_name": name}
    config |= {field: FIELDS[field].get(built) for field in FIELDS}
    check_config(config)
    return config


def speechbrain_yaml(config: Mapping[str, Any]) -> str:
    """The hyperparams.yaml of a model whose config is valid.

    Only numbers, flags and fixed words of a config are put in, for a yaml's texts can
    run code.
    """
    lines = [
        f"# SPGM separator, written by speechbrain_spgm {__version__}. Loads by "
        "SepformerSeparation of",
        "# SpeechBrain (with speechbrain_spgm installed) and by SPGMSeparation.",
    ]
    for name, arguments in _arguments(with_defaults(config)).items():
        indent, order = "", list(arguments)
        if name:
            kind, indent = OBJECTS[name].kind, "    "
            lines += ["", f"{name}: !new:{kind.__module__}.{kind.__qualname__}"]
            order.sort(key=_signature(kind).index)
        for key in order:
            value = arguments[key]
            text = f"!ref <{value}>" if isinstance(value, Ref) else json.dumps(value)
            lines.append(f"{indent}{key}: {text}")
    return "\n".join(lines) + "\n" + loading(OBJECT_OF)


def _signature(kind: type[nn.Module]) -> list[str]:
    """The names of a class's arguments, in order, its bases' if it passes all on."""
    found = (inspect.signature(base).parameters for base in kind.__mro__)
    return list(max(found, key=len))


def loading(names: Mapping[str, str]) -> str:
    """The end of a yaml: which of its objects are the modules, and are loaded."""

    def refs(indent: str) -> list[str]:
        return [f"{indent}{part}: !ref <{name}>" for part, name in names.items()]

    lines = ["", "modules:", *refs("    "), ""]
    lines.append("pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer")
    return "\n".join([*lines, "    loadables:", *refs("        ")]) + "\n"


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes a JSON object for people to read too, whole or not at all."""
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        # Half a character, as JSON may hold it, goes back as its escape.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def count_parameters(modules: list[nn.Module]) -> int:
    """How many numbers the modules have learned together.

    Example
    -------
    >>> count_parameters([nn.Linear(3, 2), nn.ReLU()])
    8
    """
    return sum(p.numel() for p in nn.ModuleList(modules).parameters())

"""The parameters that training starts from.

Axes: N encoder filters, W samples of a filter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import hook_on_loading_state_dict_checkpoint
from speechbrain.utils.logger import get_logger
from torch import Tensor, nn

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.models.published import (
    MOST_PARAMETERS,
    check_values,
    find_weights,
    misfit,
)
from speechbrain_spgm.models.remote import open_source
from speechbrain_spgm.models.sources import locate
from speechbrain_spgm.models.speechbrain import PARTS
from speechbrain_spgm.models.tensors import read_tensors

logger = get_logger(__name__)

FILTERBANKS = ("random", "fourier")
# SpeechBrain's names: feed-forward layers, a transformer layer, its branches' last part
FEED_FORWARD = ".pos_ffn."
LAYER = re.compile(r".*\.mdl\.layers\.\d+\.")
# The intra or inter part of a block, with its norm
PART = re.compile(r".*\.dual_mdl\.\d+\.(intra|inter)_")
NORM = re.compile(r"\.(intra|inter)_norm\.(weight|bias)$")
OF_INTER = re.compile(r"\.dual_mdl\.\d+\.inter_")
INTER = ".inter_mdl.mdl."  # of an inter transformer
LAST_OF_LAYER = re.compile(r"\.(out_proj|ffn\.3)\.(weight|bias)$")


def initialise(modules: Mapping[str, nn.Module], filterbank: str = "random") -> None:
    """Draws the parameters of every layer anew, in place.

    Dual_Path_Model copies one built block, so all its blocks start with the same
    weights; SpeechBrain's separation recipes reset each layer for this reason too. With
    the filterbank "fourier" encoder and decoder start as :func:`fourier_filters`.
    """
    if filterbank not in FILTERBANKS:
        raise UserError(
            f"There is no filterbank {filterbank}: choose {' or '.join(FILTERBANKS)}."
        )
    for module in modules.values():
        # Children first: attention sets its output layer after that layer's own reset.
        for layer in reversed(list(module.modules())):
            reset = getattr(layer, "reset_parameters", None)
            reset = reset or getattr(layer, "_reset_parameters", None)
            if reset is not None:
                reset()
    if filterbank == "fourier":
        weights = modules["encoder"].conv1d.weight, modules["decoder"].weight
        for weight in weights:  # [N, 1, W]
            N, _, W = weight.shape
            with torch.no_grad():
                weight.copy_(fourier_filters(N, W).unsqueeze(1))


def start_from(modules: Mapping[str, nn.Module], source: str | Path) -> None:
    """Lets training go on from a trained model: a file, or as ``locate`` takes one.

    Its feed-forward layers may be narrower (a smaller ``d_ffn``), its blocks may be
    fewer and have fewer layers (``num_blocks``, ``num_layers``). What is new keeps its
    random weights and is not listened to at first, so the network computes what the
    trained one does, and learns from there. (New layers need norms that come first and
    new blocks the skip around intra, as in every yaml here.)

    A SepFormer may start an SPGM network: encoder, decoder, what is before and after
    the blocks, and the intra transformers are taken, the inter transformers and their
    norms are not. SPGM is the identity at first: as its norm's scale and shift are 0, a
    block gives exactly what its intra part gives, and the network computes what the
    SepFormer would if its inter transformers added nothing.
    """
    network = nn.ModuleDict(dict(modules))
    own = network.state_dict()
    try:
        state = read_state(source)
    except UserError as error:
        raise UserError(f"start_from is {source}: {error}") from None
    if any(INTER in name for name in state) and not any(INTER in name for name in own):
        state = {k: v for k, v in state.items() if not OF_INTER.search(k)}
        logger.warning("start_from: the inter transformers of %s are left out.", source)
    state = {
        name: widen(weight, own.get(name, weight)) if FEED_FORWARD in name else weight
        for name, weight in state.items()
    }
    # New blocks pass on what was there, for the norms behind their models are 0; so do
    # new layers, whose residual branches end with 0, if norms come first.
    if any(map(PART.match, state)):
        state = grow(state, own, PART, NORM)
    state = grow(state, own, LAYER, LAST_OF_LAYER)
    problem = misfit({k: list(v.shape) for k, v in state.items()}, own)
    if problem:
        raise UserError(
            f"start_from is {source}, but its weights are of another network ({problem}"
            "): take the yaml and the keys under Network that it was trained with."
        )
    network.load_state_dict(state)


def read_state(source: str | Path) -> dict[str, Tensor]:
    """The finite weights of a model on the CPU, by their published names."""
    if Path(source).is_file():
        return _read({"": Path(source)})
    place = locate(source)
    with open_source(place, f"{PARTS[1]}.ckpt") as find:
        weights = find_weights(find)
        if weights is not None:
            return _read({"": weights})
        return _read({f"{part}.": find(f"{part}.ckpt") for part in PARTS})


def _read(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """The tensors of files, by the prefix that their names get."""
    state = {}
    for prefix, path in files.items():
        check = partial(check_size, path=path)
        tensors = read_tensors(path, check, hook_on_loading_state_dict_checkpoint)
        check_values(tensors, path)
        state |= {f"{prefix}{name}": value for name, value in tensors.items()}
    return state


def check_size(shapes: Mapping[str, list[int]], path: Path) -> None:
    """Refuses more numbers than any network here may have."""
    if sum(map(math.prod, shapes.values())) > MOST_PARAMETERS:
        raise UserError(f"{path} holds more than {MOST_PARAMETERS:,} numbers.")


def grow(
    state: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    part: re.Pattern[str],
    silent: re.Pattern[str],
) -> dict[str, Tensor]:
    """``state`` and the parts that only ``like`` has, with zeros for what is silent."""
    known = {found[0] for name in state if (found := part.match(name))}
    grown = dict(state)
    for name, weight in like.items():
        found = part.match(name)
        if found and found[0] not in known:
            grown[name] = torch.zeros_like(weight) if silent.search(name) else weight
    return grown


def widen(weight: Tensor, like: Tensor) -> Tensor:
    """The weights of a feed-forward layer with as many hidden units as ``like`` has.

    ``[d, d_model]`` to the hidden units, their bias ``[d]``, or ``[d_model, d]`` back;
    new units take their incoming weights from ``like``.

    Example
    -------
    >>> widen(torch.ones(1), torch.tensor([5.0, 6.0]))
    tensor([1., 6.])
    >>> widen(torch.ones(1, 1), torch.tensor([[5.0, 6.0]]))
    tensor([[1., 0.]])
    """
    #        d      new
    #     |------|~~~~~~|         incoming, and their bias: old rows, then random ones
    #     |------|000000|         outgoing: old columns, then zeros
    new = [more - less for more, less in zip(like.shape, weight.shape, strict=False)]
    if weight.ndim != like.ndim or min(new) < 0 or sum(n > 0 for n in new) != 1:
        return weight  # of another network than a wider one
    if new[0] > 0:
        return torch.cat([weight, like[len(weight) :]])
    return nn.functional.pad(weight, (0, new[1]))


def fourier_filters(N: int, W: int) -> Tensor:
    """A filterbank ``[N, W]`` whose rectified output holds all of the signal.

    N / 4 frequencies from 0 to half the sample rate, of each the cosine and the sine
    under a sine window, and the negative of both: what the encoder's ReLU takes from a
    filter, its negative keeps. With N = 2 W, a stride of W / 2 and the same filters in
    the decoder, decoding what was encoded gives the signal back.

    Example
    -------
    >>> filters = fourier_filters(32, 16).unsqueeze(1)
    >>> x = torch.rand(1, 1, 80)
    >>> encoded = torch.conv1d(x, filters, stride=8).relu()
    >>> decoded = torch.conv_transpose1d(encoded, filters, stride=8)
    >>> torch.allclose(decoded[..., 8:-8], x[..., 8:-8], atol=1e-5)  # two windows each
    True
    """
    if N % 4:
        raise UserError(
            f"filterbank fourier needs N a multiple of 4, but N is {N}: change N, or "
            "take filterbank random."
        )
    time = torch.arange(W) + 0.5
    window = torch.sin(math.pi * time / W)
    cycles = (torch.arange(N // 4) + 0.5) / (N // 4) / 2  # per sample
    phase = 2 * math.pi * cycles.unsqueeze(1) * (time - W / 2)  # [N / 4, W]
    half = torch.cat([window * phase.cos(), window * phase.sin()])
    return torch.cat([half, -half]) * math.sqrt(4 / N)

"""The parameters that training starts from.

Axes: N encoder filters, W samples of a filter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speechbrain_spgm.errors import UserError

FILTERBANKS = ("random", "fourier")
# SpeechBrain's names: feed-forward layers, a transformer layer, its branches' last part
FEED_FORWARD = ".pos_ffn."
LAYER = re.compile(r".*\.mdl\.layers\.\d+\.")
LAST_OF_LAYER = re.compile(r"\.(out_proj|ffn\.3)\.(weight|bias)$")


def initialise(modules: Mapping[str, nn.Module], filterbank: str = "random") -> None:
    """Draws the parameters of every layer anew.

    Dual_Path_Model copies one built block, so all its blocks start with the same
    weights. SpeechBrain's separation recipes reset each layer before training for this
    reason, and so do we. Call it only when training from scratch: a checkpoint that is
    recovered later still replaces the parameters.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        Changed in place. Layers without a reset of their own stay as they are.
    filterbank : str
        ``"random"``, or ``"fourier"``: encoder and decoder start as
        :func:`fourier_filters`, so that training does not have to find frequencies.

    Raises
    ------
    UserError
        If there is no such filterbank, or encoder and decoder cannot hold it.

    Example
    -------
    >>> import copy, torch
    >>> block = nn.Linear(4, 4)
    >>> stack = nn.ModuleList([copy.deepcopy(block) for _ in range(2)])
    >>> initialise({"stack": stack})
    >>> torch.equal(stack[0].weight, stack[1].weight)
    False
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


def load_weights(modules: Mapping[str, nn.Module], path: str | Path) -> None:
    """Lets training go on from a published model.

    Its feed-forward layers may be narrower (a smaller ``d_ffn``) and its blocks may
    have fewer layers (``num_layers``). What is new keeps its random weights and is not
    listened to at first, so the network computes what the published one does, and
    learns from there. (New layers need norms that come first, as in every yaml here.)

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        ``encoder``, ``masknet`` and ``decoder``; changed in place.
    path : str or Path
        A model.safetensors, as a run leaves it in ``model/``.

    Raises
    ------
    UserError
        If there is no such file, or it holds the weights of another network.

    Example
    -------
    >>> from safetensors.torch import save_file
    >>> path = getfixture("tmp_path") / "model.safetensors"
    >>> save_file({"encoder.weight": torch.ones(1, 2)}, path)
    >>> encoder = nn.Linear(2, 1, bias=False)
    >>> load_weights({"encoder": encoder}, path)
    >>> encoder.weight.tolist()
    [[1.0, 1.0]]
    """
    try:
        network = nn.ModuleDict(dict(modules))
        own = network.state_dict()
        state = {
            name: widen(weight, own.get(name, weight))
            if FEED_FORWARD in name
            else weight
            for name, weight in load_file(path).items()
        }
        network.load_state_dict(deepen(state, own))
    except FileNotFoundError:
        raise UserError(f"start_from names {path}, which does not exist.") from None
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"start_from names {path}, which is no model: {error}."
        ) from None
    except RuntimeError:
        raise UserError(
            f"start_from names {path}, but its weights are of another network: take "
            "the yaml and the keys under Network that it was trained with."
        ) from None


def deepen(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a network with as many transformer layers as another has.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        Weights by name.
    like : dict of str to torch.Tensor
        The same of the deeper network: the weights of new layers are taken from here,
        but for the last part of both residual branches, which is 0. A new layer then
        gives back its input, if its norms come first (``norm_before``, as in SPGM).

    Returns
    -------
    dict of str to torch.Tensor
        ``state`` and the new layers after its own.

    Example
    -------
    >>> names = ["a.mdl.layers.1.ffn.0.weight", "a.mdl.layers.1.ffn.3.weight"]
    >>> list(deepen({}, {name: torch.ones(1) for name in names}).values())
    [tensor([1.]), tensor([0.])]
    """
    layers = {found[0] for name in state if (found := LAYER.match(name))}
    deeper = dict(state)
    for name, weight in like.items():
        found = LAYER.match(name)
        if found and found[0] not in layers:
            silent = LAST_OF_LAYER.search(name)
            deeper[name] = torch.zeros_like(weight) if silent else weight
    return deeper


def widen(weight: Tensor, like: Tensor) -> Tensor:
    """The weights of a feed-forward layer with as many hidden units as another has.

    Arguments
    ---------
    weight : torch.Tensor
        From d_model to d hidden units, ``[d, d_model]``, their bias ``[d]``, or from
        the hidden units back, ``[d_model, d]``.
    like : torch.Tensor
        The same of the wider layer: incoming weights of new units are taken from here.

    Returns
    -------
    torch.Tensor
        Of the shape of ``like``, or ``weight`` itself if that is not wider.

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
    if weight.ndim != like.ndim or min(new) < 0 or max(new) == 0:
        return weight
    if new[0] > 0:
        return torch.cat([weight, like[len(weight) :]])
    return nn.functional.pad(weight, (0, new[1]))


def fourier_filters(N: int, W: int) -> Tensor:
    """A filterbank whose rectified output holds all of the signal.

    N / 4 frequencies from 0 to half the sample rate, of each the cosine and the sine
    under a sine window, and the negative of both: what the encoder's ReLU takes from a
    filter, its negative keeps. With N = 2 W, a stride of W / 2 and the same filters in
    the decoder, decoding what was encoded gives the signal back.

    Arguments
    ---------
    N : int
        Number of filters, a multiple of 4.
    W : int
        Samples of a filter.

    Returns
    -------
    filters : torch.Tensor
        ``[N, W]``.

    Raises
    ------
    UserError
        If N is no multiple of 4.

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

"""Waveform to waveforms: encoder, masks, decoder. The only copy of these steps.

Axes: B utterances, T samples, L encoder frames, N filters, spks sources.
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.dual_path import DPTNetBlock, Dual_Path_Model
from speechbrain.lobes.models.resepformer import ResourceEfficientSeparationPipeline
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from torch import Tensor, nn

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.lobes import engine
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.statistics import Statistics

# Up to so many frames the encoder, masks and decoder are SpeechBrain's own operations
# on whole tensors: the same bits as its separate_batch. Longer ones come in tiles.
DECODED_AT_ONCE = 5000
NO_MPS = "Apple's mps has no double precision, in which the network takes its averages"
# RE-SepFormer's memory and DPTNet's attention run through all chunks of a batch.
MIXING = (ResourceEfficientSeparationPipeline, DPTNetBlock)


def separate(
    encoder: nn.Module,
    masknet: nn.Module,
    decoder: nn.Module,
    mix: Tensor,
    lengths: Tensor | None = None,
    autocast: torch.dtype | None = None,
    statistics: Statistics | None = None,
    watch: engine.Watch | None = None,
) -> Tensor:
    """Separate a batch of mixtures.

    Arguments
    ---------
    encoder : torch.nn.Module
        SpeechBrain's ``Encoder``, ``[B, T]`` to ``[B, N, L]``; may be wrapped by DDP.
    masknet : torch.nn.Module
        :class:`~speechbrain_spgm.lobes.masknet.SPGMMaskNet`, or any network from
        ``[B, N, L]`` to ``[spks, B, N, L]``; one that takes no frame counts gets one
        utterance at a time where the lengths differ, and so does one whose utterances
        would hear each other.
    decoder : torch.nn.Module
        SpeechBrain's ``Decoder``, ``[B, N, L]`` to ``[B, T]``.
    mix : torch.Tensor
        Mixtures, ``[B, T]`` with T >= 1.
    lengths : torch.Tensor, optional
        Valid samples of every mixture, ``[B]``, from 1 to T; ``None``: all T. What mix
        holds beyond them is never read.
    autocast : torch.dtype, optional
        Precision of the mask network's matrix products, for example
        ``torch.bfloat16``; encoder, norms, pooling, residuals and decoder keep that of
        the weights.
    statistics, watch
        As in ``SPGMMaskNet.forward``, which other networks cannot have.

    Returns
    -------
    est : torch.Tensor
        ``[B, T, spks]``, zero beyond the valid samples. Like the published code, it is
        zero in the last samples that fill no encoder frame.

    Example
    -------
    >>> from speechbrain.lobes.models import dual_path
    >>> from speechbrain_spgm.lobes.spgm import SPGMBlock
    >>> encoder = dual_path.Encoder(kernel_size=16, out_channels=64)
    >>> decoder = dual_path.Decoder(64, 1, kernel_size=16, stride=8, bias=False)
    >>> intra_model = dual_path.SBTransformerBlock(1, 64, 8)
    >>> masknet = SPGMMaskNet(64, 64, intra_model, SPGMBlock(64, "att"), K=50)
    >>> mix = torch.rand(2, 800)
    >>> separate(encoder, masknet, decoder, mix, torch.tensor([800, 3])).shape
    torch.Size([2, 800, 2])
    """
    B, T = mix.shape
    conv = getattr(encoder, "module", encoder).conv1d
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    samples = [T] * B if lengths is None else lengths.tolist()
    frames = [count_frames(n, kernel, stride) for n in samples]
    longest = longest_mixture(encoder, masknet)
    if max(samples) > longest:
        raise UserError(
            f"mix has {max(samples)} samples, but the network's positional encoding "
            f"ends after {longest}: separate it in parts, as the stitched mode does."
        )
    if (
        autocast is None
        and isinstance(masknet, SPGMMaskNet)
        # In int8 a last bit counts: always in tiles, whatever else the batch holds.
        and (max(frames) > DECODED_AT_ONCE or masknet.int8 is not None)
        and engine.suits(masknet, mix)
        and engine.suits_ends(encoder, decoder)
        and not (torch.is_grad_enabled() and (_learns(encoder) or _learns(decoder)))
    ):
        return engine.separate(
            encoder, masknet, decoder, mix, samples, frames, statistics, watch
        )

    ends = torch.tensor(samples, device=mix.device).unsqueeze(1)
    valid = torch.arange(T, device=mix.device) < ends  # [B, T]
    mix = mix.where(valid, 0)
    mix_w = encoder(F.pad(mix, (0, max(0, kernel - T))))  # [B, N, L]
    device = mix.device.type
    with nullcontext() if autocast is None else torch.autocast(device, autocast):
        masks = _estimate_masks(masknet, mix_w, frames, statistics, watch)
    voices = [decoder(mask * mix_w) for mask in masks]  # of [spks, B, N, L] to [B, T']

    est = torch.stack(voices, dim=-1)  # [B, T', spks]
    est = F.pad(est, (0, 0, 0, max(0, T - est.shape[1])))[:, :T]
    return est.where(valid.unsqueeze(-1), 0)


def _learns(part: nn.Module) -> bool:
    return any(weight.requires_grad for weight in part.parameters())


def count_frames(samples: int, kernel: int, stride: int) -> int:
    """Number of encoder frames L of an utterance.

    At least one: an utterance shorter than the kernel is padded with zeros::

        samples   |-------------------------|
        frame 0   |<-- kernel -->|
        frame 1   |stride|<-- kernel -->|
                                        |---| rest, in no frame

    Example
    -------
    >>> [count_frames(n, kernel=16, stride=8) for n in (1, 16, 23, 24, 160)]
    [1, 1, 1, 2, 19]
    """
    return max(0, samples - kernel) // stride + 1


def longest_mixture(encoder: nn.Module, masknet: nn.Module) -> float:
    """Samples that a network can take: a SepFormer numbers its chunks up to some end.

    Example
    -------
    >>> longest_mixture(nn.Identity(), nn.Identity())
    inf
    """
    net = getattr(masknet, "module", masknet)
    if isinstance(net, SPGMMaskNet) or not isinstance(net, Dual_Path_Model):
        return math.inf
    ends = [
        part.max_len
        for block in net.dual_mdl
        for name, part in block.named_modules(remove_duplicate=False)
        if name.startswith("inter_mdl") and isinstance(part, PositionalEncoding)
    ]
    if not ends:
        return math.inf
    conv = getattr(encoder, "module", encoder).conv1d
    # The most frames of which count_chunks makes no more chunks.
    frames = min(ends) // 2 * net.K - net.K // 2 - 1
    return frames * conv.stride[0] + conv.kernel_size[0] - 1


def count_voices(masknet: nn.Module, stated: int | None = None) -> int:
    """How many voices a mask network separates; ``stated``, if it does not say.

    Example
    -------
    >>> count_voices(nn.Identity(), stated=3)
    3
    """
    masknet = getattr(masknet, "module", masknet)
    found = getattr(masknet, "num_spks", getattr(masknet, "num_spk", stated))
    if found is None:
        raise ValueError(
            f"{type(masknet).__name__} does not say how many voices it separates: "
            "name num_spks in the model's yaml."
        )
    return int(found)


def _estimate_masks(
    masknet: nn.Module,
    mix_w: Tensor,
    frames: list[int],
    statistics: Statistics | None,
    watch: engine.Watch | None,
) -> Tensor:
    L = mix_w.shape[-1]
    if isinstance(getattr(masknet, "module", masknet), SPGMMaskNet):
        return masknet(mix_w, torch.tensor(frames, device="cpu"), statistics, watch)
    if statistics is not None:
        raise ValueError(
            f"{type(masknet).__name__} has averages over the whole recording only: "
            "other statistics need an SPGMMaskNet."
        )
    together = len(frames) == 1 or not any(
        isinstance(part, MIXING) for part in masknet.modules()
    )
    if together and all(count == L for count in frames):
        return masknet(mix_w)
    alone = [masknet(mix_w[b : b + 1, :, :n]) for b, n in enumerate(frames)]
    padded = [F.pad(mask, (0, L - mask.shape[-1])) for mask in alone]
    return torch.cat(padded, dim=1)

"""The level of recordings and of the voices in them.

A network has learnt at one level, and without an offset: so each recording is freed of
its mean and brought to that level on its way in. A separator leaves the level of its
voices open: so they are fitted to the recording on their way out. Voices have no
offset; what a recording has of it belongs to nobody, and is left out.

A knock on the table would rule all averages over a recording: so what is far above the
level is lowered for the network, as a limiter does, and its voices are raised again.

Axes: T samples, F frames, B utterances, spks sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speechbrain_spgm.audio import AudioFileError
from speechbrain_spgm.errors import UserError

# The root mean square that recordings are brought to, over the frames in which there is
# sound: the mean of LibriMix's mixtures, which models are trained on.
LEVEL = 10 ** (-25 / 20)
FRAME = 160  # samples whose power is taken together
# Frames so far below the level (15.9 dB, as in ITU-T P.56) are pauses; this share of
# all frames, the loudest, counts as no louder than the next: they may be clicks.
PAUSE, CLICKS = 10 ** (-15.9 / 10), 0.02
# Times the power of the level (12 dB) that a frame may have; and how many frames on
# either side are lowered with one that has more.
TOP, REACH = 10**1.2, 2
# Where samples differ by less than this share of the largest, they hold an offset and
# the rounding of 32-bit floats.
RESOLUTION = 2**-23
LOUDEST = 1e30  # peak

# Below this ratio of eigenvalues the outputs count as copies of each other (correlation
# above 0.9998): telling them apart would take opposite gains of a hundred and more.
COPIES = 1e-4


class Centre(NamedTuple):
    """What frees a recording of its mean and brings its numbers near 1.

    Scalars, float64; the scale is 1 / peak, or 0 where there is no sound.
    """

    mean: Tensor
    peak: Tensor
    scale: Tensor

    def of(self, samples: Tensor) -> Tensor:
        """``(samples - mean) * scale`` in float64, of any shape."""
        wide = samples.to(torch.float64, copy=True)  # the only copy
        return wide.sub_(self.mean).mul_(self.scale)


def find_centre(pieces: Iterable[Tensor]) -> Centre:
    """Where a recording, piece by piece, has its middle, and how far it reaches.

    Example
    -------
    >>> pieces = torch.tensor([2.0, 4.0]), torch.tensor([0.0])
    >>> find_centre(pieces).of(torch.tensor([2.0, 4.0, 0.0])).tolist()
    [0.0, 0.5, -0.5]
    """
    total, count, low, high = 0.0, 0, [], []
    for piece in pieces:
        total = total + piece.double().sum()
        count += piece.numel()
        least, most = piece.detach().aminmax()
        low.append(least.double())
        high.append(most.double())
    least, most = torch.stack(low).min(), torch.stack(high).max()
    peak = torch.maximum(-least, most)
    heard = most - least > RESOLUTION * peak
    return Centre(total / count, peak, torch.where(heard, 1 / peak, 0))


def check_peak(name: str, centre: Centre) -> None:
    """Refuses a recording whose voices may not fit into 32-bit floats."""
    if centre.peak > LOUDEST:
        raise AudioFileError(
            f"{name} is too loud for the model (peak {centre.peak:.3g}, full scale is "
            "1): divide its samples by their peak."
        )


def check_voices(name: str, est: Tensor) -> None:
    """Refuses what a model makes of a recording if it is no sound."""
    if not est.isfinite().all():
        raise AudioFileError(
            f"{name} cannot be separated: the model's output holds NaN or infinity; "
            "take precision fp32, or another model."
        )


def frame_powers(samples: Tensor) -> Tensor:
    """The mean power of each frame of ``[T]``, float64 ``[ceil(T / FRAME)]``.

    What is left at the end counts as a frame with silence behind it.
    """
    T = len(samples)
    frames = F.pad(samples.double(), (0, -T % FRAME)).view(-1, FRAME)
    return frames.square().sum(-1) / min(T, FRAME)


def level_gain(powers: Tensor) -> Tensor:
    """What brings a recording of powers ``[F]`` to ``LEVEL``; 0 for silence.

    Whatever it has of pauses and clicks; a scalar, float64.

    Example
    -------
    >>> talk = torch.full((50,), 0.04)
    >>> round(float(level_gain(talk) * 0.2), 4)
    0.0562
    >>> pause, click = torch.full((500,), 1e-6), torch.full((1,), 100.0)
    >>> round(float(level_gain(torch.cat([talk, pause, click])) * 0.2), 4)
    0.0562
    """
    powers = powers.sort(descending=True).values
    powers = powers.clamp(max=powers[int(CLICKS * len(powers))])
    # The level if the k loudest frames are all that is heard.
    levels = powers.sum() / torch.arange(1, len(powers) + 1, device=powers.device)
    level = levels[(powers >= PAUSE * levels).nonzero()[-1, 0]]
    return LEVEL / level.sqrt() if level > 0 else torch.zeros_like(level)


class Level(NamedTuple):
    """What brings the samples of a recording to ``LEVEL`` and none far above it.

    ``gain`` is a scalar, float64, 0 for silence; ``lowered`` are the factors, below 1,
    of the frames ``[F]``, or None where nothing is lowered.
    """

    gain: Tensor
    lowered: Tensor | None

    def limits(self, start: int, stop: int) -> Tensor:
        """Factors of samples start to stop, ``[stop - start]``, or ``[1]`` if all 1."""
        if self.lowered is None:
            return torch.ones_like(self.gain).view(1)
        # frames    |-----i-----|---i + 1---|    lines between their middles
        samples = torch.arange(start, stop, device=self.lowered.device)
        place = ((samples.double() + 0.5) / FRAME - 0.5).clamp(0, len(self.lowered) - 1)
        i = place.floor().long()
        after = self.lowered[(i + 1).clamp(max=len(self.lowered) - 1)]
        return torch.lerp(self.lowered[i], after, place - i)


def find_level(powers: Tensor) -> Level:
    """The level of a recording of powers ``[F]``.

    Example
    -------
    >>> talk = torch.full((500,), 0.04, dtype=torch.float64)
    >>> find_level(talk).lowered is None
    True
    >>> talk[100] = 40.0  # a knock, 30 dB above it
    >>> find_level(talk).lowered[97:104].numpy().round(2)
    array([1.  , 0.13, 0.13, 0.13, 0.13, 0.13, 1.  ])
    """
    gain = level_gain(powers)
    top = TOP * LEVEL**2
    powers = powers * gain.square()
    if not (powers > top).any():
        return Level(gain, None)
    lowered = (top / powers.clamp(min=top)).sqrt()
    lowered = -F.max_pool1d(-lowered.unsqueeze(0), 2 * REACH + 1, 1, REACH)[0]
    return Level(gain, lowered)


def bring_to_level(mix: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Frees mixtures ``[B, T]`` of their means and brings each to ``LEVEL``.

    Only the valid samples ``lengths`` are read. Float64 ``[B, T]``, zero beyond them
    and without sound; and ``[B, 1]`` or, if any is limited, ``[B, T]``: times these,
    they have the mixtures' own levels.

    Example
    -------
    >>> mix = torch.tensor([[0.1, 0.3, 0.1, 0.3], [0.1, 0.1, 0.1, 9.0]])
    >>> levelled, levels = bring_to_level(mix, [4, 3])
    >>> levelled.float()
    tensor([[-0.0562,  0.0562, -0.0562,  0.0562],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    >>> levels.float()
    tensor([[1.7783],
            [0.0000]])
    """
    rows, levels = [], []
    for row, length in zip(mix, lengths, strict=True):
        centre = find_centre([row[:length]])
        centred = centre.of(row[:length])
        level = find_level(frame_powers(centred))
        gains = level.gain * level.limits(0, mix.shape[1])
        rows.append(F.pad(centred * gains[:length], (0, mix.shape[1] - length)))
        levels.append(centre.peak / gains if level.gain > 0 else gains)  # silence: 0
    return torch.stack(rows), torch.stack(torch.broadcast_tensors(*levels))


def check_levels(normalize: str | None, consistent: bool) -> None:
    """Refuses levels that cannot be."""
    if normalize not in (None, "peak"):
        raise UserError(f'normalize is {normalize!r}, but must be None or "peak".')
    if normalize and consistent:
        raise UserError(
            "voices that sum to the mixture cannot have peak 1 each: leave out either "
            "normalize or consistent."
        )


def restore_level(
    est: Tensor,
    mix: Tensor,
    centre: Centre,
    normalize: str | None = None,
    consistent: bool = False,
) -> Tensor:
    """Voices ``[T, spks]`` of any level at that of ``[T]``, or as the user wants them.

    Without their means, unless ``consistent`` shares one out.
    """
    voices = est.double()
    voices -= voices.mean(0)
    if normalize:
        return scale_to_peak(voices.to(est.dtype))
    voices *= centre.peak * mixture_gains(voices.T @ voices, voices.T @ centre.of(mix))
    return (share_rest(voices, mix) if consistent else voices).to(est.dtype)


def share_rest(voices: Tensor, mix: Tensor) -> Tensor:
    """Shares out, in place, what voices ``[T, spks]`` lack of a mixture ``[T]``."""
    rest = mix - voices.sum(-1)
    return voices.add_(rest.unsqueeze(-1), alpha=1 / voices.shape[-1])


def fit_mixture(est: Tensor, mix: Tensor) -> Tensor:
    """Scales every output ``[T, spks]`` so that their sum fits the mixture ``[T]``.

    The gains g minimise ``|mix - sum_i g_i est_i|^2``. A gain may be negative: training
    by SI-SDR leaves the polarity open as well as the level. Outputs that are copies of
    each other share one gain (the smallest gains among those that fit equally well);
    silent outputs stay silent.
    """
    wide = est.double()
    return (wide * mixture_gains(wide.T @ wide, wide.T @ mix.double())).to(est.dtype)


def mixture_gains(gram: Tensor, target: Tensor) -> Tensor:
    """The gains ``[spks]`` of ``fit_mixture`` from sums taken piece by piece, float64.

    Products of the outputs with each other ``[spks, spks]``, with the mixture
    ``[spks]``.
    """
    norms = gram.diagonal().sqrt()
    norms = norms.where(norms > 0, 1)  # so that quiet outputs count as loud ones
    gram = gram / norms / norms.unsqueeze(-1)
    inverse = torch.linalg.pinv(gram, rtol=COPIES, hermitian=True)
    return inverse @ (target / norms) / norms


def scale_to_peak(est: Tensor) -> Tensor:
    """Scales outputs ``[T, spks]`` to peak 1, as SpeechBrain does, but silence."""
    peak = est.abs().amax(dim=0)
    return est / peak.where(peak > 0, 1)

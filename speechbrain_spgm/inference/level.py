"""The level of separated voices, which a separator leaves open.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this ratio of eigenvalues the outputs count as copies of each other (correlation
# above 0.9998): telling them apart would take opposite gains of a hundred and more.
COPIES = 1e-4


def fit_mixture(est: Tensor, mix: Tensor) -> Tensor:
    """Scales every output by its own gain, so that their sum fits the mixture.

    The gains g minimise ``|mix - sum_i g_i est_i|^2``. A gain may be negative: training
    by SI-SDR leaves the polarity open as well as the level. Outputs that are copies of
    each other share one gain (the smallest gains among those that fit equally well);
    silent outputs stay silent.

    Arguments
    ---------
    est : torch.Tensor
        Outputs at any level, ``[T, spks]``.
    mix : torch.Tensor
        The mixture, ``[T]``.

    Returns
    -------
    scaled : torch.Tensor
        ``[T, spks]``.

    Example
    -------
    >>> voices = torch.tensor([[1.0, 0.0], [0.0, 4.0], [2.0, 0.0]])
    >>> fit_mixture(voices * torch.tensor([10.0, -0.5]), mix=voices.sum(-1))
    tensor([[1., 0.],
            [0., 4.],
            [2., 0.]])
    """
    norms = est.double().norm(dim=0)
    norms = norms.where(norms > 0, 1)
    unit = est.double() / norms  # [T, spks], so that quiet outputs count as loud ones
    gram, target = unit.T @ unit, unit.T @ mix.double()  # [spks, spks], [spks]
    gains = torch.linalg.pinv(gram, rtol=COPIES, hermitian=True) @ target
    return (unit * gains).to(est.dtype)


def scale_to_peak(est: Tensor) -> Tensor:
    """Scales every output to peak 1, as SpeechBrain does; silence stays silence.

    Arguments
    ---------
    est : torch.Tensor
        Outputs, ``[T, spks]``.

    Returns
    -------
    scaled : torch.Tensor
        ``[T, spks]``.

    Example
    -------
    >>> scale_to_peak(torch.tensor([[1.0, 0.0], [-4.0, 0.0]]))
    tensor([[ 0.2500,  0.0000],
            [-1.0000,  0.0000]])
    """
    peak = est.abs().amax(dim=0)
    return est / peak.where(peak > 0, 1)

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
    wide = est.double()
    return (wide * mixture_gains(wide.T @ wide, wide.T @ mix.double())).to(est.dtype)


def mixture_gains(gram: Tensor, target: Tensor) -> Tensor:
    """The gains of ``fit_mixture`` from sums that may be taken piece by piece.

    Arguments
    ---------
    gram : torch.Tensor
        Products of the outputs with each other, ``[spks, spks]``, float64.
    target : torch.Tensor
        Products of the outputs with the mixture, ``[spks]``, float64.

    Returns
    -------
    gains : torch.Tensor
        ``[spks]``, float64.

    Example
    -------
    >>> mixture_gains(torch.diag(torch.tensor([4.0, 0.0])), torch.tensor([2.0, 0.0]))
    tensor([0.5000, 0.0000])
    """
    norms = gram.diagonal().sqrt()
    norms = norms.where(norms > 0, 1)  # so that quiet outputs count as loud ones
    gram = gram / norms / norms.unsqueeze(-1)
    inverse = torch.linalg.pinv(gram, rtol=COPIES, hermitian=True)
    return inverse @ (target / norms) / norms


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

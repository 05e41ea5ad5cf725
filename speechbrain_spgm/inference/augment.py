"""Test-time augmentation: a weighted mean of several views of one mixture.

A network that is asked again, about the same mixture delayed by a part of a chunk or
with inverted polarity, makes other errors. Delays are undone, the voices are put in the
order of the first view, and some of the errors cancel in the mean::

    view 0    |mixture                      |
    view 1    | delay |-mixture                      |

People who talk have nothing in common, so voices that do are badly separated: the less
a view's have, the more it counts.

Axes: B utterances, T samples, spks sources, V views.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference.level import mixture_gains
from speechbrain_spgm.models.published import card_of

MOST_VIEWS = 8  # each costs as much time as the first
TRUST = 20.0  # a view whose doubt is 0.05 less counts e times as much


def check_views(views: object, where: str = "views") -> int:
    """A number of views from 1 to ``MOST_VIEWS``, or a UserError that names it."""
    if type(views) is not int or not 1 <= views <= MOST_VIEWS:
        raise UserError(
            f"{where} is {views!r}, but must be a whole number from 1 to {MOST_VIEWS}."
        )
    return views


def views_of(config: object) -> int:
    """How many views a model's card asks for where whole recordings are separated."""
    return check_views(card_of(config).get("views", 1), "views in config.json")


def separate_augmented(
    once: Callable[[Tensor, Tensor, int], Tensor],
    mix: Tensor,
    lengths: Tensor,
    views: int,
    period: int,
) -> Tensor:
    """The weighted mean of several views, each utterance as it would be alone.

    ``once`` gives ``[B, T, spks]``, zero beyond the valid samples ``[B]``, from ``[B,
    T]``, these and the number of the view; the first is the mixture as it is. After
    ``period`` samples, from one chunk to the next, a delay changes nothing.
    """
    first = once(mix, lengths, 0)
    if views == 1:
        return first
    valid = torch.arange(mix.shape[1], device="cpu") < lengths.cpu().view(-1, 1)
    heard = mix.where(valid.to(mix.device), 0)
    doubt = doubts_of(first, heard)
    total, weights = first, 1.0
    for view in range(1, views):
        delay, sign = view * period // views, -1 if view % 2 else 1
        delayed = sign * F.pad(mix, (delay, 0))
        est = sign * once(delayed, lengths + delay, view)[:, delay:]
        weight = torch.exp(TRUST * (doubt - doubts_of(est, heard))).to(est)
        weight = weight.view(-1, 1, 1)
        total = torch.addcmul(total, in_order_of(first, est), weight)
        weights = weights + weight
        del est  # the next view needs the memory
    return total / weights


def doubts_of(est: Tensor, mix: Tensor) -> Tensor:
    """:func:`doubt_of` voices ``[B, T, spks]`` of any level in ``[B, T]``, ``[B]``."""
    est = est.to(torch.promote_types(est.dtype, torch.float32))
    parts = est, mix.to(est).unsqueeze(-1)
    products = [(est.mT @ part).double().cpu().nan_to_num(0, 0, 0) for part in parts]
    grams, targets = products[0], products[1].squeeze(-1)
    gains = torch.stack(
        [mixture_gains(*pair) for pair in zip(grams, targets, strict=True)]
    )
    return doubt_of(grams * gains.unsqueeze(1) * gains.unsqueeze(2))


def doubt_of(products: Tensor) -> Tensor:
    """How much voices have in common, from their products ``[..., spks, spks]``.

    For the sum x of voices v it is 1 - sum |v|^2 / |x|^2, from 0 to 1: 0 for voices
    that have nothing in common, 1/2 where both of two hold half of x.

    Example
    -------
    >>> doubt_of(torch.tensor([[4.0, 0.0], [0.0, 1.0]])), doubt_of(torch.ones(2, 2))
    (tensor(0.), tensor(0.5000))
    """
    own, total = products.diagonal(dim1=-2, dim2=-1).sum(-1), products.sum((-2, -1))
    return (1 - own / total).abs().nan_to_num(1).clamp(max=1)


def in_order_of(first: Tensor, est: Tensor) -> Tensor:
    """Puts the voices ``[B, T, spks]`` of each utterance in the order of ``first``.

    Example
    -------
    >>> first = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    >>> in_order_of(first, first.flip(-1)).equal(first)
    True
    """
    # [B, spks of first, spks of est]
    products = (first.mT @ est).detach().double().cpu()
    orders = [
        linear_sum_assignment(product.nan_to_num(), maximize=True)[1]
        for product in products
    ]
    return torch.stack(
        [voices[:, order] for voices, order in zip(est, orders, strict=True)]
    )

"""Test-time augmentation: the mean over several views of one mixture.

A network that is asked again, about the same mixture delayed by a part of a chunk or
with inverted polarity, makes other errors. Delays are undone, the voices are put in the
order of the first view, and some of the errors cancel in the mean::

    view 0    |mixture                      |
    view 1    | delay |-mixture                      |

Axes: B utterances, T samples, spks sources, V views.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.models.published import card_of

MOST_VIEWS = 8  # each costs as much time as the first


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
    """The mean over several views, each utterance as it would be alone.

    ``once`` gives ``[B, T, spks]``, zero beyond the valid samples ``[B]``, from ``[B,
    T]``, these and the number of the view; the first is the mixture as it is. After
    ``period`` samples, from one chunk to the next, a delay changes nothing.
    """
    total = once(mix, lengths, 0)
    first = total
    for view in range(1, views):
        delay, sign = view * period // views, -1 if view % 2 else 1
        delayed = sign * F.pad(mix, (delay, 0))
        est = sign * once(delayed, lengths + delay, view)[:, delay:]
        total = total + in_order_of(first, est)
        del est  # the next view needs the memory
    return total / views if views > 1 else total


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

"""What a run shows of itself after each epoch: curves and separated mixtures.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger
from torch.utils.data import Dataset

from speechbrain_spgm.data import MixtureBatch
from speechbrain_spgm.errors import MissingPackage
from speechbrain_spgm.metrics.pictures import Example, draw_curves, write_examples
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss, reorder

logger = get_logger(__name__)


def separate_examples(
    separate: Callable[[MixtureBatch], torch.Tensor], dataset: Dataset, number: int
) -> list[Example]:
    """Separates the first ``number`` mixtures, in the order of their references.

    ``separate`` goes from a batch to estimates [B, T, spks].
    """
    examples = []
    for index in range(min(number, len(dataset))):
        batch = MixtureBatch.collate([dataset[index]])
        estimates = separate(batch).float().cpu()
        pit = pit_si_sdr_loss(estimates, batch.sources)
        estimates = reorder(estimates, pit.permutation)
        (id,) = batch.ids
        examples.append(Example(id, batch.mix[0], estimates[0], batch.sources[0]))
    return examples


def show_run(
    folder: str | Path,
    history: Sequence[Mapping[str, float]],
    examples: Sequence[Example],
    sample_rate: int,
) -> None:
    """Writes ``curves.png`` and ``examples`` anew; pictures only with matplotlib."""
    folder = Path(folder)
    try:
        if examples:
            write_examples(folder / "examples", examples, sample_rate)
        draw_curves(folder / "curves.png", history)
    except MissingPackage as error:
        logger.info(f"No pictures of this epoch: {error}")

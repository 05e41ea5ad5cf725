"""What a model is: sizes counted from its modules, the rest from its card.

Axes: K frames of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from speechbrain_spgm.inference.separation import SPGMSeparation
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.models.config import count_parameters
from speechbrain_spgm.models.published import card_of

NOT_STATED = "not stated"
STATED = ("licence", "training_data", "quality")


def describe(model: SPGMSeparation) -> dict[str, str]:
    """The facts about a model, in the order in which ``spgm info`` shows them.

    Sizes; licence, training data and measured quality ("not stated" if there is no
    card); then whatever else the card holds.
    """
    config = getattr(model.hparams, "config", {})
    facts = {"name": str(config.get("config_name", NOT_STATED)), **_sizes(model)}
    card = card_of(config)
    for key in [*STATED, *(key for key in card if key not in STATED)]:
        label = "measured quality" if key == "quality" else str(key).replace("_", " ")
        facts.update(_flatten(label, card.get(key, NOT_STATED)))
    return facts


def _sizes(model: SPGMSeparation) -> dict[str, str]:
    parts = [model.mods.encoder, model.mods.masknet, model.mods.decoder]
    blocks = [m for m in model.mods.masknet.modules() if isinstance(m, SPGMBlock)]
    total, spgm = count_parameters(parts), count_parameters(blocks)
    rate, stride = model.sample_rate, model.mods.encoder.conv1d.stride[0]
    # RE-SepFormer's chunks do not overlap, and have another name.
    K = getattr(model.mods.masknet, "K", None)
    K = getattr(model.mods.masknet, "segment_size", None) if K is None else K
    chunk = f"{1000 * K * stride / rate:g} ms ({K} frames)" if K else NOT_STATED
    return {
        "parameters": f"{total:,}",
        "of them SPGM": f"{spgm:,} ({spgm / total:.1%})",
        "sample rate": f"{rate} Hz",
        "speakers": str(model.num_spks),
        "receptive chunk": chunk,
    }


def _flatten(label: str, value: Any) -> Iterator[tuple[str, str]]:
    """One line per value: a mapping gives one for each of its entries."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(f"{label}: {str(key).replace('_', ' ')}", inner)
    elif isinstance(value, list):
        yield label, ", ".join(map(str, value)) or NOT_STATED
    else:
        yield label, NOT_STATED if value in (None, "", {}) else str(value)

"""How much of a voice is heard where another output should be silent.

    python -m benchmarks.leak --list libri2mix_test-clean.csv \\
        --data-folder LibriSpeech --mixtures 50

Makes two recordings of each test mixture's voices: a conversation in which the second
voice begins before the first has ended, and the first voice alone. Separates them with
the shipped model (or ``--model``) and writes ``docs/leak.md``. The leak of a stretch is
the power of the output whose voice is silent there, against the power of the voice that
talks, both at the levels that ``spgm separate`` gives them.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.evidence import mean
from benchmarks.testlist import made_by, run_study
from speechbrain_spgm.audio import Recording
from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss, reorder

SECONDS = 5.0  # of each recording
OVERLAP = 0.25  # of a conversation in which both talk
RMS = 0.05  # of each voice while it talks
MARGIN = 0.05  # seconds next to a turn that belong to no stretch
SILENCE_DB = -100.0  # what a leak is counted as at least


class Leaks(NamedTuple):
    """In dB: of each silent stretch of the conversations, of each lone voice."""

    conversations: list[float]
    alone: list[float]


def conversation(voices: Tensor, rate: int) -> tuple[Tensor, list[tuple[int, slice]]]:
    """Voices ``[T, 2]`` that take turns; and which is silent where.

    Example
    -------
    >>> sources, stretches = conversation(torch.ones(800, 2), rate=100)
    >>> sources.bool().sum(0).tolist(), sources.bool().all(1).float().mean().item()
    ([500, 500], 0.25)
    >>> stretches
    [(1, slice(0, 295, None)), (0, slice(505, 800, None))]
    """
    # 0            begin       end            T
    # |---------------:---------|             |    voice 0
    # |               |---------:-------------|    voice 1
    T = len(voices)
    begin, end = round((1 - OVERLAP) / 2 * T), round((1 + OVERLAP) / 2 * T)
    margin = round(MARGIN * rate)
    sources = voices.clone()
    sources[end:, 0] = 0
    sources[:begin, 1] = 0
    return sources, [(1, slice(0, begin - margin)), (0, slice(end + margin, T))]


def equally_loud(sources: Tensor, rate: int) -> Tensor:
    """The first seconds of ``[T, spks]``, every voice with an RMS of ``RMS``."""
    voices = sources[: round(SECONDS * rate)]
    return RMS * voices / voices.square().mean(0).sqrt()


def separate(model: SPGMSeparation, sources: Tensor) -> Tensor:
    """Estimates ``[T, spks]`` in the order of the sources, as files would hold them."""
    recording = Recording(sources.sum(-1), model.sample_rate, "conversation")
    est = model.separate_recording(recording, views=1)
    return reorder(est, pit_si_sdr_loss(est, sources[None]).permutation)[0]


def leak_db(output: Tensor, voice: Tensor) -> float:
    """Power of an output ``[T]`` against that of the voice that talks ``[T]``."""
    ratio = output.square().mean() / voice.square().mean()
    return max(SILENCE_DB, float(10 * torch.log10(ratio)))


def study(model: SPGMSeparation, mixtures: MixtureList) -> Leaks:
    """The leaks of two recordings for each mixture, of ``SECONDS`` at most."""
    leaks = Leaks([], [])
    rate = mixtures.sample_rate
    for i in range(len(mixtures)):
        voices = equally_loud(mixtures[i].sources, rate)
        sources, stretches = conversation(voices, rate)
        est = separate(model, sources)
        for silent, where in stretches:
            leak = leak_db(est[where, silent], sources[where, 1 - silent])
            leaks.conversations.append(leak)
        lone = torch.stack([voices[:, 0], torch.zeros(len(voices))], dim=-1)
        leaks.alone.append(leak_db(separate(model, lone)[:, 1], lone[:, 0]))
    return leaks


def report(leaks: Leaks, name: str) -> str:
    """The table in Markdown."""
    count = len(leaks.alone)

    def row(what: str, values: Sequence[float]) -> str:
        return f"| {what} | {len(values)} | {mean(values)} | {max(values):.1f} |"

    text = (
        f"{made_by('leak', count)} with {name}, one view, exact mode: the voices "
        f"of {count} test mixtures, the first {SECONDS:g} s at most, equally "
        "loud. In a conversation the second voice begins before the first has ended, "
        f"so that both talk in {OVERLAP:.0%} of the time. A leak is the power of the "
        "output whose voice is silent against that of the voice that talks; ± is the "
        "95% confidence interval."
    )
    lines = [
        f"# What leaks into an output that should be silent\n\n{text}\n",
        "| where an output should be silent | stretches | leak, dB | worst, dB |",
        "|---|---|---|---|",
        row("conversation, before and after a turn", leaks.conversations),
        row("one voice alone, the other output", leaks.alone),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measures and writes.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    run_study("leak", argv, study, report)


if __name__ == "__main__":
    main()

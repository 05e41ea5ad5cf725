"""How good separated voices are, told without references: to know what to throw away.

Axes: T samples, F frames, S bins, H parts of a signal, spks sources.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from speechbrain_spgm.audio import resample
from speechbrain_spgm.errors import UserError, require
from speechbrain_spgm.metrics.si_sdr import even, pit_si_sdr_loss

WINDOW = 0.032  # seconds of a frame
LIMIT_DB = 60.0  # what is given in dB is cut to plus or minus this
SHIFT = 0.03  # seconds that the second look at a mixture begins later
MOS_RATE, MOS_SECONDS, MOS_HOP = 16_000, 9.01, 1.0  # what DNSMOS hears at a time
# From the network's output to the scale of listeners, as the authors fitted it.
MOS_SCALES = {
    "signal": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}


class Heard:
    """A mixture ``[T]``, float32, and what was made of it, ``[T, spks]``.

    ``separate`` is from a mixture ``[T']`` to voices ``[T', spks]`` at this rate.
    """

    def __init__(
        self,
        mix: Tensor,
        voices: Tensor,
        sample_rate: int,
        separate: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.mix, self.voices, self.sample_rate = mix, voices, sample_rate
        self.separate = separate
        self._kept: dict[Any, Any] = {}

    def once(self, measure: Callable[[Heard], Any]) -> Any:
        """What ``measure`` finds, measured the first time."""
        if measure not in self._kept:
            self._kept[measure] = measure(self)
        return self._kept[measure]


class Measure(NamedTuple):
    """A score: its name, its unit, what measures it, and how it goes with quality.

    ``measure`` returns a value for each voice; ``better`` is 1 if higher is better, -1
    if lower is.
    """

    name: str
    unit: str
    measure: Callable[[Heard], Sequence[float]]
    better: int
    packages: tuple[str, ...] = ()


def powers(heard: Heard) -> Tensor:
    """Spectrograms of the voices, ``[spks, S, F]``."""
    length = max(2, round(WINDOW * heard.sample_rate))
    voices = F.pad(heard.voices.T, (0, max(0, length - len(heard.voices))))
    spectra = torch.stft(
        voices.double(),
        length,
        length // 2,
        window=torch.hann_window(length, dtype=torch.float64),
        pad_mode="constant",
        return_complex=True,
    )
    return spectra.abs().square()


def measure_shared_energy(heard: Heard) -> list[float]:
    """The share of the energy where several voices sound: 0, none; 1, all are alike.

    Of each bin of the spectrogram, what is not the loudest voice's. Two people seldom
    have energy at the same time and frequency; what a network could not tell apart is
    in both.

    Example
    -------
    >>> voice = torch.sin(torch.arange(8000.0)).unsqueeze(-1)
    >>> apart = torch.cat([voice, torch.zeros_like(voice)], -1)
    >>> [round(measure_shared_energy(Heard(voice[:, 0], v, 8000))[0], 6)
    ...  for v in (apart, voice.repeat(1, 2))]
    [0.0, 1.0]
    """
    bins = heard.once(powers)
    spks, total = len(bins), float(bins.sum())
    rest = total - float(bins.amax(0).sum())
    share = rest / total * spks / (spks - 1) if total > 0 and spks > 1 else 0.0
    return [min(1.0, max(0.0, share))] * spks


def measure_correlation(heard: Heard) -> list[float]:
    """The correlation of the voices' magnitudes over the spectrogram, the largest.

    Example
    -------
    >>> noise = torch.randn(8000, 2)
    >>> round(measure_correlation(Heard(noise[:, 0], noise[:, :1].repeat(1, 2), 8000))[0], 3)
    1.0
    """  # noqa: E501
    magnitudes = heard.once(powers).sqrt().flatten(1)
    magnitudes = magnitudes - magnitudes.mean(1, keepdim=True)
    norms = magnitudes.norm(dim=1).clamp_min(1e-20)
    found = [
        float(magnitudes[a] @ magnitudes[b] / norms[a] / norms[b])
        for a, b in combinations(range(len(norms)), 2)
    ]
    return [max(found, default=0.0)] * len(norms)


def measure_residual(heard: Heard) -> list[float]:
    """What the voices lack of the mixture, in dB of it.

    Example
    -------
    >>> mix = torch.tensor([1.0, -1.0] * 100)
    >>> voices = 0.45 * mix.unsqueeze(-1).repeat(1, 2)
    >>> [round(value, 2) for value in measure_residual(Heard(mix, voices, 8000))]
    [-20.0, -20.0]
    """
    mix = heard.mix.double()
    rest = mix - heard.voices.double().sum(-1)
    power, lack = (x.var(correction=0) for x in (mix, rest))  # an offset is no sound
    ratio = float(lack / power.clamp_min(1e-20))
    return [round(_decibels(ratio), 6)] * heard.voices.shape[1]


def measure_agreement(heard: Heard) -> list[float]:
    """How alike a second look at the mixture finds each voice: SI-SDR in dB.

    The second look begins 30 ms later and has the opposite polarity. What the network
    is sure of it finds again.
    """
    if heard.separate is None:
        raise UserError("the score agreement needs the model: leave it out.")
    start = round(SHIFT * heard.sample_rate)
    if len(heard.mix) <= 2 * start:
        return [0.0] * heard.voices.shape[1]
    again = -heard.separate(-heard.mix[start:])
    first, second = (even(x, 0)[None] for x in (heard.voices[start:], again))
    pit = pit_si_sdr_loss(second, first, torch.tensor([first.shape[1]]))
    order = pit.permutation[0].tolist()
    return [
        _si_sdr(second[0, :, place], first[0, :, voice])
        for voice, place in enumerate(order)
    ]


def measure_mos(part: str) -> Callable[[Heard], list[float]]:
    """DNSMOS (P.835): what listeners would say, from 1 to 5."""
    place = list(MOS_SCALES).index(part)

    def measure(heard: Heard) -> list[float]:
        scale = np.poly1d(MOS_SCALES[part])
        return [float(scale(raw[:, place]).mean()) for raw in heard.once(listen)]

    return measure


def listen(heard: Heard) -> list[np.ndarray]:
    """The raw answers of DNSMOS's network to each voice, each ``[H, 3]``."""
    voices = resample(heard.voices.T.float(), heard.sample_rate, MOS_RATE)
    voices = voices / voices.abs().amax().clamp_min(1.0)
    length, hop = int(MOS_SECONDS * MOS_RATE), round(MOS_HOP * MOS_RATE)
    answers = []
    for voice in voices:
        while len(voice) < length:  # as the authors do
            voice = torch.cat([voice, voice])
        parts = int(len(voice) // MOS_RATE - MOS_SECONDS) + 1
        pieces = voice.unfold(0, length, hop)[:parts]  # [H, length]
        inputs = [{"input_1": piece[None].numpy()} for piece in pieces]
        found = [_listener().run(None, given)[0] for given in inputs]
        answers.append(np.concatenate(found))
    return answers


_loading = threading.Lock()


def _listener() -> Any:
    with _loading:
        return _load_listener()


@cache
def _load_listener() -> Any:
    """DNSMOS's network from speechmos; its code wants librosa, which it need not."""
    runtime = require("onnxruntime", "onnxruntime", "The score DNSMOS")
    require("speechmos", "speechmos", "The score DNSMOS")
    folder = Path(importlib.util.find_spec("speechmos").origin).parent
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(
        str(folder / "dnsmos_models" / "sig_bak_ovr.onnx"),
        options,
        providers=["CPUExecutionProvider"],
    )


MOS_PACKAGES = ("speechmos", "onnxruntime")
REFERENCE_FREE = {
    "agreement": Measure("agreement", " dB", measure_agreement, 1),
    "shared_energy": Measure("shared energy", "", measure_shared_energy, -1),
    "correlation": Measure("correlation", "", measure_correlation, -1),
    "residual": Measure("residual", " dB", measure_residual, -1),
    "dnsmos": Measure("DNSMOS", "", measure_mos("overall"), 1, MOS_PACKAGES),
    "dnsmos_signal": Measure(
        "DNSMOS, signal", "", measure_mos("signal"), 1, MOS_PACKAGES
    ),
    "dnsmos_background": Measure(
        "DNSMOS, background", "", measure_mos("background"), 1, MOS_PACKAGES
    ),
}


def check_scores(names: Iterable[str]) -> tuple[str, ...]:
    """Makes sure before a long run that its scores can be measured.

    Example
    -------
    >>> check_scores(["shared_energy"])
    ('shared_energy',)
    >>> check_scores(["mos"])
    Traceback (most recent call last):
    ...
    speechbrain_spgm.errors.UserError: there is no score 'mos': take some of agreement, shared_energy, correlation, residual, dnsmos, dnsmos_signal, dnsmos_background.
    """  # noqa: E501
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in REFERENCE_FREE:
            raise UserError(
                f"there is no score {name!r}: take some of {', '.join(REFERENCE_FREE)}."
            )
        for package in REFERENCE_FREE[name].packages:
            require(package, package, f"The score {REFERENCE_FREE[name].name}")
    return names


def measure_all(names: Iterable[str], heard: Heard) -> list[dict[str, float]]:
    """Scores of each voice by name, rounded to 4 digits behind the point.

    Example
    -------
    >>> voices = torch.zeros(800, 2)
    >>> measure_all(["shared_energy"], Heard(voices[:, 0], voices, 8000))
    [{'shared_energy': 0.0}, {'shared_energy': 0.0}]
    """
    found = {name: heard.once(REFERENCE_FREE[name].measure) for name in names}
    return [
        {name: round(float(values[voice]), 4) for name, values in found.items()}
        for voice in range(heard.voices.shape[1])
    ]


def _si_sdr(signal: Tensor, reference: Tensor) -> float:
    """SI-SDR in dB within the limit; 0 where one of the two is silent."""
    signal, reference = (x.double() - x.double().mean() for x in (signal, reference))
    energy, own = float(reference @ reference), float(signal @ signal)
    if energy <= 0 or own <= 0:
        return 0.0
    part = float(signal @ reference) ** 2 / energy
    return _decibels(part / max(own - part, 1e-20))


def _decibels(ratio: float) -> float:
    return float(np.clip(10 * np.log10(max(ratio, 1e-20)), -LIMIT_DB, LIMIT_DB))

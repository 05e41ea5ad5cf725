"""The full band against the model's alone, on mixtures of recordings at high rates.

    python -m benchmarks.band --manifest 44/mixtures.csv 22/mixtures.csv

Separates every mixture of the manifests with the shipped model, without and with the
band above the model's, and prints a table for ``docs/full_band.md``: SI-SDR over the
whole band, SI-SDR of what both have below 4 kHz, and the log-spectral distance (the
root mean square over frequencies of the difference in dB, frames of 32 ms, 60 dB below
the loudest bin of the reference counts as silence; mean over frames).

Axes: T samples, spks sources, n mixtures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from speechbrain_spgm.audio import read_audio, resample
from speechbrain_spgm.data.manifests import ManifestRow, read_manifest
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.inference.band import UpperBand
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss, reorder, si_sdr
from speechbrain_spgm.training.experiment import user_errors

FRAME = 0.032  # seconds
FLOOR = 1e-6  # of the loudest bin's power


class Measured(NamedTuple):
    """Means over the voices of a mixture: whole band, low band, distance, in dB."""

    whole: float
    low: float
    distance: float


def spectral_distance(est: Tensor, references: Tensor, rate: int) -> Tensor:
    """The log-spectral distance of voices ``[T, spks]`` in dB, ``[spks]``.

    Example
    -------
    >>> voices = torch.randn(16000, 2)
    >>> spectral_distance(voices, voices, 16000)
    tensor([0., 0.])
    """
    length = 2 * round(FRAME * rate / 2)
    window = torch.hann_window(length)
    powers = [
        torch.stft(x.T, length, length // 4, window=window, return_complex=True)
        .abs()
        .square()
        for x in (est, references)
    ]
    floor = FLOOR * powers[1].amax((1, 2), keepdim=True)
    decibels = [10 * torch.log10(power + floor) for power in powers]
    return (decibels[0] - decibels[1]).square().mean(1).sqrt().mean(1)


def measure(est: Tensor, references: Tensor, rate: int, model_rate: int) -> Measured:
    """Scores voices ``[T, spks]`` in the order of their references."""
    low = [resample(x.T, rate, model_rate).T for x in (est, references)]
    return Measured(
        float(si_sdr(est[None], references[None]).mean()),
        float(si_sdr(low[0][None], low[1][None]).mean()),
        float(spectral_distance(est, references, rate).mean()),
    )


def compare(model: SPGMSeparation, row: ManifestRow) -> tuple[int, Measured, Measured]:
    """The rate of a mixture; its voices without and with the full band."""
    mix, rate = read_audio(row.mix)[:2]
    references = torch.stack([read_audio(file)[0] for file in row.sources], -1)
    plain = model.separate_audio(mix, rate)
    centred = (mix - mix.mean()).unsqueeze(1)
    band = UpperBand(  # what full_band=True adds, without separating again
        lambda start, stop: centred[start:stop],
        lambda start, stop: plain[0, start:stop],
        len(mix),
        rate,
        model.sample_rate,
    )
    full = plain + band.split(0, len(mix))
    order = pit_si_sdr_loss(plain, references[None]).permutation
    scores = (
        measure(reorder(est, order)[0], references, rate, model.sample_rate)
        for est in (plain, full)
    )
    return rate, *scores


def format_row(name: str, plain: list[Measured], full: list[Measured]) -> str:
    """A line of the table: means, how many got better, the worst change below 4 kHz.

    Example
    -------
    >>> one, two = Measured(5.0, 6.0, 9.0), Measured(5.5, 6.0, 8.0)
    >>> format_row("44100 Hz", [one], [two])
    '| 44100 Hz | 1 | 5.00 | 5.50 | 1 of 1 | 9.00 | 8.00 | 1 of 1 | +0.00 | +0.00 |'
    """
    before, after = torch.tensor(plain), torch.tensor(full)  # [n, 3]
    change, n = after - before, len(plain)
    sdr, distance = (change[:, 0] > 0).sum(), (change[:, 2] < 0).sum()
    cells = [
        *(name, n, f"{before[:, 0].mean():.2f}", f"{after[:, 0].mean():.2f}"),
        f"{sdr} of {n}",
        *(f"{before[:, 2].mean():.2f}", f"{after[:, 2].mean():.2f}"),
        f"{distance} of {n}",
        *(f"{change[:, 1].mean():+.2f}", f"{change[:, 1].min():+.2f}"),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main(argv: list[str] | None = None) -> None:
    """Measures and prints.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.band")
    parser.add_argument("--manifest", type=Path, nargs="+", required=True)
    parser.add_argument("--mixtures", type=int, help="of each; by default all")
    parser.add_argument("--model", metavar="SOURCE")
    arguments = parser.parse_args(argv)
    with user_errors():
        model = SPGMSeparation.from_pretrained(arguments.model, device="cpu")
        lines = []
        for manifest in arguments.manifest:
            rows = tqdm(
                read_manifest(manifest)[: arguments.mixtures],
                desc=str(manifest),
                unit="mixture",
            )
            rates, plain, full = zip(
                *(compare(model, row) for row in rows), strict=True
            )
            rate = "/".join(map(str, sorted({*rates})))
            lines.append(format_row(f"{rate} Hz", plain, full))
    print(
        "| recordings | n | SI-SDR, 4 kHz | full band | better | distance, 4 kHz | "
        "full band | better | SI-SDR below 4 kHz, change | worst |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""Time to score separated utterances: ours, and as SpeechBrain's recipe does it.

SpeechBrain's ``save_results`` (recipes/LibriMix/separation/train.py) scores utterances
one by one: SI-SNR with all permutations, and mir_eval's ``bss_eval_sources``, each of
the estimates and of the mixture. Ours is ``pit_si_sdr_loss`` and ``score_batch`` with
SI-SDR and SDR. The forward pass is left out on both sides. The two take turns on the
same noise, with one thread.

    python -m benchmarks.evaluation [--utterances 8] [--seconds 5] [--rounds 3]

Needs mir_eval. Axes: T samples, spks sources.
"""

import argparse
import os
import sys
import warnings
from statistics import median
from time import perf_counter

for library in ("OMP", "OPENBLAS", "MKL"):  # before numpy and torch are imported
    os.environ[f"{library}_NUM_THREADS"] = "1"

import torch  # noqa: E402
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper  # noqa: E402

from speechbrain_spgm.data import Mixture, MixtureBatch  # noqa: E402
from speechbrain_spgm.errors import MissingPackage, require  # noqa: E402
from speechbrain_spgm.metrics.scores import score_batch  # noqa: E402
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss  # noqa: E402

RATE, SPKS = 8000, 2


def main(argv: list[str] | None = None) -> None:
    """Measures and prints.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    parser = argparse.ArgumentParser(description="time the scoring of utterances")
    parser.add_argument("--utterances", type=int, default=8, help="in each round")
    parser.add_argument("--seconds", type=float, default=5.0, help="of an utterance")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    try:
        require("mir_eval.separation", "mir_eval", "SpeechBrain's way of scoring")
    except MissingPackage as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    warnings.simplefilter("ignore", FutureWarning)  # mir_eval's own, at each call
    torch.manual_seed(0)

    ratios = []
    for turn in range(1 + arguments.rounds):  # the first one warms up
        batch, estimates = draw(arguments.utterances, arguments.seconds)
        start = perf_counter()
        ours = score_ours(estimates, batch)
        middle = perf_counter()
        theirs = score_as_speechbrain(estimates, batch)
        end = perf_counter()
        difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        if turn:
            ratios.append((end - middle) / (middle - start))
            print(
                f"round {turn}: ours {1000 * (middle - start) / len(ours):.0f} ms, "
                f"SpeechBrain {1000 * (end - middle) / len(ours):.0f} ms an utterance, "
                f"ratio {ratios[-1]:.1f}; SDRi differs by at most {difference:.0e} dB"
            )
    print(f"median ratio {median(ratios):.1f}")


def draw(utterances: int, seconds: float) -> tuple[MixtureBatch, torch.Tensor]:
    """A batch of noise and estimates with 10 dB SNR."""
    mixtures = []
    for b in range(utterances):
        sources = torch.randn(round(seconds * RATE), SPKS)
        mixtures.append(Mixture(str(b), sources.sum(-1), sources))
    batch = MixtureBatch.collate(mixtures)
    return batch, batch.sources + 10**-0.5 * torch.randn_like(batch.sources)


def score_ours(estimates: torch.Tensor, batch: MixtureBatch) -> list[float]:
    """SDRi of each utterance in dB."""
    pit = pit_si_sdr_loss(estimates, batch.sources, batch.lengths)
    scores = score_batch(estimates, batch, pit, ("si_sdr", "sdr"))
    return [score.values["sdri"] for score in scores]


def score_as_speechbrain(estimates: torch.Tensor, batch: MixtureBatch) -> list[float]:
    """SDRi of each utterance in dB, by the calls that save_results makes."""
    from mir_eval.separation import bss_eval_sources

    gains = []
    for b in range(len(batch.ids)):
        targets, predictions = batch.sources[b : b + 1], estimates[b : b + 1]
        mixture = torch.stack([batch.mix[b : b + 1]] * SPKS, dim=-1)
        get_si_snr_with_pitwrapper(targets, predictions)
        get_si_snr_with_pitwrapper(targets, mixture)
        references = targets[0].t().numpy()  # [spks, T]
        after, *_ = bss_eval_sources(references, predictions[0].t().numpy())
        before, *_ = bss_eval_sources(references, mixture[0].t().numpy())
        gains.append(float(after.mean() - before.mean()))
    return gains


if __name__ == "__main__":
    main()

"""Time and memory of training: SpeechBrain's padded modules and our packed network.

    python -m benchmarks.training --models tiny small --batch-sizes 4 8

Same weights, same batches of unequal lengths, same loss, same optimiser. SpeechBrain's
Dual_Path_Model with SPGMBlock computes on the padding as well; the packed network does
not. Both also with activation checkpointing. For time the contestants take turns (A B C
D A B C D ...), a step each, in one process; for memory each has a process of its own.
Writes ``docs/benchmarks/training.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.inference import ROOT, load, machine, memory, spread
from speechbrain_spgm.data import Mixture, MixtureBatch
from speechbrain_spgm.data.batching import BucketBatchSampler
from speechbrain_spgm.data.manifests import read_manifest
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss
from speechbrain_spgm.training.activations import checkpoint_activations

RATE, SPKS = 8000, 2
MEMORY_SHARE = 0.8  # of what is free; a step that needs more counts as not possible

Epoch = list[list[float]]  # the seconds of the utterances of each batch


class Contestant(NamedTuple):
    """One network in one setting."""

    network: str
    checkpointed: bool


CONTESTANTS = {
    "SpeechBrain, padded": Contestant("speechbrain", False),
    "SPGM, packed": Contestant("ours", False),
    "SpeechBrain, padded, checkpointed": Contestant("speechbrain", True),
    "SPGM, packed, checkpointed": Contestant("ours", True),
}
REFERENCE = "SpeechBrain, padded"


class Result(NamedTuple):
    """What a contestant needs for the batches of an epoch."""

    times: list[float]  # seconds, one an epoch
    peak: int | None  # bytes over the loaded model; None: more than there is


class Trainer:
    """A network that learns.

    Arguments
    ---------
    model : str
        See ``benchmarks.inference.load``.
    contestant : Contestant
        Which network, and how.
    """

    def __init__(self, model: str, contestant: Contestant) -> None:
        self.separate, self.parts = load(model, contestant.network)
        if contestant.network == "speechbrain":  # which knows no lengths
            self.forward = lambda batch: self.separate(batch.mix)
        else:
            self.forward = lambda batch: separate(
                **self.parts, mix=batch.mix, lengths=batch.lengths
            )
        self.parts.train().requires_grad_()
        if contestant.checkpointed:
            checkpoint_activations(self.parts["masknet"])
        self.optimiser = torch.optim.Adam(self.parts.parameters(), lr=1e-4)

    def step(self, batch: MixtureBatch) -> float:
        """Learns from a batch; returns the mean loss in dB."""
        self.optimiser.zero_grad()
        losses = pit_si_sdr_loss(self.forward(batch), batch.sources, batch.lengths).loss
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parts.parameters(), 5.0)
        self.optimiser.step()
        return float(losses.detach().mean())


def draw_epoch(seconds: list[float], batch_size: int, bucketed: bool) -> Epoch:
    """Full batches of utterances of these lengths.

    Arguments
    ---------
    seconds : list of float
        Length of each utterance.
    batch_size : int
        Utterances in a batch.
    bucketed : bool
        By our sampler, which puts like lengths together; otherwise as they come.

    Returns
    -------
    epoch : list of list of float
        The lengths in each batch.
    """
    batches = [range(i, i + batch_size) for i in range(0, len(seconds), batch_size)]
    if bucketed:
        batches = BucketBatchSampler(seconds, batch_size)
    return [[seconds[i] for i in batch if i < len(seconds)] for batch in batches]


def make_batch(seconds: list[float]) -> MixtureBatch:
    """Noise of these lengths, the same at every call."""
    torch.manual_seed(1)
    sources = [0.1 * torch.randn(round(RATE * length), SPKS) for length in seconds]
    return MixtureBatch.collate([Mixture("", s.sum(-1), s) for s in sources])


def padding(epoch: Epoch) -> float:
    """The share of the batches that is padding."""
    held = sum(len(batch) * max(batch) for batch in epoch)
    return 1 - sum(map(sum, epoch)) / held


def limit_memory() -> None:
    """Lets this process fail, rather than the machine, if it needs too much memory."""
    free = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    most = memory("VmData") + int(MEMORY_SHARE * 1024 * int(free))
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def serve(model: str, name: str, epoch: Epoch) -> None:
    """A contestant's process: prints its peak memory over the loaded model."""
    trainer = Trainer(model, CONTESTANTS[name])
    limit_memory()
    loaded = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    try:
        for batch in epoch:
            trainer.step(make_batch(batch))
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        print(json.dumps(None))
        return
    print(json.dumps(memory("VmHWM") - loaded))


def measure_peak(model: str, name: str, epoch: Epoch) -> int | None:
    """The memory of the longest and of the fullest batch, in a fresh process."""
    batches = [max(epoch, key=lambda b: len(b) * max(b)), max(epoch, key=sum)]
    request = json.dumps([model, name, batches[: 1 + (batches[0] != batches[1])]])
    command = [sys.executable, "-m", "benchmarks.training", "--serve", request]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def measure(model: str, epoch: Epoch, repeats: int) -> dict[str, Result]:
    """Lets the contestants take turns.

    Arguments
    ---------
    model : str
        See ``benchmarks.inference.load``.
    epoch : list of list of float
        Lengths of the utterances of each batch.
    repeats : int
        Epochs.

    Returns
    -------
    results : dict
        By contestant.
    """
    results = {
        name: Result([0.0] * repeats, measure_peak(model, name, epoch))
        for name in CONTESTANTS
    }
    trainers = {
        name: Trainer(model, CONTESTANTS[name])
        for name, result in results.items()
        if result.peak is not None
    }
    for trainer in trainers.values():
        trainer.step(make_batch([0.5]))  # threads and libraries are there
    for turn in range(repeats):
        for seconds in epoch:
            batch = make_batch(seconds)
            for name, trainer in trainers.items():
                start = time.perf_counter()
                trainer.step(batch)
                took = time.perf_counter() - start
                results[name].times[turn] += took
                print(f"{model}, {len(seconds)}, {name}: {took:.1f} s", flush=True)
    return results


def table(results: dict[tuple[str, int, float], dict[str, Result]]) -> str:
    """The results in Markdown; keys are model, batch size and share of padding."""
    lines = [
        "| model | batch | padding | network | time per epoch (s) "
        "| faster than SpeechBrain | memory (MiB) | share of its memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, batch_size, padded), runs in results.items():
        base = runs[REFERENCE]
        for name, run in runs.items():
            cells = [model, str(batch_size), f"{padded:.0%}", name]
            if run.peak is None:
                cells += ["", "", "more than there is", ""]
            elif base.peak is None:
                cells += [spread(run.times), "", f"{run.peak / 2**20:.0f}", ""]
            else:
                ratios = [a / b for a, b in zip(base.times, run.times, strict=True)]
                cells += [spread(run.times), spread(ratios)]
                cells += [f"{run.peak / 2**20:.0f}", f"{run.peak / base.peak:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(args: argparse.Namespace, words: list[str]) -> str:
    """Measures and describes everything in Markdown."""
    if args.manifest is None:
        draw = random.Random(args.seed)
        seconds = [draw.uniform(*args.seconds) for _ in range(args.utterances)]
    else:
        rows = read_manifest(args.manifest)
        random.Random(args.seed).shuffle(rows)
        seconds = [row.duration for row in rows[: args.utterances]]
    load_before = os.getloadavg()[0]
    results = {}
    for model in args.models:
        for batch_size in args.batch_sizes:
            epoch = draw_epoch(seconds, batch_size, args.bucketed)
            key = model, batch_size, padding(epoch)
            results[key] = measure(model, epoch, args.repeats)
    malloc = " ".join(f"{k}={v}" for k, v in os.environ.items() if "MALLOC_" in k)
    grouped = "of like lengths, by our sampler" if args.bucketed else "in random order"
    return f"""# Training

Made by `{shlex.join(["python", "-m", "benchmarks.training", *words])}`. Lower is better
but for "faster".

{table(results)}

- Machine: {machine()}, float32, malloc: {malloc or "glibc's default"}.
  Load before: {load_before:.1f}, after: {os.getloadavg()[0]:.1f}.
- An epoch: {len(seconds)} utterances of {min(seconds):.1f} to {max(seconds):.1f} s,
  {sum(seconds):.0f} s in all, seed {args.seed}, batches {grouped}. The time is that of
  forward, loss, backward, clipping and Adam.
- "SpeechBrain" is its Dual_Path_Model with SPGMBlock on the same weights, the same
  padded batches and the same loss.
- Time: median (range) of {args.repeats} epochs; the networks take turns, a step each;
  ratios within an epoch.
- Memory: peak over the loaded model in a fresh process, for the batches with most
  padded and most true audio; it includes gradients and Adam's moments.
"""


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["tiny", "small"],
        help="tiny, small, base, opt or the source of a published model",
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--utterances", type=int, default=16, help="in an epoch")
    parser.add_argument(
        "--seconds",
        nargs=2,
        type=float,
        default=[2.0, 12.0],
        metavar=("LOW", "HIGH"),
        help="lengths are drawn from this range",
    )
    parser.add_argument("--manifest", type=Path, help="take the lengths from a CSV")
    parser.add_argument("--bucketed", action="store_true", help="group like lengths")
    parser.add_argument("--repeats", type=int, default=3, help="epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "benchmarks" / "training.md"
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(*json.loads(args.serve))
        return
    text = report(args, words)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

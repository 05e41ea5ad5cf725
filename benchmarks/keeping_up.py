"""Whether streams keep up: computing time as a share of the sound's, and memory.

    python -m benchmarks.keeping_up --seconds 300
    python -m benchmarks.keeping_up --seconds 3600 --only least

Pushes noise, half a chunk at a time, and prints for each network and number of cores
the load by the clock and by the processor (where others use the machine the second
says more), the longest push after the warm-up, first while the stream still looks back
on the talk so far, then after that, and how the memory has grown since the first
minute. Networks of the paper's size have random weights: time is all they show.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import torch

from benchmarks.inference import load, memory
from speechbrain_spgm.choices import LOOK_BACK
from speechbrain_spgm.inference.stream import SPGMStream
from speechbrain_spgm.models.sources import DEFAULT_MODEL

RATE, SETTLED = 8000, 60  # seconds after which memory counts
CASES = {  # model, network, cores, views
    "shipped": (DEFAULT_MODEL, "ours", 1, 1),
    "shipped, two views": (DEFAULT_MODEL, "ours", 1, 2),
    "base": ("base", "ours", 2, 1),
    "base int8, one core": ("base", "int8", 1, 1),
    "base int8": ("base", "int8", 2, 1),
    "least": ("least", "ours", 1, 1),
}


class Load(NamedTuple):
    """What a stream took."""

    clock: float  # share of the sound's time
    processor: float
    looking: float  # longest push while there is a look back to come, in seconds
    longest: float  # push after that
    push: float  # seconds of sound in a push
    growth: int  # bytes


def measure(model: str, network: str, cores: int, views: int, seconds: float) -> Load:
    """Pushes so many seconds of noise."""
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    _, parts = load(model, network)
    ends = parts["encoder"], parts["masknet"], parts["decoder"]
    stream = SPGMStream(*ends, RATE, views=views)
    step = stream.K * stream.stride // 2
    while not len(stream.push(0.1 * torch.randn(step))):
        pass  # the warm-up
    busy, looking, longest, settled = 0.0, 0.0, 0.0, None
    processor = time.process_time()
    count = round(seconds * RATE / step)
    for i in range(count):
        sound = 0.1 * torch.randn(step)
        begun = time.perf_counter()
        stream.push(sound)
        spent = time.perf_counter() - begun
        busy += spent
        if stream.state.taken <= (LOOK_BACK + 1) * RATE:
            looking = max(looking, spent)
        else:
            longest = max(longest, spent)
        if settled is None and i * step >= min(SETTLED, seconds / 2) * RATE:
            settled = memory("VmRSS")
    processor = time.process_time() - processor
    total = count * step / RATE
    growth = memory("VmRSS") - settled
    return Load(busy / total, processor / total, looking, longest, step / RATE, growth)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.keeping_up")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES])
    arguments = parser.parse_args(argv)
    print(
        "| stream | cores | load | by the processor | longest push, looking back | "
        "longest push after that | of | memory |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.only:
        case = CASES[name]
        found = measure(*case, arguments.seconds)
        print(
            f"| {name} | {case[2]} | {found.clock:.0%} | {found.processor:.0%} | "
            f"{1000 * found.looking:.0f} ms | {1000 * found.longest:.0f} ms | "
            f"{1000 * found.push:.0f} ms | "
            f"{found.growth / 2**20:+.1f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()

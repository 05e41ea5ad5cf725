"""Time, memory and error of inference: SpeechBrain's own modules and this package.

    python -m benchmarks.inference --seconds 4 10 30 60 --model base

Every contestant lives in a process of its own, with its own settings of malloc, and
they take turns (A B C A B C ...) on the same noise, so that a busy machine disturbs all
alike. Ratios are taken within a turn. Writes ``docs/benchmarks/inference-MODEL.md`` and
``.png``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.lobes.models.dual_path import Dual_Path_Model, SBTransformerBlock
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_spgm.inference.separation import find_published
from speechbrain_spgm.lobes.quantised import quantise
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.metrics.pictures import new_figure, save
from speechbrain_spgm.models.config import config_of
from speechbrain_spgm.models.published import load_published

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "N": 96,
    "kernel_size": 32,
    "stride": 16,
    "num_layers": 2,
    "d_ffn": 384,
    "nhead": 4,
}
RANDOM = {  # networks of the paper, and the recipes' small ones, with random weights
    "base": {},
    "opt": {"K": 500, "num_blocks": 16, "num_layers": 2},
    "shallow": {"num_blocks": 1, "num_layers": 1},  # base's width, for an hour of audio
    "small": SMALL,
    "tiny": SMALL | {"d_ffn": 192},
    "least": {"N": 16, "nhead": 2, "d_ffn": 32, "num_layers": 1},  # for hours of audio
}
TUNED = {  # memory that is freed stays with the process
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
LONGEST = 120  # seconds for all; beyond, the others take 4 GiB a minute, ours runs once


class Contestant(NamedTuple):
    """One network in one setting."""

    network: str
    malloc: dict[str, str]


CONTESTANTS = {
    "SpeechBrain": Contestant("speechbrain", {}),
    "SpeechBrain, tuned malloc": Contestant("speechbrain", TUNED),
    "SepFormer": Contestant("sepformer", {}),
    "SPGM, this package": Contestant("ours", {}),
    "SPGM, tuned malloc": Contestant("ours", TUNED),
    "SPGM, int8": Contestant("int8", {}),
}
REFERENCE, OURS = "SpeechBrain", "SPGM, this package"


class Measure(NamedTuple):
    """What one run gave."""

    seconds: float  # of computing
    peak: int  # bytes over the loaded model
    flops: float  # of the multiplications


def load(model: str, network: str) -> tuple[Callable[[Tensor], Tensor], nn.ModuleDict]:
    """Builds a contestant.

    Arguments
    ---------
    model : str
        A name of ``RANDOM`` or any source of a published model.
    network : str
        ``"speechbrain"``, ``"sepformer"``, ``"ours"`` or ``"int8"`` (ours as well).

    Returns
    -------
    separate : callable
        From ``[1, T]`` to ``[1, T, spks]``.
    parts : torch.nn.ModuleDict
        Encoder, masknet and decoder in evaluation mode.
    """
    torch.manual_seed(0)
    if model in RANDOM:
        with open(ROOT / "hparams" / "spgm.yaml") as file:
            net = load_hyperpyyaml(file, RANDOM[model])
        encoder, masknet, decoder = net["Encoder"], net["MaskNet"], net["Decoder"]
        config = config_of(encoder, masknet, decoder, 8000, model)
    else:
        source = find_published(model)
        encoder, masknet, decoder, config = load_published(source)
    if network in ("speechbrain", "sepformer"):
        state = masknet.state_dict()
        masknet = dual_path(config, sepformer=network == "sepformer")
        if network == "speechbrain":
            masknet.load_state_dict(state)
    parts = nn.ModuleDict({"encoder": encoder, "masknet": masknet, "decoder": decoder})
    parts.eval().requires_grad_(False)
    if network == "int8":
        parts["masknet"] = masknet = quantise(masknet)
    if network in ("ours", "int8"):
        return lambda mix: separate(encoder, masknet, decoder, mix), parts

    def speechbrains(mix: Tensor) -> Tensor:
        """As ``SepformerSeparation.separate_batch`` does it."""
        mix_w = encoder(mix)
        masks = masknet(mix_w)
        sep_h = torch.stack([mix_w] * len(masks)) * masks
        est = torch.cat([decoder(h).unsqueeze(-1) for h in sep_h], dim=-1)
        return nn.functional.pad(est, (0, 0, 0, mix.shape[1] - est.shape[1]))

    return speechbrains, parts


def dual_path(config: dict, sepformer: bool) -> Dual_Path_Model:
    """SpeechBrain's own mask network of a config.

    Arguments
    ---------
    config : dict
        Fields of config.json.
    sepformer : bool
        With inter transformers like the intra ones, and half as many blocks, instead of
        SPGM: about as many parameters.
    """
    N, blocks = config["encoder_out_nchannels"], config["masknet_numlayers"]
    transformer = SBTransformerBlock(
        num_layers=config["intra_numlayers"],
        d_model=N,
        nhead=config["intra_nhead"],
        d_ffn=config["intra_dffn"],
        dropout=config["intra_dropout"],
        use_positional_encoding=config["intra_use_positional"],
        norm_before=config["intra_norm_before"],
    )
    spgm = SPGMBlock(N, config["spgm_block_pool"], config["spgm_block_att_h"])
    return Dual_Path_Model(
        N,
        N,
        transformer,
        copy.deepcopy(transformer) if sepformer else spgm,  # no shared parameters
        num_layers=max(1, blocks // 2) if sepformer else blocks,
        norm=config["masknet_norm"],
        K=config["masknet_chunksize"],
        num_spks=config["masknet_numspks"],
        skip_around_intra=config["masknet_extraskipconnection"],
        linear_layer_after_inter_intra=config["masknet_useextralinearlayer"],
    )


def noise(seconds: float) -> Tensor:
    """The same for every contestant, ``[1, T]``."""
    torch.manual_seed(1)
    return 0.1 * torch.randn(1, round(8000 * seconds))


def serve(model: str, network: str) -> None:
    """A contestant's process. A line is a turn: seconds, and a file for the voices."""
    torch.set_grad_enabled(False)
    run, parts = load(model, network.removesuffix("-float64"))
    if network.endswith("-float64"):
        parts.double()
    dtype = next(parts.parameters()).dtype
    run(noise(0.5).to(dtype))  # threads and libraries are there
    loaded = memory("VmRSS")
    for line in sys.stdin:
        seconds, file = json.loads(line)
        mix = noise(seconds).to(dtype)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        start = time.perf_counter()
        est = run(mix)
        took = time.perf_counter() - start
        peak = memory("VmHWM") - loaded
        if file:
            torch.save(est.double(), file)
        del est, mix
        print(json.dumps([took, peak]), flush=True)


def memory(what: str) -> int:
    """Bytes of this process, from Linux: resident now or at the peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) * 1024


class Process:
    """A contestant's process, idle between turns."""

    def __init__(self, model: str, network: str, malloc: dict[str, str]) -> None:
        command = [sys.executable, "-m", "benchmarks.inference"]
        self.process = subprocess.Popen(
            [*command, "--model", model, "--serve", network],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **malloc},
            text=True,
        )

    def turn(self, seconds: float, file: Path | None = None) -> tuple[float, int]:
        """Time and peak memory of one run; ``file`` gets the voices."""
        print(json.dumps([seconds, file and str(file)]), file=self.process.stdin)
        self.process.stdin.flush()
        took, peak = json.loads(self.process.stdout.readline())
        return took, peak

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def count_flops(model: str, network: str, seconds: float) -> float:
    """Operations of the matrix products, as SpeechBrain's modules do them."""
    run, parts = load(model, "sepformer" if network == "sepformer" else "speechbrain")
    parts.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(noise(seconds).to("meta"))
    return float(counter.get_total_flops())


def machine() -> str:
    """The processor as far as it matters for PyTorch, and PyTorch itself."""
    return (
        f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"PyTorch {torch.__version__}"
    )


def machine_peak() -> float:
    """Operations per second of a large product of matrices, the best of some."""
    a, b = torch.randn(2, 2048, 2048)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
    return best


def measure(
    model: str, lengths: list[float], repeats: int, errors: bool
) -> tuple[dict[float, dict[str, list[Measure]]], dict[float, dict[str, float]]]:
    """Lets the contestants take turns.

    Arguments
    ---------
    model : str
        See :func:`load`.
    lengths : list of float
        Seconds of audio, ascending.
    repeats : int
        Turns of each contestant at each length.
    errors : bool
        Whether to compare with SpeechBrain's modules in float64.

    Returns
    -------
    results : dict
        By length and contestant, a measure a turn.
    errors : dict
        By length and contestant, ``|est - exact| / |exact|``.
    """
    results, wrong = {}, {}
    processes = {
        name: Process(model, contestant.network, contestant.malloc)
        for name, contestant in CONTESTANTS.items()
    }
    with TemporaryDirectory() as folder:
        for seconds in lengths:
            files = {name: Path(folder, f"{i}") for i, name in enumerate(processes)}
            turns = results[seconds] = {}
            long = seconds > LONGEST
            names, compare = [OURS] if long else list(processes), errors and not long
            networks = {CONTESTANTS[name].network for name in names}
            flops = {net: count_flops(model, net, seconds) for net in networks}
            for turn in range(1 if long else repeats):
                for name in names:
                    network = CONTESTANTS[name].network
                    compared = compare and turn == 0 and network != "sepformer"
                    file = files[name] if compared else None
                    measured = processes[name].turn(seconds, file)
                    run = Measure(*measured, flops[network])
                    turns.setdefault(name, []).append(run)
                    print(f"{seconds:g} s, {name}: {run.seconds:.2f} s", flush=True)
            if compare:
                exact = Process(model, "speechbrain-float64", {})
                exact.turn(seconds, Path(folder, "exact"))
                exact.close()
                wanted = torch.load(Path(folder, "exact"))
                wrong[seconds] = {
                    name: float((torch.load(file) - wanted).norm() / wanted.norm())
                    for name, file in files.items()
                    if file.exists()
                }
    for process in processes.values():
        process.close()
    return results, wrong


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(
    results: dict[float, dict[str, list[Measure]]],
    errors: dict[float, dict[str, float]],
    peak: float,
) -> str:
    """The results in Markdown."""
    lines = [
        "| audio | network | time (s) | real-time factor | faster than SpeechBrain "
        "| memory (MiB) | share of its memory | of the machine's peak | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seconds, turns in results.items():
        base = turns.get(REFERENCE, [])
        base_peak = max((run.peak for run in base), default=None)
        for name, runs in turns.items():
            best = min(run.seconds for run in runs)
            most = max(run.peak for run in runs)
            pairs = zip(base, runs, strict=True) if base else ()
            ratios = [a.seconds / b.seconds for a, b in pairs]
            error = errors.get(seconds, {}).get(name)
            cells = [
                f"{seconds:g} s",
                name,
                spread([run.seconds for run in runs]),
                f"{best / seconds:.3f}",
                spread(ratios) if ratios else "",
                f"{most / 2**20:.0f}",
                f"{most / base_peak:.3f}" if base_peak else "",
                f"{runs[0].flops / best / peak:.0%}",
                "" if error is None else f"{error:.1e}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: dict[float, dict[str, list[Measure]]], path: Path) -> None:
    """Time and memory against the length, as a picture."""
    figure = new_figure(9, 4)
    time_axes, memory_axes = figure.subplots(1, 2)
    for name in CONTESTANTS:
        lengths = [seconds for seconds, turns in results.items() if name in turns]
        runs = [results[seconds][name] for seconds in lengths]
        times = [min(run.seconds for run in turns) for turns in runs]
        peaks = [max(run.peak for run in turns) / 2**20 for turns in runs]
        time_axes.plot(lengths, times, marker="o", label=name)
        memory_axes.plot(lengths, peaks, marker="o", label=name)
    for axes, title in [
        (time_axes, "Time (s)"),
        (memory_axes, "Peak memory over the loaded model (MiB)"),
    ]:
        axes.set(title=title, xlabel="Audio (s)", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    time_axes.legend()
    save(figure, path, dpi=120)


def report(args: argparse.Namespace) -> str:
    """Measures and describes everything in Markdown; draws the picture."""
    load_before, peak = os.getloadavg()[0], machine_peak()
    results, errors = measure(args.model, args.seconds, args.repeats, args.errors)
    peak = max(peak, machine_peak())
    picture = args.output / f"inference-{args.model}.png"
    draw(results, picture)
    settings = " ".join(f"{name}={value}" for name, value in TUNED.items())
    return f"""# Inference, {args.model}

Made by `python -m benchmarks.inference --seconds \
{" ".join(f"{s:g}" for s in args.seconds)} --model {args.model} \
--repeats {args.repeats}{"" if args.errors else " --no-errors"}`.
Lower is better but for "faster".

{table(results, errors, peak)}

![Time and memory against the length]({picture.name})

- Machine: {machine()};
  {peak / 1e9:.0f} GFLOP/s in a product of two 2048 x 2048 matrices.
  Load before: {load_before:.1f}, after: {os.getloadavg()[0]:.1f}
  (the benchmark itself takes all cores).
- "SPGM, int8" has the linears of the transformers in 8 bits; the others are float32.
- "SpeechBrain" is its Dual_Path_Model with SPGMBlock on the same weights; "SepFormer"
  has inter transformers and half as many blocks, about as many parameters.
- Malloc is glibc's in default settings, or "tuned": {settings}.
- Time: median (range) of {args.repeats} turns; ratios within a turn; real-time factor
  and share of the peak from the best turn. Beyond {LONGEST} s only this package ran,
  once.
- Memory: peak over the loaded model, after a warm-up on half a second.
- Error: relative to SpeechBrain's modules in float64, over all voices.
"""


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference")
    parser.add_argument("--seconds", nargs="+", type=float, default=[4, 10, 30, 60])
    parser.add_argument(
        "--model", default="base", help=f"{', '.join(RANDOM)} or a source"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-errors", dest="errors", action="store_false")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve(args.model, args.serve)
        return
    args.seconds.sort()
    args.output.mkdir(parents=True, exist_ok=True)
    text = report(args)
    (args.output / f"inference-{args.model}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""What a GPU makes of this package, in one command on a machine with nothing but it.

    python -m benchmarks.gpu --pack LibriSpeech --archive voices.tar --mebibytes 40
    python -m benchmarks.gpu --minutes 8 --archive voices.tar

The first packs recordings of many speakers; the second checks every precision against
float64, measures inference and training beside SpeechBrain's own modules, trains as one
NCCL rank, and then trains a larger SPGM on the archive until the time is up. Writes
``report.md``, the checkpoint and the log to ``--folder``. What fails is named in the
report and does not stop the rest. Without a GPU it does the same on the CPU; with
``--toy`` at toy size.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
import torch.distributed as dist
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger
from torch import Tensor, nn

from benchmarks.inference import ROOT, dual_path
from speechbrain_spgm.data import Mixture, MixtureBatch
from speechbrain_spgm.data.dynamic import DynamicMixing, by_speaker
from speechbrain_spgm.data.recordings import Voice, find_voices
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import replacing
from speechbrain_spgm.lobes import intra
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss
from speechbrain_spgm.models.config import config_of
from speechbrain_spgm.training.brain import SeparationBrain
from speechbrain_spgm.training.checkpoints import WholeCheckpointer
from speechbrain_spgm.training.experiment import user_errors
from speechbrain_spgm.training.initialise import initialise
from speechbrain_spgm.training.optimizers import make_optimizer

RATE, SPKS = 8000, 2
VALID_SHARE = 0.1  # of the speakers
STEPS_SHARE = 0.9  # of the time left; the rest is for validation and the checkpoint
PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Size(NamedTuple):
    """How much is done."""

    knobs: dict[str, Any]  # of hparams/spgm.yaml
    check_seconds: float  # of the utterances that are compared with float64
    batch: int
    seconds: float  # of an utterance
    turns: int
    epoch: int  # mixtures of an epoch
    valid: int


FULL = Size({}, 2.0, 8, 4.0, 5, 4000, 50)  # spgm-base, 26 M parameters
TOY = Size(
    {"N": 16, "K": 20, "num_blocks": 2, "num_layers": 1, "nhead": 2, "d_ffn": 32},
    0.1,
    2,
    0.2,
    1,
    2,
    2,
)


def build(knobs: dict[str, Any], seed: int = 0) -> nn.ModuleDict:
    """Encoder, mask network and decoder with random weights."""
    torch.manual_seed(seed)
    with (ROOT / "hparams" / "spgm.yaml").open() as file:
        modules = load_hyperpyyaml(file, dict(knobs))["modules"]
    parts = nn.ModuleDict(modules)
    initialise(parts)
    return parts


def speechbrains(parts: nn.ModuleDict) -> nn.ModuleDict:
    """The same weights in SpeechBrain's own modules."""
    config = config_of(*parts.values(), RATE, "gpu")
    masknet = dual_path(config, sepformer=False)
    masknet.load_state_dict(parts["masknet"].state_dict())
    return nn.ModuleDict({**parts, "masknet": masknet})


def compile_transform(parts: nn.ModuleDict) -> None:
    """Compiles the transformers; on a CPU without C++, which may not be there."""
    device = next(parts.parameters()).device.type
    backend = "inductor" if device == "cuda" else "aot_eager"
    parts["masknet"].transform = torch.compile(
        intra.transform, dynamic=True, backend=backend
    )


def make_batch(seconds: list[float], device: torch.device) -> MixtureBatch:
    """Noise of these lengths, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    sources = [
        0.1 * torch.randn(round(RATE * length), SPKS, generator=generator)
        for length in seconds
    ]
    batch = MixtureBatch.collate([Mixture("", s.sum(-1), s) for s in sources])
    return batch.to(device)


def gradients(
    parts: nn.ModuleDict, batch: MixtureBatch, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The voices, and the gradient of their mean loss as one vector, in float64."""
    parts.train().zero_grad()
    with autocast(batch.mix.device.type, dtype):
        voices = separate(**parts, mix=batch.mix, lengths=batch.lengths)
        loss = pit_si_sdr_loss(voices, batch.sources, batch.lengths).loss.mean()
    loss.backward()
    flat = torch.cat([p.grad.double().flatten().cpu() for p in parts.parameters()])
    return voices.detach().double().cpu(), flat


def autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager:
    """That of PyTorch, or nothing."""
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def check(size: Size, device: torch.device) -> list[str]:
    """Errors of every precision against float64 on the CPU, in Markdown."""
    lengths = [size.check_seconds, 0.7 * size.check_seconds]
    exact_parts = build(size.knobs).double()
    for module in exact_parts.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.double())
    batch = make_batch(lengths, torch.device("cpu"))
    double = MixtureBatch(
        batch.ids, batch.mix.double(), batch.sources.double(), batch.lengths
    )
    exact = gradients(exact_parts, double, None)
    rows = [
        "| precision | compiled | error of the voices | of the gradient |",
        "|" + "---|" * 4,
    ]
    for name, dtype in PRECISIONS.items():
        # A CPU compiles for minutes; once shows that it works.
        compiles = device.type == "cuda" or dtype is None
        for compiled in (False, True)[: 1 + compiles]:
            parts = build(size.knobs).to(device)
            if compiled:
                compile_transform(parts)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's own
                    found = gradients(parts, batch.to(device), dtype)
                cells = [
                    f"{relative(*pair):.1e}" for pair in zip(found, exact, strict=True)
                ]
            except Exception as error:
                cells = [f"failed: {short(error)}", ""]
            rows.append(
                f"| {name} | {'yes' if compiled else 'no'} | {' | '.join(cells)} |"
            )
    return rows


def relative(a: Tensor, b: Tensor) -> float:
    """``|a - b| / |b|``."""
    return float((a - b).norm() / b.norm())


def short(error: Exception) -> str:
    """The first line of an error, for a cell of a table."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {first}".replace("|", "/")[:160]


def contestants(size: Size, device: torch.device) -> dict[str, Callable[[], tuple]]:
    """By name what builds a network and the precision it runs in."""
    cuda = device.type == "cuda"

    def ours(compiled: bool = False) -> nn.ModuleDict:
        parts = build(size.knobs).to(device)
        if compiled:
            compile_transform(parts)
        return parts

    bf16 = torch.bfloat16
    found = {
        "SpeechBrain, fp32": lambda: (speechbrains(build(size.knobs)).to(device), None),
        "SPGM, fp32": lambda: (ours(), None),
        "SpeechBrain, bf16": lambda: (speechbrains(build(size.knobs)).to(device), bf16),
        "SPGM, bf16": lambda: (ours(), bf16),
    }
    if cuda:
        found["SPGM, bf16, compiled"] = lambda: (ours(True), bf16)
    return found


def forward(parts: nn.ModuleDict, batch: MixtureBatch) -> Tensor:
    """The voices, ``[B, T, spks]``; SpeechBrain's network as its recipe calls it."""
    if hasattr(parts["masknet"], "transform"):
        return separate(**parts, mix=batch.mix, lengths=batch.lengths)
    mix_w = parts["encoder"](batch.mix)
    masks = parts["masknet"](mix_w)
    voices = torch.stack([parts["decoder"](mask * mix_w) for mask in masks], dim=-1)
    return nn.functional.pad(voices, (0, 0, 0, batch.mix.shape[1] - voices.shape[1]))


def step_of(
    parts: nn.ModuleDict, dtype: torch.dtype | None, batch: MixtureBatch, training: bool
) -> Callable[[], None]:
    """What is measured: an inference, or a step with loss, backward, clipping, Adam."""
    device = batch.mix.device.type
    if not training:
        parts.eval().requires_grad_(False)

        def infer() -> None:
            with torch.no_grad(), autocast(device, dtype):
                forward(parts, batch)

        return infer
    parts.train().requires_grad_()
    optimizer = make_optimizer(parts.parameters())

    def learn() -> None:
        with autocast(device, dtype):
            losses = pit_si_sdr_loss(
                forward(parts, batch), batch.sources, batch.lengths
            )
        losses.loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()

    return learn


def race(size: Size, device: torch.device, training: bool) -> list[str]:
    """Times of the networks, which take turns, in Markdown."""
    batch = make_batch([size.seconds] * size.batch, device)
    steps, peaks, failed = {}, {}, {}
    for name, make in contestants(size, device).items():
        try:
            steps[name] = step_of(*make(), batch, training)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            before = memory(device)
            for _ in range(2):  # libraries, compilers, the optimizer's moments
                steps[name]()
            peaks[name] = torch.cuda.max_memory_allocated() - before if before else 0
        except Exception as error:
            steps.pop(name, None)
            failed[name] = short(error)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(size.turns):
        for name, step in steps.items():
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            times[name].append(time.perf_counter() - start)
    audio, rows = size.batch * size.seconds, []
    for name, taken in times.items():
        rival = times.get(
            name.replace("SPGM", "SpeechBrain").removesuffix(", compiled")
        )
        ratio = (
            statistics.median(a / b for a, b in zip(rival, taken, strict=True))
            if rival
            else 0
        )
        took = statistics.median(taken)
        mebibytes = f"{peaks[name] / 2**20:.0f}" if peaks[name] else ""
        rows.append(
            f"| {name} | {1000 * took:.1f} | {audio / took:.1f} | "
            f"{f'{ratio:.2f}' if ratio else ''} | {mebibytes} |"
        )
    rows += [f"| {name} | failed: {why} | | | |" for name, why in failed.items()]
    return [
        "| network | time (ms) | audio (s/s) | faster than SpeechBrain | MiB |",
        "|" + "---|" * 5,
        *rows,
    ]


def memory(device: torch.device) -> int:
    """Bytes of a GPU that tensors hold."""
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def synchronise(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def one_rank(size: Size, device: torch.device, folder: Path) -> list[str]:
    """A step of a wrapped network, as the only rank, beside that of a bare one."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    batch = make_batch([size.check_seconds] * 2, device)
    wanted = gradients(build(size.knobs).to(device), batch, None)
    meeting = (folder / "ranks").resolve()
    meeting.unlink(missing_ok=True)
    dist.init_process_group(backend, init_method=meeting.as_uri(), rank=0, world_size=1)
    try:
        parts = build(size.knobs).to(device)
        wrapped = nn.ModuleDict(
            {n: nn.parallel.DistributedDataParallel(p) for n, p in parts.items()}
        )
        found = gradients(wrapped, batch, None)
    finally:
        dist.destroy_process_group()
        meeting.unlink(missing_ok=True)
    error = relative(found[1], wanted[1])
    return [
        f"One rank, {backend}: its gradient differs by {error:.1e} from that of none."
    ]


def pack(folder: Path, archive: Path, mebibytes: float) -> int:
    """Writes recordings of as many speakers as possible, in turn, into a tar file.

    Returns how many. Their order does not depend on the machine.
    """
    voices = by_speaker(find_voices(folder))
    queues = [iter(files) for files in voices.values()]
    names, room, packed = list(voices), mebibytes * 2**20, 0
    with replacing(archive) as temporary, tarfile.open(temporary, "w") as tar:
        while queues:
            for speaker, queue in list(zip(names, queues, strict=True)):
                file = next(queue, None)
                if file is None or file.path.stat().st_size > room:
                    names.remove(speaker)
                    queues.remove(queue)
                    continue
                room -= file.path.stat().st_size + 1024
                tar.add(file.path, f"voices/{speaker}/{file.path.name}")
                packed += 1
    if not packed:
        raise UserError(
            f"No recording of {folder} fits into {mebibytes:g} MiB: raise --mebibytes."
        )
    return packed


def open_voices(archive: Path | None, folder: Path) -> list[Voice]:
    """The archive's recordings, or voices made of tones where there is none."""
    target = folder / "voices"
    if archive is None:
        make_tones(target / "tones")
    else:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise UserError(
                f"{archive} is no archive of recordings ({error}): make it with --pack."
            ) from None
    return find_voices(folder, "voices") if archive else find_voices(target, "tones")


def make_tones(folder: Path, speakers: int = 6, seconds: float = 4.0) -> None:
    """Buzzes that come and go, each speaker's of a pitch of its own."""
    times = np.arange(round(RATE * seconds)) / RATE
    for speaker in range(speakers):
        rng = np.random.default_rng(speaker)
        glide = 2 * np.pi * np.cumsum(90 + 35 * speaker + 8 * np.sin(5 * times)) / RATE
        buzz = sum(np.sin(k * glide) / k for k in range(1, 8))
        wave = 0.1 * buzz * np.abs(np.sin(np.pi * rng.uniform(1, 3) * times))
        path = folder / str(speaker) / "0.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, RATE)


class Timed(SeparationBrain):
    """Ends at a given moment."""

    deadline = float("inf")
    audio = 0.0

    def on_fit_batch_end(self, batch: MixtureBatch, *others: Any) -> None:
        """Counts; no more steps when the time is up."""
        super().on_fit_batch_end(batch, *others)
        self.audio += len(batch.ids) * batch.mix.shape[1] / RATE
        if time.monotonic() > self.deadline:
            self.optimizer_step_limit = self.optimizer_step


def train(
    size: Size, device: torch.device, archive: Path | None, folder: Path, seconds: float
) -> list[str]:
    """Trains until the time is up; what came of it, in Markdown."""
    voices = open_voices(archive, folder)
    speakers = list(by_speaker(voices))
    held = set(speakers[-max(SPKS, round(VALID_SHARE * len(speakers))) :])

    def mixing(names: set[str], mixtures: int) -> DynamicMixing:
        those = [voice for voice in voices if voice.speaker in names]
        return DynamicMixing(
            those, SPKS, RATE, size.seconds, mixtures, cache_audio=True
        )

    modules = build(size.knobs)
    counter = EpochCounter(limit=sys.maxsize)
    cuda = device.type == "cuda"
    brain = Timed(
        dict(modules.items()),
        opt_class=make_optimizer,
        hparams={
            "sample_rate": RATE,
            "output_folder": str(folder),
            "train_logger": FileTrainLogger(folder / "train_log.txt"),
            "epoch_counter": counter,
            "warmup_steps": 100,
            "loss_threshold": -30,
        },
        run_opts={
            "device": str(device),
            "precision": "bf16" if cuda else "fp32",
            "noprogressbar": True,
            "max_grad_norm": 5.0,
        },
        checkpointer=WholeCheckpointer(folder / "save", {"epoch_counter": counter}),
    )
    brain.deadline = time.monotonic() + STEPS_SHARE * seconds
    workers = {"num_workers": min(8, os.cpu_count() or 1)} if cuda else {}
    start = time.monotonic()
    brain.fit(
        counter,
        mixing(set(speakers) - held, size.epoch),
        mixing(held, size.valid),
        train_loader_kwargs={"batch_size": size.batch, "shuffle": True, **workers},
        valid_loader_kwargs={"batch_size": size.batch},
    )
    took = time.monotonic() - start
    million = sum(p.numel() for p in modules.parameters()) / 1e6
    last = brain.progress.history[-1]
    return [
        f"{million:.1f} M parameters, {len(speakers)} speakers, {len(voices)} "
        f"recordings{'' if archive else ' (tones: no archive was given)'}: "
        f"{brain.optimizer_step} steps on {brain.audio / 3600:.2f} hours of audio in "
        f"{took:.0f} s, checkpoints and validation included "
        f"({brain.audio / took:.1f} s/s). Mean SI-SDR of {size.valid} mixtures of "
        f"{len(held)} speakers not trained on: {last['valid_si_sdr']:.2f} dB. "
        "Log: train_log.txt; checkpoints: save/."
    ]


def describe(device: torch.device) -> str:
    """The machine in a line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, {os.cpu_count()} cores, PyTorch {torch.__version__}"


def sections(
    args: argparse.Namespace, size: Size, device: torch.device, end: float
) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The report's parts by their titles."""
    yield "Errors against float64", lambda: check(size, device)
    yield "Inference", lambda: race(size, device, training=False)
    yield "A training step", lambda: race(size, device, training=True)
    yield "One rank", lambda: one_rank(size, device, args.folder)
    yield (
        "Training",
        lambda: train(
            size, device, args.archive, args.folder, max(1.0, end - time.monotonic())
        ),
    )


def report(args: argparse.Namespace) -> tuple[str, int]:
    """Does everything; the report and how many of its parts failed."""
    start = time.monotonic()
    end = start + 60 * args.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, failed = TOY if args.toy else FULL, 0
    args.folder.mkdir(parents=True, exist_ok=True)
    knobs = json.dumps(size.knobs) if size.knobs else "spgm-base"
    text = ["# GPU report", "", describe(device) + ".", ""]
    text += [
        f"Batches of {size.batch} x {size.seconds:g} s; medians of {size.turns} turns, "
        f"in which the networks alternate. Network: {knobs}."
    ]
    for title, make in sections(args, size, device, end):
        begin = time.monotonic()
        try:
            body = make()
        except UserError:
            raise
        except Exception as error:
            body, failed = [f"Failed: {short(error)}"], failed + 1
        took = time.monotonic() - begin
        text += ["", f"## {title}", "", *body, "", f"(Took {took:.0f} s.)"]
        print("\n".join(text[-len(body) - 5 :]), flush=True)
        with replacing(args.folder / "report.md") as temporary:
            temporary.write_text("\n".join(text) + "\n")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return "\n".join(text), failed


def main(argv: list[str] | None = None) -> None:
    """Runs the report, or packs an archive for it.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--archive", type=Path, help="recordings, from --pack")
    parser.add_argument("--folder", type=Path, default=Path("results/gpu"))
    parser.add_argument("--toy", action="store_true", help="tiny networks and batches")
    parser.add_argument("--pack", type=Path, help="LibriSpeech-style folder to pack")
    parser.add_argument("--mebibytes", type=float, default=40.0, help="of the archive")
    args = parser.parse_args(argv)
    if args.pack is not None:
        if args.archive is None:
            parser.error("--pack needs --archive, the file to write")
        number = pack(args.pack, args.archive, args.mebibytes)
        print(f"{number} recordings are in {args.archive}.")
        return
    _, failed = report(args)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    with user_errors():
        main()

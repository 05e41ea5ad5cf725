"""How much memory a separation takes, and how much there is.

Axes: T samples, L encoder frames, N filters, K frames in a chunk, S chunks, spks
sources.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from speechbrain.lobes.models.dual_path import Dual_Path_Model
from torch import nn

from speechbrain_spgm.audio import LARGEST_KERNEL, periods
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference.band import PIECE
from speechbrain_spgm.inference.separable import Separable
from speechbrain_spgm.lobes import engine
from speechbrain_spgm.lobes.chunking import count_chunks
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import count_frames
from speechbrain_spgm.lobes.workers import count_workers

try:
    import resource
except ImportError:  # Windows
    resource = None

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SAFE_SHARE = 0.5  # of what is free: other programs grow too
WORKER = 16 * 2**20  # what a thread holds, however long the recording is
TABLE = 20  # bytes that torchaudio takes for each value of its table of filters
KEPT = 80 * 2**20  # what the system's allocator keeps of what was freed (glibc's does)
# Tensors [S, K, N] and [spks, N, L] at once where the engine does not run.
PLAIN_STATES, PLAIN_MASKS = 5, 3
PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")  # where Linux tells
UNKNOWN_FREE = 4 * 2**30  # where the system does not say


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it; units are powers of 1024.

    Example
    -------
    >>> parse_bytes("4G"), parse_bytes("1.5 MiB"), parse_bytes("1000")
    (4294967296, 1572864, 1000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.I)
    size = int(min(float(match[1]), 2.0**62) * UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise UserError(
            f"{text!r} is no amount of memory: give bytes such as 4G or 512M."
        )
    return size


def format_bytes(size: float) -> str:
    """A number of bytes for people.

    Example
    -------
    >>> format_bytes(3 * 2**30), format_bytes(2**20)
    ('3.00 GiB', '1 MiB')
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def estimate_bytes(model: Separable, samples: int, rate: int, views: int = 1) -> int:
    """The peak memory of separating a whole recording, over the loaded model, in bytes.

    ``samples`` at ``rate`` Hz. For the engine (CPU): the state twice, voices and
    mixture; elsewhere a generous multiple.

    Example
    -------
    >>> from speechbrain_spgm.inference import SPGMSeparation
    >>> model = SPGMSeparation.from_pretrained(device="cpu")
    >>> hour = estimate_bytes(model, 3600 * 8000, rate=8000)
    >>> 2.5 < hour / 2**30 < 4
    True
    """
    masknet, conv = model.mods.masknet, model.mods.encoder.conv1d
    weight, spks = conv.weight, model.num_spks
    T = math.ceil(samples * model.sample_rate / rate)
    L = count_frames(T, conv.kernel_size[0], conv.stride[0])
    N, size = conv.out_channels, weight.element_size()
    state = 2 * L * N * size
    if isinstance(masknet, Dual_Path_Model):
        N = masknet.conv1d.out_channels
        state = count_chunks(L, masknet.K) * masknet.K * N * size
    with torch.no_grad():
        fast = (
            isinstance(masknet, SPGMMaskNet)
            and model.precision != "bf16"
            and engine.suits(masknet, weight.new_empty(1, 1))
        )
    if fast:
        held = 2 * state  # the state and what the intra model makes of it
    else:
        held = PLAIN_STATES * state + PLAIN_MASKS * spks * N * L * size
        held += _attention(masknet, L) * size
    separating = held + (2 + spks) * T * size  # mixture, padded; voices
    if views > 1:  # a delayed mixture, the voices of the first view and their sum
        separating += (1 + 2 * spks) * T * size
    S = samples
    old, new, _ = periods(rate, model.sample_rate)
    table = TABLE * old * new if 1 < old * new <= LARGEST_KERNEL else 0
    resampling = spks * (T * (size + 4) + S * 4)
    # Voices in float32 and float64, then the recording in float64 or the result.
    levelling = S * (spks * (4 + 8) + max(8, spks * 4))
    # Voices, and what a piece of the upper band takes.
    banding = S * spks * 4 + min(S, PIECE * rate) * (24 + 12 * spks)
    most = max(separating, resampling, levelling, banding * (rate > model.sample_rate))
    return (S + T) * 4 + most + table + WORKER * count_workers() + KEPT


def _attention(masknet: nn.Module, L: int) -> int:
    """Values of the attention weights that another network holds at once.

    SpeechBrain's transformers hold the scores, their softmax and its mean over heads.
    """
    K = getattr(masknet, "K", getattr(masknet, "segment_size", None))
    if type(K) is not int or K < 1 or isinstance(masknet, SPGMMaskNet):
        return 0
    S = count_chunks(L, K) if isinstance(masknet, Dual_Path_Model) else L // K + 1
    most, others = 0, {"inter_mdl": K * S * S, "mem_model": S * S}  # SepFormers'
    for name, part in masknet.named_modules(remove_duplicate=False):
        if isinstance(part, nn.MultiheadAttention):
            pairs = next((others[key] for key in others if key in name), S * K * K)
            most = max(most, pairs * (2 * part.num_heads + 1))
    return most


def free_bytes(device: torch.device | str = "cpu") -> int:
    """The memory that a new computation on a device may take, in bytes.

    Free, and within ``ulimit -v`` and ``-d`` and the limits of containers and batch
    systems.
    """
    device = torch.device(device)
    if device.type == "cuda":
        # torch keeps what it freed, for itself: the driver counts that as taken.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available = _kibibytes(PROC / "meminfo", "MemAvailable")
    found = [*_process_limits(), *_container_limits()]
    if available is not None:  # what Linux can give without swapping
        found.append(available)
    return max(0, min(found, default=UNKNOWN_FREE))


def _kibibytes(path: Path, field: str) -> int | None:
    """A field of a file of Linux about memory, in bytes."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _process_limits() -> list[int]:
    """What the limits of this process leave."""
    if resource is None:
        return []
    found = []
    for limit, field in (
        (resource.RLIMIT_AS, "VmSize"),
        (resource.RLIMIT_DATA, "VmData"),
    ):
        most = resource.getrlimit(limit)[0]
        used = _kibibytes(PROC / "self" / "status", field)
        if most != resource.RLIM_INFINITY and used is not None:
            found.append(most - used)
    return found


def _container_limits() -> list[int]:
    """What the control groups of this process, and those around them, leave."""
    found = []
    for folder, limit, usage, cache in _control_groups():
        try:
            most, used = (int((folder / name).read_text()) for name in (limit, usage))
            stat = (folder / "memory.stat").read_text()
        except (OSError, ValueError):  # not there, or "max"
            continue
        # Files that were read stay in memory, and count, until it is needed.
        match = re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE)
        found.append(most - used + int(match[1] if match else 0))
    return found


def _control_groups() -> Iterator[tuple[Path, str, str, str]]:
    """Folders of versions 2 and 1: names of limit, usage and cache in their files."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, kinds, path = line.split(":", 2)
        if number == "0":
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = GROUPS / "memory"
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        # Within a container the path may be the host's: then only the root is there.
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):
                yield folder, *names

"""How much memory a separation takes, and how much there is.

Axes: T samples, L encoder frames, N filters, K frames in a chunk, S chunks, spks
sources.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from speechbrain.lobes.models.dual_path import Dual_Path_Model

from speechbrain_spgm.data.errors import UserError
from speechbrain_spgm.lobes import engine
from speechbrain_spgm.lobes.chunking import count_chunks
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import count_frames
from speechbrain_spgm.lobes.workers import count_workers

if TYPE_CHECKING:
    from speechbrain_spgm.inference.separation import SPGMSeparation

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SAFE_SHARE = 0.5  # of what is free: other programs grow too
WORKER = 16 * 2**20  # what a thread holds, however long the recording is
# Tensors [S, K, N] and [spks, N, L] at once where the engine does not run.
PLAIN_STATES, PLAIN_MASKS = 5, 3
UNKNOWN_FREE = 4 * 2**30  # where the system does not say


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it.

    Arguments
    ---------
    text : str
        For example ``"4G"``, ``"512M"`` or ``"1.5GiB"``; units are powers of 1024.

    Returns
    -------
    bytes : int
        At least 1.

    Raises
    ------
    UserError
        If it is no such number.

    Example
    -------
    >>> parse_bytes("4G"), parse_bytes("1.5 MiB"), parse_bytes("1000")
    (4294967296, 1572864, 1000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.I)
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
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


def estimate_bytes(
    model: SPGMSeparation, samples: int, rate: int, views: int = 1
) -> int:
    """The peak memory of separating a whole recording, over the loaded model.

    Arguments
    ---------
    model : SPGMSeparation
        The model; that of a GPU counts its memory.
    samples : int
        Length of the recording.
    rate : int
        Its sample rate in Hz.
    views : int
        See ``SPGMSeparation.separate_batch``.

    Returns
    -------
    bytes : int
        For the engine (CPU), the state twice, voices and mixture; elsewhere a
        generous multiple.

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
    separating = held + (2 + spks) * T * size  # mixture, padded; voices
    if views > 1:  # a delayed mixture, the voices of the first view and their sum
        separating += (1 + 2 * spks) * T * size
    # Voices in the model's precision and float32, at the recording's rate twice, and
    # three of the kind in float64 while their levels are set.
    levelling = spks * (T * (size + 4) + samples * (2 * 4 + 2 * 8))
    return samples * 4 + max(separating, levelling) + WORKER * count_workers()


def free_bytes(device: torch.device | str = "cpu") -> int:
    """The memory that a new computation may take: free, and within a container's limit.

    Arguments
    ---------
    device : torch.device or str
        Of the computation.

    Returns
    -------
    bytes : int
        Of the GPU, or of the computer.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [free for free in (_available(), *_containers()) if free is not None]
    return max(0, min(found, default=UNKNOWN_FREE))


def _available() -> int | None:
    """What Linux can give without swapping."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _containers() -> list[int]:
    """What the control groups of this process leave (versions 2 and 1)."""
    root = Path("/sys/fs/cgroup")
    folders = [(root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")]
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        number, _, path = line.split(":", 2)
        if number == "0":
            own = root / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(root):
                    folders.append((folder, "memory.max", "memory.current"))
    found = []
    for folder, limit, usage in folders:
        try:
            found.append(
                int((folder / limit).read_text()) - int((folder / usage).read_text())
            )
        except (OSError, ValueError):  # not there, or "max"
            continue
    return found

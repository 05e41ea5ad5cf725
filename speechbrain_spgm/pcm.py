"""Sound as it comes: samples from a pipe or a microphone, and samples for a pipe.

Axes: n samples.
"""

from __future__ import annotations

import math
import queue
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from speechbrain_spgm.audio import check_channel, check_rate, to_float, to_pcm16
from speechbrain_spgm.choices import CODES
from speechbrain_spgm.containers import stands_for_unknown
from speechbrain_spgm.errors import MissingPackage, UserError, require

MOST_CHANNELS = 64
LONGEST_HEADER = 2**20  # bytes before the samples
LOUDEST = 1e29  # beyond, a resampler might pass what a stream takes
PIECE = 0.1  # seconds that are taken at a time, if they are there
BACKLOG = 10.0  # seconds of a microphone that may wait; what comes then drops out


class PCM(NamedTuple):
    """How samples stand in a stream: one of ``CODES``, the rate in Hz, the channels."""

    code: str
    rate: int
    channels: int = 1

    @property
    def width(self) -> int:
        """Bytes of a sample of all channels."""
        return int(CODES[self.code][2:]) * self.channels

    def decode(self, data: bytes) -> np.ndarray:
        """Whole samples as floats, ``[n, channels]``."""
        if self.code == "s24le":  # each as the upper bytes of 32 bits
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            values = wide.view("<i4")
        else:
            values = np.frombuffer(data, CODES[self.code])
        return to_float(values).reshape(-1, self.channels)


def encode(samples: np.ndarray, code: str) -> bytes:
    """Floats as ``s16le``, cut off at full scale, or ``f32le``."""
    samples = to_pcm16(samples) if code == "s16le" else samples
    return np.ascontiguousarray(samples).astype(CODES[code]).tobytes()


def read_header(read: Callable[[int], bytes], name: str) -> tuple[PCM, int | None]:
    """Reads the header of a WAV stream: the kind and bytes of its samples.

    None if the header leaves the bytes open. ``read(n)`` gives fewer only at the end.
    """
    start = read(12)
    if not start:
        raise UserError(f"{name} is empty: send sound into it.")
    if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
        raise UserError(
            f"{name} does not begin with the header of a WAV file: say what it holds, "
            "such as --format s16le --rate 16000, or convert it (ffmpeg -i - -f wav -)."
        )
    kind, skipped, wide = None, 0, 0
    while True:
        head = read(8)
        if len(head) < 8:
            raise UserError(f"{name} ends within its header: send it again.")
        label, size = head[:4], struct.unpack("<I", head[4:])[0]
        if label == b"data":
            break
        skipped += size
        if skipped > LONGEST_HEADER:
            raise UserError(f"{name} has no samples where a WAV file does: convert it.")
        chunk = read(size + size % 2)
        if label == b"fmt ":
            kind = _kind(chunk, name)
        if label == b"ds64":  # RF64 has the size here
            wide = int.from_bytes(chunk[8:16], "little")
    if kind is None:
        raise UserError(f"{name} does not say what its samples are: convert it.")
    size = wide if size == 2**32 - 1 else size
    return kind, None if not size or stands_for_unknown(size) else size


def _kind(chunk: bytes, name: str) -> PCM:
    """What a WAV file's fmt chunk says."""
    tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16].ljust(16))
    if tag == 0xFFFE and len(chunk) >= 26:  # extensible
        tag = struct.unpack("<H", chunk[24:26])[0]
    codes = {(1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le"}
    codes |= {(3, 32): "f32le", (3, 64): "f64le"}
    if (tag, bits) not in codes:
        raise UserError(
            f"{name} holds samples of {bits} bits of kind {tag}, but must hold plain "
            "ones: convert it (ffmpeg -i - -c:a pcm_s16le -f wav -)."
        )
    return checked(PCM(codes[tag, bits], rate, channels), name)


def checked(kind: PCM, name: str) -> PCM:
    """Refuses rates and numbers of channels that cannot be."""
    check_rate(name, kind.rate)
    if not 1 <= kind.channels <= MOST_CHANNELS:
        raise UserError(
            f"{name} has {kind.channels} channels, but must have from 1 to "
            f"{MOST_CHANNELS}."
        )
    return kind


class Source:
    """Where samples come from: one ``channel``, counted from 1, or the mean of all."""

    dropouts = 0  # how often samples were lost
    backlog = 0.0  # seconds that wait
    missing = 0  # samples that the header promises and that do not come

    def __init__(self, kind: PCM, name: str, channel: int | None = None) -> None:
        self.kind, self.name, self.channel = kind, name, channel
        self.spoilt = 0  # samples that were no numbers
        if channel is not None:
            check_channel(name, channel, kind.channels)

    def mono(self, samples: np.ndarray) -> np.ndarray:
        """One channel of ``[n, channels]``; what is no sound becomes silence."""
        if self.channel is None:
            samples = samples.mean(1, dtype=np.float64)
        else:
            samples = samples[:, self.channel - 1].astype(np.float64)
        wrong = ~(np.abs(samples) < LOUDEST)
        self.spoilt += int(wrong.sum())
        return np.where(wrong, 0, samples)


class Pipe(Source):
    """Samples from a binary file, as soon as they are there; without ``kind``, WAV."""

    def __init__(
        self,
        file: BinaryIO,
        kind: PCM | None = None,
        name: str = "standard input",
        channel: int | None = None,
    ) -> None:
        self.file, self.left = file, None
        if kind is None:
            kind, self.left = read_header(file.read, name)
        super().__init__(checked(kind, name), name, channel)

    def blocks(self) -> Iterator[np.ndarray]:
        """One channel, ``[n]``, until the end; half a sample there is left out."""
        rest, most = b"", max(1, round(PIECE * self.kind.rate)) * self.kind.width
        read = getattr(self.file, "read1", self.file.read)
        while self.left is None or self.left > 0:
            data = read(most if self.left is None else min(most, self.left))
            if not data:
                self.missing = ((self.left or 0) + len(rest)) // self.kind.width
                return
            if self.left is not None:
                self.left -= len(data)
            data = rest + data
            whole = len(data) // self.kind.width * self.kind.width
            rest = data[whole:]
            if whole:
                yield self.mono(self.kind.decode(data[:whole]))


class Microphone(Source):
    """Samples from a sound card, by the package sounddevice.

    ``device`` is its number or a part of its name; by default it is the system's.
    """

    def __init__(
        self,
        device: str | None = None,
        rate: int | None = None,
        channel: int | None = None,
    ) -> None:
        try:
            sound = require("sounddevice", "sounddevice", "The microphone")
        except OSError:  # the C library that it stands on
            raise MissingPackage(
                "The microphone needs PortAudio: install it (apt install "
                "libportaudio2)."
            ) from None
        self.sound = sound
        device = int(device) if device and device.isdigit() else device
        try:
            facts = sound.query_devices(device, "input")
            rate = rate or int(facts["default_samplerate"])
            self.device = device
            channels = channel or 1
            sound.check_input_settings(device, channels, "float32", samplerate=rate)
        except (ValueError, sound.PortAudioError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"no microphone can be used ({reason}): see python -m sounddevice, or "
                "send sound to standard input."
            ) from None
        super().__init__(PCM("f32le", rate, channels), "the microphone", channel)
        most = math.ceil(BACKLOG / PIECE)
        self.queue: queue.Queue[np.ndarray] = queue.Queue(most)

    def blocks(self) -> Iterator[np.ndarray]:
        """One channel, ``[n]``, without end."""
        rate = self.kind.rate
        with self.sound.InputStream(
            samplerate=rate,
            blocksize=round(PIECE * rate),
            device=self.device,
            channels=self.kind.channels,
            dtype="float32",
            callback=self.take,
        ):
            while True:
                try:  # in short waits, so that Ctrl-C is heard everywhere
                    block = self.queue.get(timeout=0.2)
                except queue.Empty:
                    continue
                self.backlog = self.queue.qsize() * PIECE
                yield self.mono(block)

    def take(self, block: np.ndarray, frames: int, when: Any, status: Any) -> None:
        """Called by the sound card's thread."""
        if status and status.input_overflow:
            self.dropouts += 1
        try:
            self.queue.put_nowait(block.copy())
        except queue.Full:
            self.dropouts += 1


class Meter:
    """How a stream of ``rate`` samples per second keeps up."""

    def __init__(self, rate: int) -> None:
        self.rate, self.samples = rate, 0
        self.busy = self.longest = 0.0

    @contextmanager
    def measure(self, samples: int) -> Iterator[None]:
        """Times the work on so many samples."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            self.busy += spent
            self.longest = max(self.longest, spent)
            self.samples += samples

    @property
    def seconds(self) -> float:
        """Of sound so far."""
        return self.samples / self.rate

    @property
    def load(self) -> float:
        """Computing time as a share of the sound's."""
        return self.busy / self.seconds if self.samples else 0.0

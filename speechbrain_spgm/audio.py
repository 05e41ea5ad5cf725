"""Recordings in, voices out: the reader, the writer and the resampler of everything.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchaudio.functional import resample as torchaudio_resample

from speechbrain_spgm import media
from speechbrain_spgm.choices import FORMATS, SUBTYPES
from speechbrain_spgm.containers import Part, View, find_parts, goes_on, with_frames
from speechbrain_spgm.errors import MissingPackage, UserError, count
from speechbrain_spgm.files import replacing, scratch

# What a folder is searched for.
EXTENSIONS = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph "
    ".nist .voc .wve .avr .paf .sf .ircam .svx .8svx .mat .htk .sds".split()
)
LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000  # Hz
THREADS = 8  # opening files is mostly waiting for the disk
BLOCK, FLAC_BLOCK = 2**18, 2**12  # frames read at a time, of up to 8 channels
BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4}
BYTES |= {"DOUBLE": 8, "ALAW": 1, "ULAW": 1}  # of a sample
CANCELLED = 0.05  # share of the energy of unrelated channels that their mean keeps
LARGEST_KERNEL = 10**7  # values in torchaudio's table of filters, one per phase
# Samples of the slower of two rates by which the filters reach to either side:
# torchaudio's take 6 / 0.99, scipy's 10.
REACH = 12
VORBIS_PAGE = 2**20  # frames, which a page of Ogg has at most: 255 times 4096
RESERVOIR = 2**16  # frames before one of MP3, which may hold bits of it
HIGHEST_VORBIS = 200_000  # Hz; above it libvorbis ends the process
LARGEST_RIFF = 2**32 - 2**16  # bytes of audio in a WAV file with sizes of 32 bits
# libsndfile's errors are RuntimeErrors, FFmpeg's OSErrors and ValueErrors; struct's are
# about headers that end too soon.
DAMAGED = (RuntimeError, OSError, TypeError, ValueError, struct.error)


class AudioFileError(UserError):
    """An audio file that cannot be used; the message is one sentence."""


class Recording(NamedTuple):
    """A mono signal and where it came from."""

    samples: Tensor  # [T], float32, full scale is 1
    sample_rate: int  # in Hz
    name: str  # for messages
    missing: int = 0  # samples that a cut-off file lacks at its end


class Heard(NamedTuple):
    """What was read: the rate in Hz, the samples that the file lacks, and remarks."""

    rate: int
    missing: int
    remarks: list[str]


class Cut(NamedTuple):
    """The part of a recording that is wanted: its begin and its length in seconds."""

    offset: float = 0.0
    duration: float | None = None


Source = str | Path | bytes | bytearray | memoryview | BinaryIO


def read_audio(
    source: Source,
    name: str | None = None,
    channel: int | None = None,
    *,
    longest: float | None = None,
    cut: Cut | None = None,
) -> Recording:
    """Reads a whole recording; several channels are averaged to one.

    Arguments and errors as in ``stream_audio``; of a cut-off file what is there.
    """
    blocks: list[np.ndarray] = []
    name = name or name_of(source)
    rate, missing, _ = stream_audio(
        source, blocks.append, name, channel, longest=longest, cut=cut
    )
    try:
        samples = np.concatenate(blocks)
    except MemoryError:
        raise AudioFileError(f"{name} does not fit into memory: cut it up.") from None
    return Recording(torch.from_numpy(samples), rate, name, missing)


def stream_audio(
    source: Source,
    use: Callable[[np.ndarray], object],
    name: str | None = None,
    channel: int | None = None,
    *,
    longest: float | None = None,
    cut: Cut | None = None,
) -> Heard:
    """Reads a recording a few seconds at a time, to its true end.

    Arguments
    ---------
    source : str or Path or bytes or file object
        A file, its content, or an open binary file, which is read from its start: WAV,
        FLAC, OGG, MP3, AIFF and whatever else libsndfile reads; with PyAV also what
        FFmpeg reads, of which the first audio stream is taken.
    use : callable
        Gets the blocks one after the other, ``[T]``, float32.
    name : str, optional
        For messages.
    channel : int, optional
        The only one to take, counted from 1; by default the mean of all.
    longest : float, optional
        Seconds beyond which it is refused, as soon as so much has been read.
    cut : Cut, optional
        The only part to read; what is before it is not decoded where the format allows
        that, and its end may lie beyond that of the file.

    Returns
    -------
    heard : Heard
        The rate, how many samples are missing, and what else is to be said.

    Raises
    ------
    AudioFileError
        If the file is missing, empty, no audio or damaged, or holds NaN or infinity; if
        the rate is out of range, there is no such channel, it is too long, or the file
        ends before the part.
    """
    name = name or name_of(source)
    mixer = _Mixer(use, name, channel, longest, cut or Cut())
    with _opened(source, name) as file:
        blocks = _blocks(file, mixer)
        while not mixer.full:
            try:
                block, rate = next(blocks)
            except StopIteration:
                break
            except UserError:
                raise
            except MemoryError:
                raise AudioFileError(
                    f"{name} does not fit into memory: cut it up."
                ) from None
            except DAMAGED:
                raise AudioFileError(
                    f"{name} is damaged or no audio file of a known kind: "
                    "convert it to WAV or FLAC."
                ) from None
            mixer.add(block, rate)
    return mixer.end()


class _Mixer:
    """Mixes blocks down to one channel, and keeps account of them."""

    def __init__(
        self,
        use: Callable[[np.ndarray], object],
        name: str,
        channel: int | None,
        longest: float | None,
        cut: Cut,
    ) -> None:
        self.use, self.name, self.channel = use, name, channel
        self.longest, self.cut = longest, cut
        self.position = 0  # frames that were read or passed over
        self.rate = self.length = self.missing = self.left_out = 0
        self.passed_over = 0  # samples at another rate than the first
        self.mean_power = self.power = 0.0
        self.remarks: list[str] = []

    def frame(self, rate: int) -> int:
        """The first frame of the part that is wanted."""
        return round(self.cut.offset * rate)

    @property
    def full(self) -> bool:
        """Whether nothing is wanted any more."""
        return bool(self.rate) and self.position >= self._end()

    def _end(self) -> float:
        seconds = self.cut.duration
        if seconds is None:
            return math.inf
        return self.frame(self.rate) + max(1, round(seconds * self.rate))

    def add(self, block: np.ndarray, rate: int) -> None:
        """Takes ``[frames, channels]``."""
        channels = block.shape[1]
        if not self.rate:
            check_rate(self.name, rate)
            self.rate = rate
        if rate != self.rate:
            self.left_out = rate
            passed_over = round(len(block) * self.rate / rate)
            self.missing += passed_over
            self.passed_over += passed_over
            self._check_length()
            return
        begin, self.position = self.position, self.position + len(block)
        first, last = self.frame(rate) - begin, min(self._end() - begin, len(block))
        block = block[max(0, first) : last]
        if not len(block):
            return
        if self.channel is None:
            mono = block.mean(axis=1, dtype=np.float64)
            if channels > 1:
                self.mean_power += float(mono @ mono) * channels
                self.power += float(np.square(block, dtype=np.float64).sum()) / channels
        else:
            check_channel(self.name, self.channel, channels)
            mono = block[:, self.channel - 1]
        with np.errstate(over="ignore"):
            mono = mono.astype(np.float32)
        if not np.isfinite(mono).all():
            raise AudioFileError(
                f"{self.name} holds samples that are NaN or infinite: export it again."
            )
        self.use(mono)
        self.length += len(mono)
        self._check_length()

    def _check_length(self) -> None:
        found = self.length + self.passed_over  # decoded, though not all is used
        if self.longest is not None and found > self.longest * self.rate:
            raise AudioFileError(
                f"{self.name} is longer than {self.longest / 60:g} minutes: cut it up."
            )

    def end(self) -> Heard:
        """What was read."""
        if self.length == 0 and self.cut.offset:
            raise AudioFileError(
                f"{self.name} ends before second {self.cut.offset:g}, where the part "
                "begins that is asked for: correct its offset."
            )
        if self.length == 0:
            raise AudioFileError(
                f"{self.name} holds no samples: copy or record it again."
            )
        if self.mean_power < CANCELLED * self.power:
            self.remarks.append(
                f"The channels of {self.name} cancel each other out in their mean: "
                "choose one of them (--channel 1, or channel=1)."
            )
        if self.left_out:
            self.remarks.append(
                f"{self.name} joins recordings of {self.rate} and {self.left_out} Hz: "
                f"only what has {self.rate} Hz is used."
            )
        missing = int(min(self.missing, max(0, self._end() - self.position)))
        return Heard(self.rate, missing, self.remarks)


def _blocks(file: BinaryIO, mixer: _Mixer) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks ``[frames, channels]`` and their rate, of all that a file holds."""
    parts = find_parts(file)
    for i, part in enumerate(parts):
        try:
            sound = _open_sound(View(file, part))
        except DAMAGED:
            try:
                yield from _media_blocks(View(file, part), mixer, len(parts) == 1)
            except DAMAGED:
                if i == 0:
                    raise
                mixer.remarks.append(
                    f"{mixer.name} goes on with something that is no audio file of a "
                    "known kind: it is left out."
                )
            continue
        with sound:
            check_rate(mixer.name, sound.samplerate)
            length, begin = 0, mixer.frame(sound.samplerate)
            # In Ogg libsndfile misses its place near the end.
            exact = sound.seekable() and sound.format != "OGG"
            if i == 0 and exact and 0 < begin < sound.frames and part.frames is None:
                length = mixer.position = _enter(sound, begin)
            for block in _sound_blocks(sound):
                length += len(block)
                yield block, sound.samplerate
            lost = max(0, _promised(file, part, sound) - length)
            if lost and not mixer.rate:
                raise ValueError("nothing can be decoded")
            mixer.missing += round(lost * mixer.rate / sound.samplerate)


def _open_sound(file: str | bytes | View) -> soundfile.SoundFile:
    """A file that libsndfile reads, which knows whether one can seek in it."""
    sound = soundfile.SoundFile(file)
    if sound.subtype.startswith("DWVW"):
        sound.seekable = lambda: False  # libsndfile says it can, and fails
    return sound


def _enter(sound: soundfile.SoundFile, start: int) -> int:
    """Goes to a frame, or to one before from where on that is decoded well: which."""
    if not sound.seekable():
        return 0
    far = start - RESERVOIR if sound.format == "MP3" else start
    if sound.subtype == "VORBIS":  # in its last page libsndfile misses its place
        far = sound.frames - VORBIS_PAGE
    place = sound.seek(max(0, min(start, far)))
    sound.seekable = lambda: False  # else each read seeks, after which MP3 is spoilt
    return place


def _sound_blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Blocks of an open file; the last ends where it cannot be decoded further."""
    sound.seekable = lambda: False  # as above
    size = FLAC_BLOCK if sound.format == "FLAC" else BLOCK
    size = size * 8 // max(8, sound.channels)  # a damaged header may claim 1024
    while True:
        out = np.full((size, sound.channels), np.nan, np.float32)
        try:
            block = sound.read(out=out)
        except soundfile.LibsndfileError:
            # What was decoded before the fault lies in front of the untouched rest.
            blank = np.isnan(out).all(axis=1)
            length = int(blank.argmax()) if blank.any() else size
            if length:
                yield out[:length]
            return
        if not len(block):
            return
        yield block


def _promised(file: BinaryIO, part: Part, sound: soundfile.SoundFile) -> int:
    """Frames that the header of a part promises."""
    if part.frames is not None:
        return part.frames
    size = sound.channels * BYTES.get(sound.subtype, 0)
    if part.lost:
        if size:
            return sound.frames + -(-part.lost // size)
        return sound.frames + round(sound.frames * part.lost / max(1, part.held))
    told, log = [sound.frames], sound.extra_info
    told += re.findall(r"\b(?:Frames|Cols|OneShotHiSamples)\s*:\s*(\d+)", log)
    if sound.format == "NIST":
        head = View(file, part).read(1024)
        told += re.findall(rb"sample_count -i (\d+)", head)
    if sound.format == "VOC" and "truncated" in log and size:
        block = re.search(r"Extended II : (\d+)", log)
        told += [(int(block[1]) - 12) // size] if block else []
    return max(map(int, told))


def _media_blocks(
    file: BinaryIO, mixer: _Mixer, alone: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of what FFmpeg reads; if it is alone in its file, from the cut on."""
    file.seek(0)
    known = media.is_media(file.read(200))
    length, promised = 0, 0
    try:
        offset = mixer.cut.offset if alone else 0.0
        blocks = media.media_blocks(file, mixer.name, mixer.remarks, offset)
        for block, rate, seconds in blocks:
            if alone and not length:
                length = mixer.position = mixer.frame(rate)
            length += len(block)
            promised = math.floor((seconds - media.SLACK) * rate)
            yield to_float(block), rate
    except MissingPackage as error:
        if known:
            raise AudioFileError(str(error)) from None
        raise ValueError("of no known kind") from None
    if promised > length:
        mixer.missing += promised - length


def name_of(source: object) -> str:
    """What to call a source in messages.

    Example
    -------
    >>> name_of(Path("a.wav")), name_of(b"RIFF")
    ('a.wav', 'the recording')
    """
    name = source if isinstance(source, str | Path) else getattr(source, "name", None)
    return str(name) if isinstance(name, str | Path) else "the recording"


@contextmanager
def _opened(source: Source, name: str) -> Iterator[BinaryIO]:
    """A source as a file that can be read from any place."""
    if isinstance(source, str | Path):
        with _open_path(Path(source), name) as file:
            yield file
        return
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    with ExitStack() as stack:
        try:
            if isinstance(source.read(0), str):
                raise TypeError("text")
            try:
                size = source.seek(0, io.SEEK_END)
            except OSError:  # a pipe
                pipe, source = source, stack.enter_context(TemporaryFile(dir=scratch()))
                shutil.copyfileobj(pipe, source)
                size = source.tell()
        except UserError:
            raise
        except (AttributeError, TypeError, ValueError):
            raise AudioFileError(
                f"{name} is no binary file: open it with mode 'rb', or give its bytes."
            ) from None
        except OSError as error:
            raise AudioFileError(
                f"{name} cannot be read ({error.strerror}): give a file."
            ) from None
        if size == 0:
            raise AudioFileError(f"{name} is empty: copy or record it again.")
        yield source


def _open_path(path: Path, name: str) -> BinaryIO:
    check_file(path, name)
    try:
        return path.open("rb")
    except PermissionError:
        raise AudioFileError(f"{name} may not be read: change its rights.") from None
    except OSError as error:
        raise AudioFileError(
            f"{name} cannot be opened ({error.strerror}): check its name."
        ) from None


def check_file(path: Path, name: str | None = None) -> None:
    """Refuses what is no file with something in it."""
    name = name or str(path)
    try:
        kind = path.stat()
    except PermissionError:
        problem = "may not be reached: change the rights of its folder"
    except (FileNotFoundError, NotADirectoryError):
        problem = "does not exist: check its name"
        if path.is_symlink():
            problem = "is a link to nothing: check what it points to"
    except ValueError:  # a zero byte, or what no file system can name
        problem = "is no name of a file: check it"
    except OSError as error:
        problem = f"cannot be looked up ({error.strerror}): check its name"
    else:
        if stat.S_ISDIR(kind.st_mode):
            problem = "is a folder: give an audio file"
        elif not stat.S_ISREG(kind.st_mode):
            problem = (
                "is a device or a pipe, not a file: hand what comes out of it to "
                "standard input (-)"
            )
        elif kind.st_size == 0:
            problem = "is an empty file: copy or record it again"
        else:
            return
    raise AudioFileError(f"{name} {problem}.")


def check_rate(name: str, rate: int) -> None:
    """Refuses rates that no recording of speech has.

    Example
    -------
    >>> check_rate("a.wav", 2)
    Traceback (most recent call last):
    ...
    speechbrain_spgm.audio.AudioFileError: a.wav has a sample rate of 2 Hz, but it must be from 1000 to 1000000 Hz: convert it.
    """  # noqa: E501
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioFileError(
            f"{name} has a sample rate of {rate} Hz, but it must be from {LOWEST_RATE} "
            f"to {HIGHEST_RATE} Hz: convert it."
        )


def check_channel(name: str, channel: int, channels: int) -> None:
    """Refuses a channel, counted from 1, that is not there."""
    if not 1 <= channel <= channels:
        raise AudioFileError(
            f"{name} has {count(channels, 'channel')}, but channel {channel} was asked "
            f"for: take one from 1 to {channels}."
        )


def from_array(
    samples: np.ndarray | Tensor,
    use: Callable[[np.ndarray], object],
    rate: int,
    name: str = "the recording",
    channel: int | None = None,
) -> Heard:
    """Takes a recording that is in memory as ``stream_audio`` takes a file.

    ``[T]`` or ``[T, channels]``: floats, full scale is 1, or signed integers, or bytes
    from 0 to 255.
    """
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = samples.float() if samples.is_floating_point() else samples
        samples = samples.numpy()
    samples = np.asarray(samples)
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim != 2 or samples.dtype.kind not in "fiu" or 0 in samples.shape:
        raise AudioFileError(
            f"{name} has shape {list(samples.shape)} and type {samples.dtype}, but "
            "must be numbers [T] or [T, channels]."
        )
    if samples.shape[1] > max(64, samples.shape[0]):
        raise AudioFileError(
            f"{name} has shape {list(samples.shape)}, but must be [T, channels]: "
            "transpose it."
        )
    try:
        whole = not isinstance(rate, bool) and rate == int(rate)
    except (TypeError, ValueError, OverflowError):  # None, "8k", NaN, infinity
        whole = False
    if not whole:
        raise AudioFileError(f"{name} has a sample rate of {rate}: give whole Hz.")
    mixer = _Mixer(use, name, channel, None, Cut())
    for start in range(0, len(samples), BLOCK):
        mixer.add(to_float(samples[start : start + BLOCK]), int(rate))
    return mixer.end()


def to_tensor(samples: ArrayLike | Tensor) -> Tensor:
    """Samples as a tensor; where they are an array, on the CPU.

    Example
    -------
    >>> to_tensor(np.frombuffer(bytes([1, 0, 2, 0]), ">i2")[::-1])
    tensor([512, 256], dtype=torch.int16)
    """
    if isinstance(samples, Tensor):
        return samples
    if isinstance(samples, np.ndarray):
        # torch takes no foreign byte order, no array backwards, and warns of memory
        # that is read-only.
        samples = samples.astype(samples.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(samples, device="cpu")


def to_float(values: np.ndarray) -> np.ndarray:
    """Samples as floats with full scale 1.

    Example
    -------
    >>> to_float(np.array([-32768, 16384], np.int16)), to_float(np.array([0], np.uint8))
    (array([-1. ,  0.5], dtype=float32), array([-1.], dtype=float32))
    """
    if values.dtype.kind in "iu":
        half = 2.0 ** (8 * values.dtype.itemsize - 1)
        values = values / half - (values.dtype.kind == "u")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Samples of full scale 1 as the nearest 16-bit numbers."""
    return np.rint(samples * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)


# For training: many files, of which parts are read again and again.


class AudioFile(NamedTuple):
    """A readable file: where it is, its frames and its rate in Hz.

    ``parts`` is None for a file that libsndfile reads as it is.
    """

    path: Path
    frames: int
    rate: int
    parts: tuple[Part, ...] | None = None

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.frames / self.rate


def open_audio(path: str | Path, mono: bool = True) -> AudioFile:
    """Makes sure that a file reads to its end; ``mono`` refuses several channels."""
    path = Path(path)
    name = f"The audio file {path}"
    with _open_path(path, name) as file:
        try:
            parts, frames, rate, channels = _look(file, name, thorough=False)
        except UserError:
            raise
        except DAMAGED:
            raise AudioFileError(
                f"{name} is truncated or not audio: replace it."
            ) from None
        plain = len(parts) == 1 and parts[0].pieces == ((0, file.seek(0, 2)),)
    if frames == 0:
        raise AudioFileError(f"{name} is empty: remove or replace it.")
    if mono and channels != 1:
        raise AudioFileError(
            f"{name} has {channels} channels, but a source has one: convert it to mono."
        )
    return AudioFile(path, frames, rate, None if plain else parts)


def _look(
    file: BinaryIO, name: str, thorough: bool
) -> tuple[tuple[Part, ...], int, int, int]:
    """Parts, frames, rate and channels of a file that is whole."""
    parts, facts = [], set()
    for part in find_parts(file, thorough):
        with _open_sound(View(file, part)) as sound:
            check_rate(name, sound.samplerate)
            if part.frames is None and sound.seekable():
                length = sound.frames
                sound.seek(max(0, length - 1))
                whole = len(sound.read(1)) == min(1, length)
                whole &= length >= _promised(file, part, sound)
                if sound.format == "FLAC" and goes_on(file):
                    return _look(file, name, thorough=True)
            else:
                length = sum(map(len, _sound_blocks(sound)))
                whole = length >= _promised(file, part, sound)
            if not whole:
                raise AudioFileError(f"{name} is truncated: replace it.")
            parts.append(with_frames(part, length))
            facts.add((sound.samplerate, sound.channels))
    if len(facts) > 1:
        raise AudioFileError(
            f"{name} joins recordings of different rates or channels: split it."
        )
    return tuple(parts), sum(part.frames for part in parts), *facts.pop()


def open_all(paths: Iterable[str | Path], mono: bool = True) -> list[AudioFile]:
    """``open_audio`` of many files, several at a time, in their order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(partial(open_audio, mono=mono), paths))


def read_frames(file: AudioFile, start: int = 0, frames: int = -1) -> np.ndarray:
    """Reads a part of a file, [T] of its first channel.

    From frame ``start`` on; -1 frames reach to the end. What lies before it is decoded
    only where the format cannot be entered there: GSM and the like, the end of Vorbis.
    """
    stop = file.frames if frames < 0 else min(file.frames, start + frames)
    try:
        if file.parts is None:
            with _open_sound(os.fsencode(file.path)) as sound:
                return np.ascontiguousarray(_part(sound, min(start, stop), stop))
        blocks, begin = [np.empty(0, np.float32)], 0
        with open(file.path, "rb") as opened:
            for part in file.parts:
                first, last = max(start, begin), min(stop, begin + part.frames)
                if first < last:
                    with _open_sound(View(opened, part)) as sound:
                        blocks.append(_part(sound, first - begin, last - begin))
                begin += part.frames
        return np.concatenate(blocks)
    except (RuntimeError, OSError) as error:
        raise AudioFileError(
            f"The audio file {file.path} cannot be read: {error}"
        ) from None


def _part(sound: soundfile.SoundFile, start: int, stop: int) -> np.ndarray:
    """The frames of an open file from start to stop, [T] of its first channel."""
    place = _enter(sound, start)
    for begin in range(place, start, BLOCK):
        sound.read(min(BLOCK, start - begin), "float32")
    return sound.read(stop - start, "float32", always_2d=True)[:, 0]


# Writing.


class Format(NamedTuple):
    """How voices are written: one of ``FORMATS``, libsndfile's name of the subtype."""

    name: str = "wav"
    subtype: str = "FLOAT"

    @property
    def clips(self) -> bool:
        """Whether samples beyond full scale cannot be written."""
        return self.subtype not in ("FLOAT", "DOUBLE")


def find_format(
    name: str | None = None, subtype: str | None = None, path: str | Path = ""
) -> Format:
    """Checks a format and its subtype; by default the ending of ``path``, or WAV."""
    ending = Path(path).suffix.lower()[1:]
    name = name or (ending if ending in FORMATS else "wav")
    if name not in FORMATS:
        raise UserError(f"format is {name!r}, but must be one of {', '.join(FORMATS)}.")
    container, usual = FORMATS[name]
    wanted = SUBTYPES.get(str(subtype).lower(), str(subtype).upper())
    if subtype is None:
        return Format(name, usual)
    if name == "opus" or not soundfile.check_format(container, wanted):
        can = [
            short
            for short, full in SUBTYPES.items()
            if name != "opus" and soundfile.check_format(container, full)
        ]
        raise UserError(
            f"subtype is {subtype!r}, but a file of format {name} "
            + (f"can be {', '.join(can)}." if can else "has none: leave it out.")
        )
    return Format(name, wanted)


def check_form(form: Format, rate: int, path: str | Path) -> None:
    """Refuses a rate that a format cannot have, before any work is done."""
    kind = {"subtype": form.subtype, "format": FORMATS[form.name][0]}
    fits = form.subtype != "VORBIS" or rate <= HIGHEST_VORBIS
    if fits:
        try:  # FLAC tells at the first sample
            with soundfile.SoundFile(io.BytesIO(), "w", rate, 1, **kind) as file:
                file.write(np.zeros(1))
        except soundfile.LibsndfileError:
            fits = False
    if not fits:
        raise AudioFileError(
            f"{path} cannot be written: the format {form.name} has no rate of {rate} "
            "Hz: take wav."
        )


@contextmanager
def voice_files(
    paths: Sequence[str | Path], rate: int, frames: int, form: Format | None = None
) -> Iterator[list[soundfile.SoundFile]]:
    """Files of one channel that appear, all of them, when the block ends well.

    Existing ones are replaced; WAV files above 4 GiB become RF64.
    """
    form = form or Format()
    container = FORMATS[form.name][0]
    if frames * BYTES.get(form.subtype, 0) > LARGEST_RIFF:
        if container in ("AIFF", "AU"):
            raise AudioFileError(
                f"{paths[0]} would be above 4 GiB, which {form.name} cannot hold: "
                "take the format wav, w64, caf or flac."
            )
        container = "RF64" if container == "WAV" else container
    try:
        with ExitStack() as names:
            temporary = [names.enter_context(replacing(Path(path))) for path in paths]
            with ExitStack() as files:
                yield [
                    files.enter_context(
                        soundfile.SoundFile(
                            os.fsencode(path),
                            "w",
                            rate,
                            1,
                            subtype=form.subtype,
                            format=container,
                        )
                    )
                    for path in temporary
                ]
            if container in ("WAV", "RF64", "AIFF") and not form.clips:
                for path in temporary:
                    _stop_clock(path)
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or "no rights, or the disk is full"
        raise AudioFileError(f"{paths[0]} cannot be written: {reason}.") from None


def _stop_clock(path: Path) -> None:
    """Takes the time out of a file with a PEAK chunk: equal runs give equal files."""
    with path.open("r+b") as file:
        found = re.search(b"PEAK|data|SSND", file.read(2**12))
        if found and found[0] == b"PEAK":  # before the samples, which may hold it too
            file.seek(found.start() + 12)  # name, size and version
            file.write(bytes(4))


def write_audio(path: str | Path, samples: Tensor, sample_rate: int) -> None:
    """Writes [T] as a mono WAV file, whole or not at all; see ``write_voices``."""
    write_voices([path], samples.unsqueeze(-1), sample_rate)


def write_voices(
    paths: Sequence[str | Path],
    voices: Tensor,
    sample_rate: int,
    form: Format | None = None,
) -> float:
    """Writes one file per voice ``[T, spks]``; they appear only when all are written.

    By default samples are 32-bit floats: a voice that is louder than its mixture does
    not clip and a quiet one is not rounded away. In other formats all voices are made
    quieter if one would clip. Returns what they were multiplied by.
    """
    form = form or Format()
    gain = gain_against_clipping(form, float(voices.abs().max()) if len(voices) else 0)
    with voice_files(paths, sample_rate, len(voices), form) as files:
        for file, voice in zip(files, voices.T, strict=True):
            write_samples(file, voice * gain if gain < 1 else voice)
    return gain


def write_samples(file: soundfile.SoundFile, samples: Tensor) -> None:
    """Writes [T] in parts: libvorbis puts all that it is given at once on the stack."""
    for part in samples.split(BLOCK):
        file.write(part.contiguous().cpu().numpy())


def gain_against_clipping(form: Format, peak: float) -> float:
    """What to multiply voices by so that they fit."""
    return FULL_SCALE / peak if form.clips and peak > FULL_SCALE else 1.0


FULL_SCALE = 1 - 2.0**-13  # half a step of 16 bits below the largest, and a bit


# Rates.


def resample(samples: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Resamples between any rates, ``[..., T]`` to ``[..., ceil(T * new / old)]``."""
    old, new, _ = periods(old_rate, new_rate)
    T = samples.shape[-1]
    if old == new or not T:  # torchaudio takes no empty tensors
        return samples
    if old * new > LARGEST_KERNEL:
        return _interpolate(samples, old, new)
    length = resampled_length(T, old, new)
    # torchaudio counts in float32, and may leave out the last sample of a long signal.
    if math.ceil(np.float32(new * T / old)) < length:
        samples = torch.nn.functional.pad(samples, (0, old + T // 2**20))
    with samples.device:  # where torchaudio names none
        return torchaudio_resample(samples, old, new)[..., :length]


def periods(old_rate: int, new_rate: int) -> tuple[int, int, int]:
    """Samples of both rates in a period, whereafter the filters repeat; their reach.

    Example
    -------
    >>> periods(44100, 8000), periods(8000, 16000)  # the reach in periods, rounded up
    ((441, 80, 1), (1, 2, 12))
    """
    divisor = math.gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    return old, new, math.ceil(REACH * max(1, old / new) / old)


class Resampler:
    """Resamples what comes piece by piece, as ``resample`` does the whole.

    It waits for what the filters reach ahead: some ten samples of the slower rate, and
    up to one period in which both rates have whole numbers of samples.
    """

    def __init__(self, old_rate: int, new_rate: int) -> None:
        self.old, self.new, self.margin = periods(old_rate, new_rate)
        self.held: Tensor | None = None  # [..., n]
        self.first = self.taken = self.given = 0  # period of held, samples in and out

    def push(self, samples: Tensor) -> Tensor:
        """From ``[..., n]`` to ``[..., m]``; m may be 0."""
        self.taken += samples.shape[-1]
        if self.old == self.new:
            return samples
        parts = [samples] if self.held is None else [self.held, samples]
        self.held = torch.cat(parts, -1)
        ready = self.taken // self.old - self.margin
        if ready * self.new <= self.given:
            return self.held[..., :0]
        out = self._until(ready * self.new)
        first = max(0, ready - self.margin)
        self.held = self.held[..., (first - self.first) * self.old :]
        self.first = first
        return out

    def finish(self) -> Tensor:
        """The rest; nothing can be pushed after that."""
        if self.held is None:
            return torch.zeros(0)
        return self._until(resampled_length(self.taken, self.old, self.new))

    def _until(self, stop: int) -> Tensor:
        start, begin = self.given, self.first * self.new
        self.given = stop
        out = resample(self.held, self.old, self.new)
        return out[..., start - begin : stop - begin]


def resampled_length(frames: int, rate: int, target_rate: int) -> int:
    """How many samples ``frames`` become after ``resample``."""
    return -(-frames * target_rate // rate)


def _interpolate(samples: Tensor, old: int, new: int) -> Tensor:
    """``[..., T]`` by the same filters, without a table of them, which may take GBs."""
    zeros, base = 6, 0.99 * min(old, new)  # as torchaudio's defaults
    width = math.ceil(zeros * old / base)
    T, shape = samples.shape[-1], samples.shape[:-1]
    length = resampled_length(T, old, new)
    padded = torch.nn.functional.pad(samples.reshape(-1, T), (width, width + 1))
    taps = torch.arange(2 * width + 1, device=samples.device)
    result = samples.new_empty(len(padded), length)
    step = max(1, 2**18 // len(taps))
    for start in range(0, length, step):
        m = torch.arange(start, min(start + step, length), device=samples.device)
        first, rest = m * old // new, (m * old % new).unsqueeze(1) / new
        times = ((taps - width - rest) * (base / old)).clamp_(-zeros, zeros)
        window = torch.cos(times * (math.pi / zeros / 2)).square_()
        filters = torch.sinc(times).mul_(window).mul_(base / old)  # [m, taps]
        index = first.unsqueeze(1) + taps
        for row, out in zip(padded, result, strict=True):
            torch.sum(row[index] * filters, -1, out=out[start : start + len(m)])
    return result.reshape(*shape, length)


def frames_needed(samples: int, rate: int, target_rate: int, speed: int = 100) -> int:
    """How many frames of a file give ``samples`` samples after ``change_rate``.

    Example
    -------
    >>> frames_needed(8000, rate=16000, target_rate=8000)
    16000
    >>> frames_needed(8000, rate=8000, target_rate=8000, speed=105)
    8400
    """
    return math.ceil(math.ceil(samples * speed / 100) * rate / target_rate)


def change_rate(
    samples: Tensor, rate: int, target_rate: int, speed: int = 100
) -> Tensor:
    """Resamples [T], and plays it at ``speed`` per cent: 105 makes it 5% shorter.

    Speed changes tempo and pitch together, as SpeechBrain's SpeedPerturb does.
    ``frames_needed`` says how many frames to pass for a certain number.
    """
    # Two steps: the filters of a common ratio like 44.1 kHz to 8.4 kHz would be huge.
    return resample(resample(samples, rate, target_rate), speed, 100)

"""Sound from what only FFmpeg reads, through PyAV: m4a, mp4, webm, wma and more."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from speechbrain_spgm.errors import UserError, require

EXTENSIONS = frozenset(
    ".m4a .m4b .mp4 .m4v .mov .3gp .3g2 .mkv .mka .webm .wma .wmv .asf .aac .adts .ac3 "
    ".eac3 .dts .amr .awb .mp2 .mpg .mpeg .ts .mts .m2ts .avi .flv .f4v .ogv .spx .ape "
    ".wv .tta .ra .rm".split()
)
# Containers that hold their sound themselves: no playlists, which name other files.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,asf_o,aac,ac3,eac3,dts,dtshd,amr,amrnb,"
    "amrwb,mp3,mpeg,mpegts,avi,flv,ogg,ape,wv,tta,rm,caf,wav,w64,aiff,au,flac,truehd,"
    "loas,oma,gsm,voc,nistsphere"
)
# How files of these formats begin, for those who lack PyAV.
MAGIC = (
    rb".{4}ftyp|\x1a\x45\xdf\xa3|\x30\x26\xb2\x75|#!AMR|\xff[\xf0-\xff]|\x0b\x77|OggS|"
    rb"\0\0\x01\xba|RIFF....AVI |FLV\x01|MAC |wvpk|TTA1|\.RMF|\.ra\xfd|\x47.{187}\x47|"
    rb"caff|.{4}(?:moov|mdat|free|wide)|\x7f\xfe\x80\x01"
)
SLACK = 0.1  # seconds by which a stated duration may be wrong
RUN_UP = 1.0  # seconds that decoders get before the part that is wanted


def is_installed() -> bool:
    """Whether PyAV is here."""
    return find_spec("av") is not None


def is_media(head: bytes) -> bool:
    """Whether the first 200 bytes are those of a format that is read here."""
    return re.match(MAGIC, head, re.S) is not None


def media_blocks(
    file: BinaryIO, name: str, remarks: list[str], offset: float = 0.0
) -> Iterator[tuple[np.ndarray, int, float]]:
    """Decodes the first audio stream of a seekable file, from a second on.

    Yields blocks ``[frames, channels]`` as they are stored, their rate and the seconds
    that the file states, or 0; ``remarks`` gets what the user should know. Raises
    MissingPackage without PyAV, ValueError or OSError if FFmpeg can read nothing.
    """
    av = require("av", "av", f"{name} is in a format that")
    file.seek(0)
    try:
        with av.open(file, options={"format_whitelist": FORMATS}) as container:
            if not container.streams.audio:
                raise UserError(
                    f"{name} holds no sound: give a file with an audio stream."
                )
            stream = container.streams.audio[0]
            if len(container.streams.audio) > 1:
                remarks.append(
                    f"{name} has {len(container.streams.audio)} audio streams: "
                    f"the first is used ({_described(stream)})."
                )
            seconds = float((container.duration or 0) / av.time_base)
            if stream.duration is not None:
                seconds = float(stream.duration * stream.time_base)
            elif len(container.streams) > 1:
                seconds = 0.0  # it is that of the longest, a picture may be
            for block, rate in _blocks_from(container, stream, offset):
                yield block, rate, seconds
    except av.error.FFmpegError as error:
        raise ValueError(str(error)) from None


def _blocks_from(
    container: Any, stream: Any, offset: float
) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks and their rates, the first of which begins ``offset`` seconds in."""
    frames = _decoded(container, stream)
    first = next(frames, None)
    if first is None:
        return
    rate, begin = first.sample_rate, round(offset * first.sample_rate)
    todo, position = chain([first], frames), 0
    # Some containers count milliseconds: too coarse to tell a sample's place.
    fine = stream.time_base is not None and stream.time_base * rate <= 2
    if fine and offset > 2 * RUN_UP and first.time is not None:
        container.seek(round((first.time + offset - RUN_UP) * 1_000_000))
        frames = _decoded(container, stream)
        after = next(frames, None)
        if after is not None and after.time is not None:
            position = round((after.time - first.time) * rate)
        if not 0 < position <= begin:  # it cannot tell where it is
            container.seek(0)
            todo, position = _decoded(container, stream), 0
        else:
            todo = chain([after], frames)
    for frame in todo:
        block = _samples(frame)
        kept = block[max(0, begin - position) :]
        position += len(block)
        if len(kept):
            yield kept, frame.sample_rate


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream from where the container stands."""
    invalid = importlib.import_module("av").error.InvalidDataError
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except invalid:  # as FFmpeg, go on behind it
            continue
        yield from frames


def _described(stream: object) -> str:
    language = stream.metadata.get("language")
    words = [stream.codec_context.name, language if language != "und" else None]
    return ", ".join(word for word in words if word)


def _samples(frame: object) -> np.ndarray:
    """A frame's samples, ``[frames, channels]``, as they are stored."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values
    return values.reshape(-1, frame.layout.nb_channels)

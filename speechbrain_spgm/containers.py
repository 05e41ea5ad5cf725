"""What lies in an audio file, whatever its header says.

libsndfile believes headers: it stops where one says so, and guesses where none does. So
a file is taken apart first, into parts that libsndfile reads to their true ends: files
that were joined are split, sizes that are wrong or open are put right.
"""

from __future__ import annotations

import io
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import BinaryIO, NamedTuple

# What libsndfile is shown in place of a part: bytes, and ranges (start, stop).
Pieces = tuple["bytes | tuple[int, int]", ...]


class Part(NamedTuple):
    """One recording within a file.

    ``pieces`` are bytes, or (start, stop) in the file. ``lost`` bytes of audio are
    promised by the header beyond those ``held``; 0 if it does not promise more.
    ``frames`` that there should be, where libsndfile cannot see that; ``stretch`` bytes
    by which the part is to look longer than it is.
    """

    pieces: Pieces
    lost: int = 0
    held: int = 0
    frames: int | None = None
    stretch: int = 0


class View(io.RawIOBase):
    """A part as a file of its own, to read only; the position of ``file`` is changed.

    Example
    -------
    >>> view = View(io.BytesIO(b"0123456789"), Part((b"ab", (3, 5))))
    >>> view.read(), view.seek(1), view.read(2)
    (b'ab34', 1, b'b3')
    """

    def __init__(self, file: BinaryIO, part: Part) -> None:
        sizes = (len(p) if isinstance(p, bytes) else p[1] - p[0] for p in part.pieces)
        self.file, self.pieces, self.at = file, part.pieces, 0
        self.ends = list(accumulate(sizes))
        self.size = self.ends[-1] + part.stretch

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position."""
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position."""
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def readinto(self, buffer: memoryview) -> int:
        """Fills a buffer, unless the part ends."""
        target, done = memoryview(buffer).cast("B"), 0
        if self.ends[-1] < self.at < self.size:  # where titles are looked for
            target[:] = bytes(len(target))
            return len(target)
        while done < len(target) and self.at < self.ends[-1]:
            i = bisect_right(self.ends, self.at)
            piece, left = self.pieces[i], self.ends[i] - self.at
            wanted = min(len(target) - done, left)
            if isinstance(piece, bytes):
                data = piece[len(piece) - left :][:wanted]
            else:
                data = _at(self.file, piece[1] - left, wanted)
            if not data:
                break
            target[done : done + len(data)] = data
            done, self.at = done + len(data), self.at + len(data)
        return done


def find_parts(file: BinaryIO, thorough: bool = True) -> list[Part]:
    """The recordings in a seekable file, in order; one if nothing is to put right.

    ``thorough`` looks through all of a file where that is the only way.
    """
    size = file.seek(0, io.SEEK_END)
    head = _at(file, 0, 64)
    layout = next((x for x in LAYOUTS if re.match(x.magic, head, re.S)), None)
    signature = next((x for x in SIGNATURES if re.match(x, head, re.S)), None)
    spans = [(0, size)]
    if signature and thorough:
        spans = list(pairwise([0, *_further_starts(file, signature, size), size]))
    parts: list[Part] = []
    behind = _behind_titles(file, 0)
    if (behind or head[:1] == b"\xff") and not re.match(OTHERS, _at(file, behind, 4)):
        parts = list(_mpeg_parts(file, size))
    elif layout:
        parts = list(_chunked_parts(file, size, layout))
    elif signature == FLAC:
        parts = [_opened_flac(file, *span) for span in spans]
        if not thorough:
            parts = [] if parts[0].frames else find_parts(file)
    return parts or [Part((span,)) for span in spans]


def goes_on(file: BinaryIO) -> bool:
    """Whether a FLAC file, read to the end of its first part, has another one."""
    # libFLAC reads ahead, but not as far as that.
    begin, size = max(1, file.tell() - 2**17), file.seek(0, io.SEEK_END)
    return any(_search(file, FLAC, begin, size))


def _at(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _search(file: BinaryIO, pattern: bytes, start: int, stop: int) -> Iterator[int]:
    """Where a pattern of at most 64 bytes is found, a few MiB at a time."""
    for begin in range(start, stop, 2**22):
        block = _at(file, begin, min(2**22 + 64, stop - begin))
        for found in re.finditer(pattern, block, re.S):
            if found.start() < 2**22:
                yield begin + found.start()


# Containers of chunks: RIFF and its relatives, and Sun's .snd, which has but one.


class _Layout(NamedTuple):
    """How a container writes down its chunks."""

    magic: bytes
    first: int  # where the first chunk begins
    name: int  # bytes of a chunk's name
    size: str  # its size, for struct
    own: int  # bytes of the chunk's head that its size counts, too
    align: int
    audio: bytes  # the name of the chunk that holds it; none: at once, with an offset


W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
LAYOUTS = (
    _Layout(rb"(?:RIFF|RF64)....WAVE", 12, 4, "<I", 0, 2, b"data"),
    _Layout(rb"RIFX....WAVE", 12, 4, ">I", 0, 2, b"data"),
    _Layout(rb"FORM....AIF[FC]", 12, 4, ">I", 0, 2, b"SSND"),
    _Layout(rb"caff\0[\x01\x02]", 8, 4, ">Q", 0, 1, b"data"),
    _Layout(rb"riff\x2e\x91\xcf\x11", 40, 16, "<Q", 24, 8, b"data" + W64_TAIL),
    _Layout(rb"\.snd\0\0..", 0, 4, ">I", 0, 1, b""),
)
TAGS = rb"TAG|APETAGEX|ID3|LYRICS"  # what may follow the audio, and is none


def _chunked_parts(file: BinaryIO, size: int, layout: _Layout) -> Iterator[Part]:
    """Parts by their chunks; what a wrong size hides is found by the next signature."""
    following: int | None = 0
    while following is not None:
        start, following = following, None
        audio = _audio_chunk(file, start, size, layout)
        if audio is None:  # libsndfile will say what it thinks of it
            yield Part(((start, size),))
            return
        claimed = audio.data + audio.size
        after = _after_chunks(file, claimed, size, layout)
        if after != size:
            begin = after if claimed <= size else audio.data
            following = next(_search(file, layout.magic, begin, size), None)
        stop = size if following is None else following
        end = claimed
        if claimed > size:
            end = stop
        elif after == claimed < stop:  # what follows is no chunk
            tags = re.match(TAGS, _at(file, after, 8))
            filled = tags or next(_search(file, rb"[^\0]", after, stop), None) is None
            end = claimed if filled else stop
        if end == claimed:
            yield Part(((start, stop),))
        else:
            lost = 0 if stands_for_unknown(audio.size) else max(0, claimed - end)
            yield Part(_resized(start, end, audio), lost, end - audio.data)


class _Audio(NamedTuple):
    """A chunk of audio: where its bytes begin, how many it claims, where and how."""

    data: int
    size: int
    field: int
    form: str
    own: int


def _audio_chunk(
    file: BinaryIO, start: int, size: int, layout: _Layout
) -> _Audio | None:
    form, width = layout.size, struct.calcsize(layout.size)
    if not layout.audio:
        head = _at(file, start, 12)
        offset, claimed = struct.unpack(">II", head[4:].ljust(8, b"\0"))
        return _Audio(start + offset, claimed, start + 8, form, 0)
    at, wide = start + layout.first, None  # RF64 has the size in a chunk of its own
    while len(head := _at(file, at, layout.name + width)) == layout.name + width:
        name = head[: layout.name]
        claimed = struct.unpack(form, head[layout.name :])[0] - layout.own
        body = at + len(head)
        if name == b"ds64":
            wide = struct.unpack("<Q", _at(file, body + 8, 8))[0], body + 8
        if name == layout.audio:
            if wide and claimed == 2**32 - 1:
                return _Audio(body, wide[0], wide[1], "<Q", 0)
            return _Audio(body, claimed, at + layout.name, form, layout.own)
        if claimed < 0 or body + claimed > size:
            return None
        at = _aligned(start, body + claimed, layout)
    return None


def _aligned(start: int, at: int, layout: _Layout) -> int:
    return at + (start - at) % layout.align


def _after_chunks(file: BinaryIO, end: int, size: int, layout: _Layout) -> int:
    """Where the chunks behind the audio end: there is nothing or something else."""
    width, at = struct.calcsize(layout.size), end
    while at < size and layout.audio:
        # Some writers forget to pad, and some pad at the very end.
        for begin in (at + -at % layout.align, at):
            head = _at(file, begin, layout.name + width)
            name, rest = head[: layout.name], head[layout.name :]
            named = name.endswith(W64_TAIL) or re.fullmatch(rb"[ -~]{4}", name)
            if begin >= size:
                return size
            if re.match(layout.magic, _at(file, begin, 64), re.S):
                return begin
            if named and len(rest) == width:
                claimed = struct.unpack(layout.size, rest)[0] - layout.own
                if 0 <= claimed <= size - begin - len(head):
                    at = begin + len(head) + claimed
                    break
        else:
            return at
    return at


def stands_for_unknown(size: int) -> bool:
    """Whether it is the largest number, or nearly so, as writers of streams put."""
    return size < 0 or any(
        top - 2**16 <= size <= top + 256 for top in (2**31, 2**32, 2**63, 2**64)
    )


def _resized(start: int, end: int, audio: _Audio) -> Pieces:
    """A part that ends with its audio, and says so."""
    width = struct.calcsize(audio.form)
    claim = min(end - audio.data + audio.own, 256**width - 1)
    return (
        (start, audio.field),
        struct.pack(audio.form, claim),
        (audio.field + width, end),
    )


# Other formats: a further file begins where the first bytes of one are found.

FLAC = rb"fLaC[\0\x80]\0\0\x22"
FLAC_FRAMES = 2**36 - 1  # the largest number in the field that holds it, and the field
SIGNATURES = (
    FLAC,
    rb"OggS\0[\x02\x06]\0{8}",
    rb"NIST_1A\n",
    rb"Creative Voice File\x1a",
    rb"FORM....(?:8SVX|16SV)",
    rb"\xf0\x7e.\x01...",  # SDS
    rb"2BIT.{8}[\0\xff]{2}\0",  # AVR
    rb"(?: paf|fap )\0{4}",
    rb"PVF1\n\d+ \d+ \d+\n",
    rb"Extended Instrument:",
    rb"ALawSoundFile\*\*",
    rb"MATLAB 5.0 MAT-file",
    rb"\0\0..ftyp[\x20-\x7e]{4}",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa",  # ASF
    rb"FLV\x01[\x01\x04\x05]\0{3}\x09\0{4}",
    rb"TTA1[\x01-\x03]\0",
    rb"\0{4}\x01\0{3}\x01\0{3}\0{4}\x0b\0{3}samplerate",
)


def _further_starts(file: BinaryIO, signature: bytes, size: int) -> Iterator[int]:
    ogg = signature.startswith(b"OggS")
    page_end = _ogg_page_end(file, 0) if ogg else 0
    for start in _search(file, signature, 1, size):
        # Streams side by side, as in a video, begin in a row of pages.
        beside = ogg and start == page_end
        page_end = _ogg_page_end(file, start) if ogg else 0
        if not beside:
            yield start


def _ogg_page_end(file: BinaryIO, start: int) -> int:
    head = _at(file, start, 27 + 255)
    segments = head[27 : 27 + head[26]] if len(head) > 26 else b""
    return start + 27 + len(segments) + sum(segments)


def _opened_flac(file: BinaryIO, start: int, stop: int) -> Part:
    """A FLAC file to be decoded to its end, however many frames it claims."""
    at = start + 18
    numbers = int.from_bytes(_at(file, at, 8), "big")
    claimed = numbers & FLAC_FRAMES
    field = (numbers | FLAC_FRAMES).to_bytes(8, "big")
    return Part(((start, at), field, (at + 8, stop)), frames=claimed)


def with_frames(part: Part, frames: int) -> Part:
    """A part whose length is known by now; FLAC can say it, too."""
    if part.frames is None or part.stretch:
        return part._replace(frames=frames)
    head, field, tail = part.pieces
    numbers = int.from_bytes(field, "big") - FLAC_FRAMES + frames
    return part._replace(pieces=(head, numbers.to_bytes(8, "big"), tail), frames=frames)


# MPEG audio: frames in a row, the first of which may say how many they are.


class _Frame(NamedTuple):
    """What a frame's four bytes say: its kind, its bytes, where a tag would stand."""

    kind: tuple[int, int, int]  # version, layer, rate
    length: int
    tag: int


MOST_OF_A_FRAME = 1441  # bytes
# What titles precede as well, and AAC: by chance there are frames in them, too.
OTHERS = rb"\xff[\xf0\xf1\xf8\xf9]|fLaC|OggS|RIFF|FORM|wvpk|TTA1|MAC "
BITRATES = {  # kbit/s, by (MPEG 1?, layer)
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
BITRATES[False, 3] = BITRATES[False, 2]


def _frame(head: bytes) -> _Frame | None:
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    first, mono = version == 3, head[3] >> 6 == 3
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = BITRATES[first, layer][bitrate - 1] * 1000
    if layer == 1:
        length = (12 * bits // hertz + padding) * 4
    else:
        length = (144 if first or layer == 2 else 72) * bits // hertz + padding
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Frame((version, layer, hertz), length, 4 + side)


def _mpeg_parts(file: BinaryIO, size: int) -> Iterator[Part]:
    """Parts of frames of one kind; a frame with a tag begins another one."""
    runs: list[tuple[int, int]] = []  # of the part so far
    frames, tagged, kind = 0, None, None

    def part() -> Part:
        first = _frame(_at(file, runs[0][0], 4))
        honest = tagged is not None and tagged >= frames and len(runs) == 1
        if honest or first.kind[1] != 3:
            return Part(tuple(runs))
        if tagged is not None:  # wrong: without the frame that says so
            runs[0] = runs[0][0] + first.length, runs[0][1]
        # From the size libsndfile guesses how many frames there are, and stops there.
        samples = frames * (576 if first.kind[0] != 3 else 1152)
        return Part(tuple(runs), frames=samples, stretch=4 * frames * MOST_OF_A_FRAME)

    for at, frame, head in _mpeg_frames(file, size):
        number = _tagged_frames(head, frame.tag)
        if runs and (number is not None or frame.kind != kind):
            yield part()
            runs, frames, tagged = [], 0, None
        if not runs:
            kind, tagged = frame.kind, number
        frames += number is None
        if runs and runs[-1][1] == at:
            runs[-1] = runs[-1][0], at + frame.length
        else:
            runs.append((at, at + frame.length))
    if runs:
        yield part()


def _mpeg_frames(file: BinaryIO, size: int) -> Iterator[tuple[int, _Frame, bytes]]:
    """Where frames begin; what lies between them, such as titles, is passed over."""
    at, kind = 0, None  # the kind of the frame that ends here
    while at < size:
        head = _at(file, at, 64)
        if (behind := _behind_titles(file, at)) > at:
            at, kind = behind, None
            continue
        frame = _frame(head)
        if frame and at + frame.length <= size and frame.kind != kind:
            after = _frame(_at(file, at + frame.length, 4))
            if at + frame.length < size and (not after or after.kind != frame.kind):
                frame = None
        if frame and at + frame.length <= size:
            yield at, frame, head
            at, kind = at + frame.length, frame.kind
        else:
            kind = None
            at = next(
                _search(file, rb"\xff[\xe2-\xff]|ID3[\x02-\x04]", at + 1, size), size
            )


def _behind_titles(file: BinaryIO, at: int) -> int:
    """Where the titles end that begin here, if any do."""
    while (head := _at(file, at, 11)).startswith(b"ID3") and len(head) > 10:
        # Of a byte 7 bits count.
        at += 10 + int("".join(f"{byte & 127:07b}" for byte in head[6:10]), 2)
    return at


def _tagged_frames(head: bytes, tag: int) -> int | None:
    """How many frames a tag says that follow; 0 if it does not, None without a tag."""
    name = head[tag : tag + 4]
    if name in (b"Xing", b"Info"):
        return int.from_bytes(head[tag + 8 : tag + 12], "big") * (head[tag + 7] & 1)
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big")
    return None

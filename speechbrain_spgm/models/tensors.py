"""Files of named tensors, read without running anything from them.

That is safetensors, and what ``torch.save`` writes, in its zip and in its old format: a
pickle, read with ``weights_only`` after a look at what it names, so that nothing is
called but what builds dense tensors and plain containers. Names and shapes are known,
and compared with the network, before any memory is taken for the numbers.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.serialization import skip_data

from speechbrain_spgm.errors import UserError

LFS_POINTER = b"version https://git-lfs."
ZIP_FILE = b"PK\x03\x04"
LARGEST_PICKLE = 2**22  # bytes: what is no number in a file of weights
PICKLES = 5  # in the old format, before the numbers
# What torch.save names for dense tensors; weights_only alone would also call others
# that take memory without end, such as bytearray.
BUILDERS = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch Size"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
# What the opcodes of such a pickle do to the stack: they push something that holds
# nothing, take these many or all since the last mark, and add to what is below or push
# what they make.
PLAIN = {"NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"}
PLAIN |= {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "GLOBAL"}
PLAIN |= {"BINUNICODE", "SHORT_BINSTRING"}
TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1, "REDUCE": 2}
TAKEN |= {"NEWOBJ": 2, "APPEND": 1, "SETITEM": 2, "BUILD": 1}
SINCE_MARK = {"TUPLE", "APPENDS", "SETITEMS"}
ADDING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
MOST_WORK = 2**21  # objects of a pickle, and their parts; spgm-opt has under 2**17
LARGEST_NUMBER = 8  # bytes
# Of tensors of such floats and numbers they make one, of the shapes' common shape.
FLOAT = torch.float32
ELEMENTWISE = {torch.exp, torch.sin, torch.cos, Tensor.mul}
MOST_SHARING = 16  # times that a number of a file may be in its tensors
ZIP_END = struct.Struct("<4s4H2LH")
ZIP64_END, ZIP64_PLACE = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
ZIP_EXTRA, UNICODE_PATH = struct.Struct("<2H"), 0x7075  # a further name of a record
Shapes = Mapping[str, list[int]]


class ModelError(UserError):
    """A model that cannot be loaded or saved; the message is one sentence."""


def read_tensors(
    path: Path,
    check: Callable[[Shapes], None],
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, which do not depend on it any more.

    A name that ends in .safetensors is taken at its word. ``check`` gets the shapes by
    name before any number is read, and raises if they are wrong; ``rename`` gives the
    tensors of a pickle other names.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.bin"
    >>> torch.save({"a": torch.ones(2)}, path)
    >>> read_tensors(path, print)
    {'a': [2]}
    {'a': tensor([1., 1.])}
    """
    with open_file(path) as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ModelError(
            f"{path} is a pointer of git-lfs, not the weights: get them by git lfs "
            "pull, or download the file itself."
        )
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _read_safetensors(path, check)
    is_zip = start.startswith(ZIP_FILE)
    records = _records(path) if is_zip else {}
    _check_pickles(path, records)
    outline = rename(_load(path, is_zip, meta=True))
    check({name: list(value.shape) for name, value in outline.items()})
    numbers = sum(value.numel() for value in outline.values())
    found = sum(item.file_size for item in records.values()) or path.stat().st_size
    if found > LARGEST_NUMBER * numbers + LARGEST_PICKLE:
        raise ModelError(
            f"{path} would unpack to {found:,} bytes, more than its {numbers:,} "
            "numbers need: it is not loaded."
        )
    if not is_zip:
        storages = [value.untyped_storage() for value in outline.values()]
        if sum({x.data_ptr(): x.nbytes() for x in storages}.values()) > found:
            raise _truncated(path)
    claimed = sum(value.numel() * value.element_size() for value in outline.values())
    if claimed > MOST_SHARING * found + LARGEST_PICKLE:
        raise ModelError(
            f"{path} would have {claimed:,} bytes of numbers, but holds {found:,}: it "
            "is not loaded."
        )
    state = rename(_load(path, is_zip))
    return {name: value.detach().clone() for name, value in state.items()}


def open_file(path: Path) -> Any:
    """A file opened for reading bytes, or a sentence."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None


@contextmanager
def outline() -> Iterator[None]:
    """Modules that are built inside take no memory for their numbers: all are "meta".

    Where torch's compiler is asked for all the same, it makes a folder, and needs one
    that is there where no temporary file can be.

    Example
    -------
    >>> with outline():
    ...     torch.exp(torch.arange(0, 10**12, 2).float() * 0.5)
    tensor(..., device='meta', size=(500000000000,))
    """
    try:
        gettempdir()
    except FileNotFoundError:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parent))
    with torch.device("meta"), _ShapesAlone():
        yield


class _ShapesAlone(TorchFunctionMode):
    """Answers what positional encodings ask on "meta", where there are only shapes.

    torch's own answer is the same, but imports its compiler, which takes seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:  # named by whoever builds
            kwargs["device"] = "meta"
        plain = not kwargs.keys() - {"device"} and all(type(x) is int for x in args)
        if func is torch.arange and plain:
            with suppress(OverflowError, TypeError, ValueError):
                return torch.empty(len(range(*args)), dtype=torch.int64)
        elif func in ELEMENTWISE and not kwargs:
            tensors = [x for x in args if type(x) is not float]
            if tensors and all(type(x) is Tensor and x.is_meta for x in tensors):
                if all(x.dtype == FLOAT for x in tensors):
                    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
                    return torch.empty(shape, dtype=FLOAT)
        return func(*args, **kwargs)


def _read_safetensors(path: Path, check: Callable[[Shapes], None]) -> dict[str, Tensor]:
    with _safetensors(path) as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    check(shapes)  # which may meet troubles of its own
    with _safetensors(path) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError):
        raise ModelError(
            f"{path} is truncated or no safetensors file: download it again."
        ) from None
    except MemoryError:
        raise ModelError(f"{path} does not fit into the memory there is.") from None


def _records(path: Path) -> dict[str, zipfile.ZipInfo]:
    """What a zip file says that it holds; its pickle must be of a sane size."""
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as file:
            # torch finds names whatever their case.
            records = {item.filename.lower(): item for item in file.infolist()}
            if len(records) < len(file.infolist()):
                raise ValueError
            if any(map(_has_two_names, file.infolist())):
                raise ValueError
    except ModelError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        raise _truncated(path) from None
    if any(x.compress_type != zipfile.ZIP_STORED for x in records.values()):
        raise ModelError(
            f"{path} is compressed inside, as torch.save never does it: it is not "
            "loaded."
        )
    numbers = {name for name in records if "/data/" in name and not _is_read(name)}
    others = sum(x.file_size for name, x in records.items() if name not in numbers)
    if others > LARGEST_PICKLE:
        raise _too_long(path, others)
    return records


def _has_two_names(record: zipfile.ZipInfo) -> bool:
    """Whether a record has a name that newer Pythons take, and torch does not."""
    at, extra, kinds = 0, record.extra, set()
    while at + ZIP_EXTRA.size <= len(extra):
        kind, size = ZIP_EXTRA.unpack_from(extra, at)
        kinds.add(kind)
        at += ZIP_EXTRA.size + size
    return UNICODE_PATH in kinds or record.filename != record.orig_filename


def _is_read(record: str) -> bool:
    """Whether a record of a zip file is read here, whole."""
    return record.endswith((".pkl", "byteorder"))


def _check_directory(path: Path) -> None:
    """A zip file's directory must be where every reader looks for it: at the end.

    Python takes the bytes before the end's record for it, torch those at the place that
    the record names. Were they others, what is checked would not be what is loaded.
    """
    with open(path, "rb") as file:
        start = file.seek(-ZIP_END.size, os.SEEK_END)
        mark, *_, size, place, comment = ZIP_END.unpack(file.read())
        if mark != b"PK\5\6" or comment:
            raise ValueError
        ends = ZIP64_END.size + ZIP64_PLACE.size
        if start >= ends:
            file.seek(start - ends)
            mark, *_, size64, place64 = ZIP64_END.unpack(file.read(ZIP64_END.size))
            mark_place, _, end64, _ = ZIP64_PLACE.unpack(file.read(ZIP64_PLACE.size))
            if mark_place == b"PK\6\7":
                start, size, place = start - ends, size64, place64
                if mark != b"PK\6\6" or end64 != start:
                    raise ValueError
    if place + size != start:
        raise ValueError
    if size > LARGEST_PICKLE:
        raise _too_long(path, size)


def _check_pickles(path: Path, records: Mapping[str, zipfile.ZipInfo]) -> None:
    """What a file's pickles name must be what builds tensors; nothing is unpickled."""
    try:
        if records:
            with zipfile.ZipFile(path) as file:
                texts = {x: file.read(records[x]) for x in records if _is_read(x)}
            orders = {texts[x] for x in texts if x.endswith("byteorder")}
            if not orders <= {sys.byteorder.encode()}:  # torch would crash
                raise ModelError(
                    f"{path} holds numbers in another order of bytes than this "
                    "machine's: save it on one like this."
                )
            for name, text in texts.items():
                if name.endswith(".pkl"):
                    _check_pickle(path, pickletools.genops(text))
        else:
            with open(path, "rb") as file:
                head = BytesIO(file.read(LARGEST_PICKLE))
            if _is_tar(head.getvalue()):  # torch would look into it
                raise _truncated(path)
            for _ in range(PICKLES):
                _check_pickle(path, pickletools.genops(head))
    except ModelError:
        raise
    except Exception:  # a damaged pickle may raise anything
        raise _truncated(path) from None


def _is_tar(head: bytes) -> bool:
    """Whether a file that begins so is one of torch's oldest format."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _check_pickle(path: Path, operations: Iterable[tuple]) -> None:
    """A pickle must name only what builds tensors, and build no more than it says.

    A tuple that holds another twice, and so on, has any number of parts after a few
    bytes, all of which Python visits if it is a key; a list may be copied again and
    again; a tuple in a tuple in a tuple ends the process. So the parts of what is built
    are counted as if nothing were shared.
    """
    stack: list[list[int]] = []  # of each object the number of its parts
    marks: list[int] = []
    memo: dict[int, list[int]] = {}
    work = 0
    for operation, argument, _ in operations:
        name = operation.name
        work += 1
        if work > MOST_WORK:
            raise ModelError(
                f"{path} describes more than {MOST_WORK:,} objects, which no network "
                "needs: it is not loaded."
            )
        if name == "GLOBAL" and not BUILDERS.fullmatch(argument):
            raise _unsafe(path)
        if name in PLAIN:
            parts = []
        elif name in TAKEN or name in SINCE_MARK:
            first = len(stack) - TAKEN[name] if name in TAKEN else marks.pop()
            parts = stack[first:]
            del stack[first:]
        elif name == "MARK":
            marks.append(len(stack))
            continue
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
            continue
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            continue
        elif name in ("PROTO", "STOP"):
            continue
        else:
            raise _unsafe(path)
        size = 1 + sum(part[0] for part in parts)
        work += size - 1
        if name in ADDING:
            stack[-1][0] += size
        else:
            stack.append([size])


def _too_long(path: Path, size: int) -> ModelError:
    return ModelError(
        f"{path} holds {size:,} bytes besides its numbers: it is not loaded."
    )


def _unsafe(path: Path) -> ModelError:
    return ModelError(
        f"{path} holds more than tensors, or is damaged: it is not loaded, because "
        "that could run code."
    )


def _truncated(path: Path) -> ModelError:
    return ModelError(f"{path} is truncated or no file of weights: download it again.")


def _load(path: Path, is_zip: bool, meta: bool = False) -> dict[str, Tensor]:
    """Named tensors of a pickle; with ``meta`` they have no numbers."""
    # The old format knows no meta tensors; what is skipped is reserved but not touched.
    context = skip_data() if meta and not is_zip else nullcontext()
    place = "meta" if meta and is_zip else "cpu"
    try:
        with warnings.catch_warnings(), context:
            warnings.simplefilter("ignore")  # about odd pickles
            state = torch.load(path, place, weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError:
        raise _unsafe(path) from None
    except Exception:  # a damaged pickle may raise anything
        raise _truncated(path) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        for name, value in state.items()
    ):
        raise ModelError(f"{path} must hold named tensors, but holds something else.")
    return dict(state)

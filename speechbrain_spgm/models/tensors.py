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
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import skip_data

from speechbrain_spgm.errors import UserError

LFS_POINTER = b"version https://git-lfs."
ZIP_FILE = b"PK\x03\x04"
LARGEST_PICKLE = 2**22  # bytes: what is no number in a file of weights
PICKLES = 5  # in the old format, before the numbers
# What torch.save names for dense tensors; weights_only alone would also call others
# that take memory without end, such as bytearray.
BUILDERS = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\.storage \w+Storage|torch Size"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
LARGEST_NUMBER = 8  # bytes
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
    found = sum(item.file_size for item in records.values())
    if not is_zip:
        storages = [value.untyped_storage() for value in outline.values()]
        found = sum({x.data_ptr(): x.nbytes() for x in storages}.values())
    if found > LARGEST_NUMBER * numbers + LARGEST_PICKLE:
        raise ModelError(
            f"{path} would unpack to {found:,} bytes, more than its {numbers:,} "
            "numbers need: it is not loaded."
        )
    state = rename(_load(path, is_zip))
    return {name: value.detach().clone() for name, value in state.items()}


def open_file(path: Path) -> Any:
    """A file opened for reading bytes, or a sentence."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None


def outline() -> torch.device:
    """The device of modules that take no memory for their numbers.

    On the way torch makes a folder for its compiler, which needs one that is there
    where no temporary file can be.
    """
    try:
        gettempdir()
    except FileNotFoundError:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parent))
    return torch.device("meta")


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


def _records(path: Path) -> dict[str, zipfile.ZipInfo]:
    """What a zip file says that it holds; its pickle must be of a sane size."""
    try:
        with zipfile.ZipFile(path) as file:
            # torch finds names whatever their case.
            records = {item.filename.lower(): item for item in file.infolist()}
            if len(records) < len(file.infolist()):
                raise ValueError
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        raise _truncated(path) from None
    if any(x.compress_type != zipfile.ZIP_STORED for x in records.values()):
        raise ModelError(
            f"{path} is compressed inside, as torch.save never does it: it is not "
            "loaded."
        )
    others = sum(x.file_size for name, x in records.items() if "/data/" not in name)
    if others > LARGEST_PICKLE:
        raise ModelError(
            f"{path} holds {others:,} bytes besides its numbers: it is not loaded."
        )
    return records


def _check_pickles(path: Path, records: Mapping[str, zipfile.ZipInfo]) -> None:
    """What a file's pickles name must be what builds tensors; nothing is unpickled."""
    try:
        if records:
            with zipfile.ZipFile(path) as file:
                texts = [file.read(records[x]) for x in records if x.endswith(".pkl")]
                orders = {
                    file.read(records[x]) for x in records if x.endswith("byteorder")
                }
            if not orders <= {sys.byteorder.encode()}:  # torch would crash
                raise ModelError(
                    f"{path} holds numbers in another order of bytes than this "
                    "machine's: save it on one like this."
                )
            _check_names(path, map(pickletools.genops, texts))
        else:
            with open(path, "rb") as file:
                _check_names(path, (pickletools.genops(file) for _ in range(PICKLES)))
    except ModelError:
        raise
    except Exception:  # a damaged pickle may raise anything
        raise _truncated(path) from None


def _check_names(path: Path, pickles: Iterable[Iterable[tuple]]) -> None:
    for operation, argument, position in chain.from_iterable(pickles):
        if (position or 0) > LARGEST_PICKLE:
            raise ModelError(
                f"{path} holds more than {LARGEST_PICKLE:,} bytes besides its numbers: "
                "it is not loaded."
            )
        if "GLOBAL" in operation.name and not BUILDERS.fullmatch(str(argument)):
            raise _unsafe(path)


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

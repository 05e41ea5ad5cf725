"""Models and recordings that lie elsewhere: the Hugging Face Hub and the web."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from functools import cache, partial
from inspect import signature
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from huggingface_hub import (
    _CACHED_NO_EXIST,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from speechbrain.utils.data_utils import split_path
from speechbrain.utils.fetching import (
    FetchFrom,
    FetchSource,
    LocalStrategy,
    guess_source,
    link_with_strategy,
)
from tqdm.auto import tqdm

from speechbrain_spgm.audio import AudioFileError, Source
from speechbrain_spgm.console import errors_only
from speechbrain_spgm.errors import UserError, first_line
from speechbrain_spgm.files import replacing, scratch
from speechbrain_spgm.models.config import CONFIG_FILE
from speechbrain_spgm.models.published import (
    LARGEST_CONFIG,
    MOST_PARAMETERS,
    WEIGHTS_FILES,
    YAML_FILE,
    ModelError,
    WrongLayout,
    check_inside,
    find_weights,
    largest_weights,
    weights_in,
)
from speechbrain_spgm.models.sources import best_checkpoint, is_repo_id, is_run, is_url

OUT_OF_REACH = "is not in the cache and the Hub cannot be reached: go online once"
COMMIT = re.compile(r"[0-9a-f]{40}")
HEADER = re.compile(r'(W/)?"?\w[\w.-]{0,199}"?')
LARGEST_RECORDING = 2**32  # bytes of one from the web
ANSWER_SECONDS = 4.0  # for the Hub's first words
SLOWEST_START, SLOWEST_RATE = 20.0, 20_000  # of a download: seconds, bytes per second


def fetch_published(
    repo: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Downloads config.json and the weights of a repository, and nothing else.

    The weights are model.safetensors; only where there is none, pytorch_model.bin.
    """
    lack = (
        f"has no {CONFIG_FILE} and {' or '.join(WEIGHTS_FILES)}: if it has a "
        f"{YAML_FILE}, load it by from_hparams"
    )
    find = HubFiles(repo, revision, token, cache_dir, lack)
    folder = find(CONFIG_FILE).parent
    if weights_in(folder) is None:
        largest = largest_weights(folder / CONFIG_FILE)
        if find_weights(partial(find, largest=largest)) is None:
            raise find.lacking()
    return folder


class HubFiles:
    """Gives the files of a Hub repository, all of one commit, as local paths.

    Files are taken from the Hub's cache if they are there, so that a model that was
    loaded once loads without a network too; ``local_only``: from there only. ``lack``
    is what to say if a file is not there: "has no ...".
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        lack: str = "lacks a file",
        local_only: bool = False,
    ) -> None:
        self.repo, self.lack = repo, lack
        self.revision = revision
        self.place = {"token": token, "cache_dir": cache_dir}
        self.local_only = local_only

    def __call__(self, name: str, largest: int | None = None) -> Path:
        """Downloads a file of at most ``largest`` bytes unless it is cached.

        WrongLayout if there is no such file in the repository, else ModelError.
        """
        if COMMIT.fullmatch(self.revision or ""):  # does not change
            known = self._cached(name)
            if isinstance(known, str):
                return Path(known)
        try:
            file = self._download(name, largest or largest_of(name))
        except Exception as error:  # also of whatever HTTP library the client uses
            if isinstance(error, LocalEntryNotFoundError):
                error = error.__cause__ or ConnectionError()
            elif isinstance(error, EntryNotFoundError):
                raise self.lacking() from None
            # What was loaded once loads without the Hub.
            known = self._cached(name)
            if known is _CACHED_NO_EXIST:
                raise self.lacking() from None
            if isinstance(error, TooLarge | UNUSABLE) or not isinstance(known, str):
                raise ModelError(
                    f"The Hub repository {self.repo} {_reason(error)}."
                ) from None
            self.local_only, file = True, known
        # Cached as snapshots/COMMIT/name: take the other files of that commit.
        self.revision = Path(file).parents[name.count("/")].name
        return Path(file)

    def _download(self, name: str, largest: int) -> str:
        """Asks the Hub, and downloads; a wait or a size without end ends here."""
        if self.local_only or is_offline():
            raise OfflineModeIsEnabled
        place = {"token": self.place["token"]}
        url = hf_hub_url(self.repo, name, revision=self.revision)
        # hf_hub_download alone would try for half a minute.
        seconds = answer_seconds()
        ask = partial(get_hf_file_metadata, url, timeout=seconds, **place)
        arguments = {"revision": self.revision, **self.place}
        late = Event()
        if "tqdm_class" in signature(hf_hub_download).parameters:
            arguments["tqdm_class"] = bounded(largest, late)
        with quiet_client():
            size = 0
            with suppress(EntryNotFoundError):  # the download notes it in the cache
                try:
                    size = within(seconds, ask).size
                except (HfHubHTTPError, HFValidationError, StrangeAnswer):
                    raise
                except Exception:  # no answer at all
                    raise ConnectionError from None
            if size is None or size > largest:
                raise TooLarge(largest)
            seconds = SLOWEST_START + size / SLOWEST_RATE
            return within(
                seconds, partial(hf_hub_download, self.repo, name, **arguments), late
            )

    def _cached(self, name: str) -> Any:
        """A path, _CACHED_NO_EXIST or None."""
        try:
            return try_to_load_from_cache(
                self.repo, name, self.place["cache_dir"], self.revision
            )
        except (HFValidationError, OSError):
            return None

    def lacking(self) -> WrongLayout:
        """That a file is not there."""
        return WrongLayout(f"The Hub repository {self.repo} {self.lack}.")


def _reason(error: Exception) -> str:
    """Why the Hub did not give a file."""
    if isinstance(error, GatedRepoError):
        return "is gated: accept its terms on its page and pass a token"
    if isinstance(error, RepositoryNotFoundError):
        return "does not exist or is private: check its name or pass a token"
    if isinstance(error, RevisionNotFoundError):
        return "has no such revision: check its branches and tags"
    if isinstance(error, HFValidationError):
        return "is no valid name: give USER/NAME"
    if isinstance(error, TooLarge):
        return f"holds a file of more than the {error} bytes that it may have"
    if isinstance(error, TooSlow):
        return "is sent too slowly: try again later"
    if isinstance(error, StrangeAnswer):
        return f"is at a server that is no Hub ({error}): check HF_ENDPOINT"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"refuses you (HTTP {status}): pass a token that may read it"
    if isinstance(status, int) and status >= 400:
        return f"cannot be had from the Hub now (HTTP {status}): try again later"
    if isinstance(error, OfflineModeIsEnabled | ConnectionError):
        return OUT_OF_REACH
    return f"could not be downloaded ({first_line(error)}): try again"


class TooLarge(Exception):
    """A file of the Hub has more bytes than it may have."""


class TooSlow(Exception):
    """A download takes longer than the slowest that is waited for."""


class StrangeAnswer(Exception):
    """The headers of an answer would lead out of the client's cache."""


# What a file in the cache is no remedy for.
UNUSABLE = HFValidationError | RevisionNotFoundError | StrangeAnswer


def largest_of(name: str) -> int:
    """How many bytes a file may have: texts 1 MB, weights 8 per parameter."""
    weights = name.endswith((".ckpt", ".bin", ".safetensors"))
    return 8 * MOST_PARAMETERS if weights else LARGEST_CONFIG


def is_offline() -> bool:
    """Whether the user has told the Hub's client to stay offline."""
    return bool(constants.HF_HUB_OFFLINE)


def answer_seconds() -> float:
    """How long to wait for an answer of the Hub, unless the user has said so."""
    given = os.environ.get("HF_HUB_ETAG_TIMEOUT", "")
    return float(given) if given.isdigit() else ANSWER_SECONDS


def within(seconds: float, call: Callable[[], Any], late: Event | None = None) -> Any:
    """What a call gives; raises if it takes too long, and leaves it alone then.

    ``late`` is set then, so that it can end by itself.

    Example
    -------
    >>> within(1, lambda: 3)
    3
    """
    answers: SimpleQueue = SimpleQueue()

    def work() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    context = copy_context()
    Thread(target=context.run, args=(work,), daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except Empty:
        if late is not None:
            late.set()
        raise (TooSlow if seconds > SLOWEST_START else TimeoutError)() from None
    if error is not None:
        raise error
    return result


def bounded(largest: int, late: Event) -> type[tqdm]:
    """A progress bar that ends a download of more bytes, or one that is ``late``."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.seen = self.n  # which stands still where TQDM_DISABLE is set

        def update(self, n: float | None = 1) -> bool | None:
            self.seen += n or 0
            if self.seen > largest:
                raise TooLarge(largest)
            if late.is_set():
                raise TooSlow
            return super().update(n)

    return Bar


@contextmanager
def quiet_client() -> Iterator[None]:
    """Without the client's retry lines, and with its answers checked.

    The client makes file names of the ETag and the commit that a server sends.
    """
    client = get_session()
    hooks = client.event_hooks
    if check_headers not in hooks["response"]:
        client.event_hooks = {**hooks, "response": [*hooks["response"], check_headers]}
    names = [] if "HF_HUB_VERBOSITY" in os.environ else ["huggingface_hub"]
    with errors_only(*names):
        yield


def check_headers(response: Any) -> None:
    """Refuses an answer whose headers are no names of files."""
    for header in ("X-Repo-Commit", "X-Linked-Etag", "ETag"):
        value = response.headers.get(header)
        if value is not None and not HEADER.fullmatch(value):
            raise StrangeAnswer(f"{header} {value[:60]!r}")


class FolderFiles:
    """Gives the files of a folder, unless they lie outside it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __call__(self, name: str) -> Path:
        """The file's path; raises WrongLayout if it is not there."""
        path = self.folder / name
        if name.endswith(".ckpt") and is_run(self.folder) and not path.is_file():
            path = best_checkpoint(self.folder) / name
        if not path.is_file():
            raise WrongLayout(f"The folder {self.folder} has no {name}.")
        check_inside(self.folder, path)
        return path


class WebFiles:
    """Downloads files from below a web address into a folder."""

    def __init__(self, address: str, folder: str | Path) -> None:
        self.address, self.folder = address, Path(folder)

    def __call__(self, name: str) -> Path:
        """The downloaded file."""
        url, target = f"{self.address}/{name}", self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(url, target, largest_of(name))
        except Exception as error:  # of whatever kind the network finds
            raise WrongLayout(f"{url} {_web_reason(error)}.") from None
        return target


def download(url: str, target: Path, largest: int) -> None:
    """Gets a file; one above ``largest`` bytes, or sent too slowly, ends here."""
    begin, done = monotonic(), 0
    ask = partial(urlopen, url, timeout=SLOWEST_START)
    with within(SLOWEST_START, ask) as answer, replacing(target) as temporary:
        size = int(answer.headers.get("Content-Length") or 0)
        with open(temporary, "wb") as file:
            while block := answer.read1(2**16):
                done += len(block)
                if max(done, size) > largest:
                    raise TooLarge(largest)
                if monotonic() - begin > SLOWEST_START + done / SLOWEST_RATE:
                    raise TooSlow
                file.write(block)
        if done < size:
            raise ConnectionError(f"{done} of {size} bytes came")


def _web_reason(error: Exception) -> str:
    """Why a file of the web could not be had."""
    if isinstance(error, HTTPError):
        error.close()  # else Python 3.14 warns of it
    reason = ""
    if isinstance(error, TooLarge):
        reason = f" (it has more than {error} bytes)"
    elif isinstance(error, TooSlow | TimeoutError):
        reason = " (it is sent too slowly)"
    elif isinstance(error, HTTPError):
        reason = f" (HTTP {error.code})"
    return f"could not be downloaded: check the address and your network{reason}"


@contextmanager
def open_source(
    source: str | Path | FetchSource,
    first: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_only: bool = False,
) -> Iterator[Callable[[str], Path]]:
    """Gives access to the files of a model, wherever it is.

    Arguments
    ---------
    source : str or Path or FetchSource
        A folder, a web address or a Hub repository, in this order.
    first : str
        The file without which it is no model of this kind.
    revision, token, cache_dir, local_only
        See :class:`HubFiles`.

    Yields
    ------
    find : Callable
        From a file's name to its local path, which is there until the block ends. It
        raises ModelError.
    """
    kind, place = guess_source(
        source if isinstance(source, FetchSource) else str(source)
    )
    if kind == FetchFrom.LOCAL:
        yield FolderFiles(place)
    elif kind == FetchFrom.URI:
        with TemporaryDirectory(dir=scratch()) as temporary:
            yield cache(WebFiles(place, temporary))
    else:
        lack = (
            f"has no {first} or lacks a file that it names: if it has a "
            f"{CONFIG_FILE} and {WEIGHTS_FILES[0]}, load it by from_pretrained"
        )
        yield cache(HubFiles(place, revision, token, cache_dir, lack, local_only))


def source_name(source: str | Path | FetchSource) -> str:
    """A source as its yaml may name it."""
    return str(source.path if isinstance(source, FetchSource) else source)


def keep(
    files: Mapping[str, Path], savedir: str | Path, local_strategy: LocalStrategy
) -> None:
    """Links or copies files into a folder, as SpeechBrain's ``savedir`` wants it."""
    for name, file in files.items():
        target = Path(savedir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_with_strategy(file, target, local_strategy)


@contextmanager
def local_audio(
    path: Source | FetchSource, savedir: str | Path | None = None
) -> Iterator[Source]:
    """An audio file on this disk, downloaded first if need be, until the block ends.

    A local file, bytes and objects are used where they are, without links or copies. A
    download is kept in ``savedir``; by default a web file is deleted after use and a
    file of the Hub (USER/NAME/FILE) stays in the Hub's own cache.
    """
    if not _is_remote(path):
        yield Path(path) if isinstance(path, str) else path
        return
    source, name = split_path(path)
    kind, place = guess_source(source)
    if kind == FetchFrom.LOCAL:
        yield Path(place) / name
        return
    with ExitStack() as stack:
        try:
            if kind == FetchFrom.URI:
                folder = savedir or stack.enter_context(
                    TemporaryDirectory(dir=scratch())
                )
                local = Path(folder) / name
                local.parent.mkdir(parents=True, exist_ok=True)
                if not local.exists():
                    download(f"{place}/{name}", local, LARGEST_RECORDING)
            else:
                local = HubFiles(place)(name, LARGEST_RECORDING)
                if savedir is not None:
                    keep({local.name: local}, savedir, LocalStrategy.COPY)
                    local = Path(savedir) / local.name
        except ModelError as error:
            raise AudioFileError(
                f"{path} is no local file and could not be downloaded: {error}"
            ) from None
        except UserError:
            raise
        except Exception as error:  # of whatever kind the network finds
            raise AudioFileError(
                f"{path} is no local file and {_web_reason(error)}."
            ) from None
        yield local


def _is_remote(path: Source | FetchSource) -> bool:
    if isinstance(path, FetchSource) or is_url(path):
        return True
    if not isinstance(path, str) or os.path.exists(path):
        return False
    repo, _, name = path.rpartition("/")
    return is_repo_id(repo) and bool(name) and not Path(repo).parent.exists()

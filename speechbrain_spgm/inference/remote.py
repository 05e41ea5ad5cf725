"""Models and recordings that lie elsewhere: the Hugging Face Hub and the web."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import (
    _CACHED_NO_EXIST,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
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
    fetch,
    guess_source,
    link_with_strategy,
)

from speechbrain_spgm.inference.audio import AudioFileError
from speechbrain_spgm.inference.published import (
    CONFIG_FILE,
    WEIGHTS_FILES,
    ModelError,
    WrongLayout,
    check_inside,
    find_weights,
    weights_in,
)

OUT_OF_REACH = "is not in the cache and the Hub cannot be reached: go online once"


def is_url(source: object) -> bool:
    """Whether a source is a web address."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def is_repo_id(source: object) -> bool:
    """Whether a source may name a repository on the Hub.

    Example
    -------
    >>> [is_repo_id(name) for name in ("user/model", "/user/model", "./model", "a/b/c")]
    [True, False, False, False]
    """
    name = r"\w[\w.-]*"
    return isinstance(source, str) and bool(re.fullmatch(f"{name}/{name}", source))


def fetch_published(
    repo: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Downloads config.json and the weights of a repository, nothing else.

    The weights are model.safetensors; only where there is none, pytorch_model.bin.

    Arguments
    ---------
    repo : str
        ``USER/NAME``.
    revision : str, optional
        Branch, tag or commit; the main branch by default.
    token : str or bool, optional
        For private repositories; by default that of ``hf auth login``.
    cache_dir : str or Path, optional
        By default the Hub's own cache.

    Returns
    -------
    folder : Path
        Holds the two files, of one commit.

    Raises
    ------
    ModelError
        If they cannot be had.
    """
    lack = (
        f"has no {CONFIG_FILE} and {' or '.join(WEIGHTS_FILES)}: if it has a "
        "hyperparams.yaml, load it by from_hparams"
    )
    find = HubFiles(repo, revision, token, cache_dir, lack)
    folder = find(CONFIG_FILE).parent
    if weights_in(folder) is None and find_weights(find) is None:
        raise find.lacking()
    return folder


class HubFiles:
    """Gives the files of a Hub repository, all of one commit, as local paths.

    Files are taken from the Hub's cache if they are there, so that a model that was
    loaded once loads without a network too.

    Arguments
    ---------
    repo, revision, token, cache_dir
        See :func:`fetch_published`.
    lack : str
        What to say if a file is not there: "has no ...".
    local_only : bool
        Takes files from the cache only.
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

    def __call__(self, name: str) -> Path:
        """Downloads a file unless it is cached.

        Arguments
        ---------
        name : str
            The file, relative to the repository.

        Returns
        -------
        path : Path
            In the cache.

        Raises
        ------
        ModelError
            In place of any error of the Hub's client; WrongLayout if there is no such
            file in the repository.
        """
        try:
            file = hf_hub_download(
                self.repo,
                name,
                revision=self.revision,
                local_files_only=self.local_only,
                **self.place,
            )
        except LocalEntryNotFoundError as error:
            known = try_to_load_from_cache(
                self.repo, name, self.place["cache_dir"], self.revision
            )
            if known is _CACHED_NO_EXIST:  # as the Hub said the last time
                raise self.lacking() from None
            reason = _status_reason(error.__cause__) or OUT_OF_REACH
        except EntryNotFoundError:
            raise self.lacking() from None
        except Exception as error:  # also of whatever HTTP library the client uses
            reason = _reason(error)
        else:
            # Cached as snapshots/COMMIT/name: take the other files of that commit.
            self.revision = Path(file).parents[name.count("/")].name
            return Path(file)
        raise ModelError(f"The Hub repository {self.repo} {reason}.") from None

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
    if isinstance(error, OfflineModeIsEnabled | ConnectionError):
        return OUT_OF_REACH
    if isinstance(error, HFValidationError):
        return "is no valid name: give USER/NAME"
    return _status_reason(error) or (
        f"could not be downloaded ({_first_line(error)}): try again"
    )


def _status_reason(error: BaseException | None) -> str | None:
    """What the Hub's answer means, if it gave one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"refuses you (HTTP {status}): pass a token that may read it"
    if isinstance(status, int) and status >= 400:
        return f"cannot be had from the Hub now (HTTP {status}): try again later"
    return None


class FolderFiles:
    """Gives the files of a folder, unless they lie outside it.

    Arguments
    ---------
    folder : str or Path
        Existing folder.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "link").symlink_to("/etc/hosts")
    >>> FolderFiles(folder)("link")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    speechbrain_spgm.inference.tensors.ModelError: ...is a link out of its folder...
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __call__(self, name: str) -> Path:
        """The file's path; raises WrongLayout if it is not there."""
        path = self.folder / name
        if not path.is_file():
            raise WrongLayout(f"The folder {self.folder} has no {name}.")
        check_inside(self.folder, path)
        return path


class WebFiles:
    """Downloads files from below a web address into a folder.

    Arguments
    ---------
    address : str
        Where the files lie.
    folder : str or Path
        Where they are stored.
    """

    def __init__(self, address: str, folder: str | Path) -> None:
        self.address, self.folder = address, Path(folder)

    def __call__(self, name: str) -> Path:
        """The downloaded file."""
        try:
            return Path(fetch(name, self.address, self.folder))
        except Exception:  # of whatever HTTP library is at work
            raise WrongLayout(
                f"{self.address}/{name} could not be downloaded: check the address "
                "and your network."
            ) from None


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
    with TemporaryDirectory() as temporary:
        if kind == FetchFrom.LOCAL:
            yield FolderFiles(place)
        elif kind == FetchFrom.URI:
            yield cache(WebFiles(place, temporary))
        else:
            lack = (
                f"has no {first} or lacks a file that it names: if it has a "
                f"{CONFIG_FILE} and {WEIGHTS_FILES[0]}, load it by from_pretrained"
            )
            hub = HubFiles(place, revision, token, cache_dir, lack, local_only)
            yield cache(hub)


def source_name(source: str | Path | FetchSource) -> str:
    """A source as its yaml may name it."""
    return str(source.path if isinstance(source, FetchSource) else source)


def keep(
    files: Iterable[Path], savedir: str | Path, local_strategy: LocalStrategy
) -> None:
    """Links or copies files into a folder, as SpeechBrain's ``savedir`` wants it.

    Arguments
    ---------
    files : iterable of Path
        Local files; a name that is there already is replaced.
    savedir : str or Path
        Made if need be.
    local_strategy : LocalStrategy
        Whether to link or to copy.
    """
    folder = Path(savedir)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        link_with_strategy(file, folder / file.name, local_strategy)


@contextmanager
def local_audio(
    path: str | Path | FetchSource, savedir: str | Path | None = None
) -> Iterator[Path]:
    """An audio file on this disk, downloaded first if need be.

    Arguments
    ---------
    path : str or Path or FetchSource
        A local file, a web address, or USER/NAME/FILE for a file on the Hub. A local
        file is used where it is, without links or copies.
    savedir : str or Path, optional
        Where a download is kept; by default a web file is deleted after use and a file
        of the Hub stays in the Hub's own cache.

    Yields
    ------
    local : Path
        There until the block ends.

    Raises
    ------
    AudioFileError
        If it cannot be downloaded.
    """
    if not _is_remote(path):
        yield Path(path)
        return
    source, name = split_path(path)
    with TemporaryDirectory() as temporary:
        try:
            local = fetch(
                name, source, savedir or temporary, local_strategy=LocalStrategy.COPY
            )
        except Exception:  # of whatever HTTP library is at work
            raise AudioFileError(
                f"{path} is no local file and could not be downloaded: check its name "
                "and your network."
            ) from None
        yield Path(local)


def _is_remote(path: str | Path | FetchSource) -> bool:
    if isinstance(path, FetchSource) or is_url(path):
        return True
    if not isinstance(path, str) or Path(path).exists():
        return False
    repo, _, name = path.rpartition("/")
    return is_repo_id(repo) and bool(name) and not Path(repo).parent.exists()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

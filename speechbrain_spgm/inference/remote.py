"""Models and recordings that lie elsewhere: the Hugging Face Hub and the web."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import hf_hub_download
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
from speechbrain.utils.fetching import FetchSource, LocalStrategy, fetch

from speechbrain_spgm.inference.audio import AudioFileError
from speechbrain_spgm.inference.published import CONFIG_FILE, WEIGHTS_FILE, ModelError


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


@contextmanager
def hub_errors(repo: str, lack: str) -> Iterator[None]:
    """Turns the Hub's errors into one sentence each.

    Arguments
    ---------
    repo : str
        The repository, for the message.
    lack : str
        What to say if a file is not there: "has no ...".

    Raises
    ------
    ModelError
        In place of any error of the Hub's client.
    """
    try:
        yield
    except GatedRepoError:
        reason = "is gated: accept its terms on its page and pass a token"
    except RepositoryNotFoundError:
        reason = "does not exist or is private: check its name or pass a token"
    except RevisionNotFoundError:
        reason = "has no such revision: check its branches and tags"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        reason = "is not in the cache and the Hub cannot be reached: go online once"
    except EntryNotFoundError:
        reason = lack
    except HFValidationError:
        reason = "is no valid name: give USER/NAME"
    except HfHubHTTPError as error:
        reason = f"could not be downloaded ({_first_line(error)}): try again"
    else:
        return
    raise ModelError(f"The Hub repository {repo} {reason}.") from None


def fetch_published(
    repo: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Downloads config.json and model.safetensors of a repository, nothing else.

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
    place = {"repo_id": repo, "token": token, "cache_dir": cache_dir}
    lack = (
        f"has no {CONFIG_FILE} and {WEIGHTS_FILE}: if it has a hyperparams.yaml and "
        "you trust it, load it by from_hparams"
    )
    try:
        with hub_errors(repo, lack):
            config = hf_hub_download(filename=CONFIG_FILE, revision=revision, **place)
            # Cached as snapshots/COMMIT/config.json: take the weights of that commit.
            commit = Path(config).parent.name
            weights = hf_hub_download(filename=WEIGHTS_FILE, revision=commit, **place)
    except ModelError:
        raise
    except Exception as error:  # of whatever HTTP library the client uses
        raise ModelError(
            f"The Hub repository {repo} could not be downloaded "
            f"({_first_line(error)}): try again."
        ) from None
    return Path(weights).parent


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

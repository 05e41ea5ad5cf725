"""Uploads an assembled folder to the Hub, and says in one sentence what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from speechbrain_spgm.errors import first_line
from speechbrain_spgm.models.config import CONFIG_FILE
from speechbrain_spgm.models.convert import YAML_FILE
from speechbrain_spgm.models.published import ModelError
from speechbrain_spgm.publishing.assemble import Assembled, list_files


class Uploaded(NamedTuple):
    """What an upload did: the files that changed, the commit, and others left there."""

    address: str
    commit: str | None
    changed: tuple[str, ...]
    others: tuple[str, ...]


def upload(assembled: Assembled, token: str | bool | None = None) -> Uploaded:
    """Brings a repository to the state of a folder, by at most one commit.

    The repository and the branch are made if need be. Files that are already there as
    they are get neither uploaded nor committed again; files of the repository that are
    not in the folder stay.

    Arguments
    ---------
    assembled : Assembled
        The folder and where it goes.
    token : str or bool, optional
        With the right to write; by default that of ``hf auth login`` or ``HF_TOKEN``.

    Returns
    -------
    uploaded : Uploaded
        ``commit`` is None if nothing had changed.

    Raises
    ------
    ModelError
        If the Hub refuses or cannot be reached, or the repository holds another model
        or is public though it should be private.
    """
    folder, terms = assembled.folder, assembled.terms
    if isinstance(token, str):  # a copied one may end with a space or a line
        token = token.strip()
    api = HfApi(token=token)
    with upload_errors(terms.repo, token or get_token()):
        api.create_repo(terms.repo, private=terms.private or None, exist_ok=True)
        before = _state(api, terms.repo, terms.revision)
        _check_repository(before, terms.repo, terms.private)
        # The client sends and commits only what differs, and nothing if nothing does.
        commit = api.upload_folder(
            repo_id=terms.repo,
            folder_path=folder,
            revision=terms.revision,
            commit_message="Publish by spgm",
        )
        new = commit.oid != before.sha
        after = _state(api, terms.repo, terms.revision) if new else before
    old, present = _blobs(before), _blobs(after)
    files = list_files(folder)
    return Uploaded(
        address=f"{api.endpoint}/{terms.repo}",
        commit=commit.oid if new else None,
        changed=tuple(name for name in files if old.get(name) != present.get(name)),
        others=tuple(sorted(present.keys() - files - {".gitattributes"})),
    )


def _blobs(info: ModelInfo) -> dict[str, str | None]:
    """The files of a repository with git's hashes of them."""
    return {file.rfilename: file.blob_id for file in info.siblings or ()}


def _state(api: HfApi, repo: str, branch: str) -> ModelInfo:
    """What a branch holds; a missing one is made from the main branch."""
    try:
        return api.model_info(repo, revision=branch, files_metadata=True)
    except RevisionNotFoundError:
        api.create_branch(repo, branch=branch, exist_ok=True)
        return api.model_info(repo, revision=branch, files_metadata=True)


def _check_repository(info: ModelInfo, repo: str, private: bool) -> None:
    if private and info.private is False:
        raise ModelError(
            f"The Hub repository {repo} exists and is public, so --private cannot be "
            "kept: make it private in its settings, or take another name."
        )
    names = _blobs(info)
    if YAML_FILE in names and CONFIG_FILE not in names:
        raise ModelError(
            f"The Hub repository {repo} already holds another model ({YAML_FILE} "
            f"without {CONFIG_FILE}): take another name, or delete that file there."
        )


@contextmanager
def upload_errors(repo: str, token: str | bool | None) -> Iterator[None]:
    """Turns errors of the Hub's client into one sentence each, without the token."""
    try:
        yield
    except ModelError:
        raise
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set: unset it (--dry-run works offline)"
    except Exception as error:  # of the client or of whatever HTTP library it uses
        reason = _reason(error, bool(token))
        if token and isinstance(token, str):  # in a header that cannot be sent, say
            reason = reason.replace(repr(token)[1:-1], "...").replace(token, "...")
    else:
        return
    raise ModelError(f"{repo} was not published: {reason}.") from None


def _reason(error: BaseException, has_token: bool) -> str:
    http = _cause(error, HfHubHTTPError)
    status = getattr(getattr(http, "response", None), "status_code", None)
    if status == 401 and not has_token:
        return "you are not logged in: run hf auth login, set HF_TOKEN or give --token"
    if status == 401:
        return "the Hub does not accept the token: log in again by hf auth login"
    if status == 403:
        return (
            "the token has no right to write there: take a token of the kind write, "
            "and a USER that is you or an organisation of yours"
        )
    if isinstance(http, RepositoryNotFoundError) or status == 404:
        return "the Hub does not know the repository: check its name and the token"
    if status in (409, 412):
        return "somebody else changed the repository at the same time: try again"
    if status == 429:
        return "the Hub asks to slow down: try again in a few minutes"
    if status is not None:
        return f"the Hub answered {status} ({first_line(http)}): try again later"
    if isinstance(error, ValueError) and "metadata" in str(error):
        return f"the Hub does not accept the card ({' '.join(str(error).split())})"
    while error.__cause__ is not None:  # the client says which file, this says why
        error = error.__cause__
    return (
        f"the connection to the Hub failed ({type(error).__name__}: "
        f"{first_line(error)}). What is there stays as it was, and files that arrived "
        "are not sent again: try again"
    )


def _cause(error: BaseException | None, kind: type) -> BaseException | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error

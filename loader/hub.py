"""The Hugging Face hub: the files of one repository, all of one commit. Only this file reaches the network."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from huggingface_hub import (
    HfFileMetadata,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import http_stream_backoff, validate_repo_id

from bombus.loader import hub_problems as problems
from bombus.policies.errors import HubError, Problem

# Seconds between requests to a hub that answers with an error of its own (5xx); a few, so that it is soon said.
_PAUSES = (1.0, 2.0, 4.0)


@dataclass(kw_only=True)
class HubFiles:
    """The files of a repository on the hub. `commit` is set by the first file; all later ones are taken from it."""

    name: str
    where: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: Path | None = None
    local_files_only: bool = False
    commit: str | None = None

    def __post_init__(self) -> None:
        if re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            self.commit = self.revision

    @property
    def offline(self) -> bool:
        """Whether only files that are on this machine already may be used."""
        return self.local_files_only or constants.HF_HUB_OFFLINE

    def find(self, name: str) -> Path | None:
        """The path of a file in the local cache, fetched when it has to be; None when the repository lacks it.

        Offline, None is also for a file that is not in the cache. A hub that cannot be asked is no error for what is
        in the cache: then its commit is used. Raises HubError.
        """
        cached = self.cached(name)
        if self.offline or (self.commit is not None and cached is not None):
            return self._pinned(name, cached) if cached else None
        try:
            asked = self._ask(name, patient=cached is None)
        except HubError as error:
            if cached is None or isinstance(error.__context__, RevisionNotFoundError):
                raise
            return self._pinned(name, cached) if cached else None
        if cached and asked is not None and asked.commit_hash == _commit(cached, name):
            return self._pinned(name, cached)
        return self._download(name, asked)

    def has(self, name: str) -> bool:
        """Whether the repository has a file; it is not fetched. Raises HubError."""
        cached = self.cached(name)
        if self.offline or (self.commit is not None and cached is not None):
            return bool(cached)
        return self._ask(name, patient=True) is not None

    def cached(self, name: str) -> Path | Literal[False] | None:
        """The path of a file in the local cache, False when it is known not to exist, None when it is not known."""
        found = try_to_load_from_cache(self.name, name, cache_dir=self.cache_dir, revision=self.commit or self.revision)
        if found is None:
            return None
        return Path(found) if isinstance(found, str) else False

    def _ask(self, name: str, *, patient: bool) -> HfFileMetadata | None:
        """What the hub says about a file; None when it is not there.

        hf_hub_download asks by itself, but a hub that does not answer costs it up to six minutes, and one that
        limits its rate any time.
        """
        url = hf_hub_url(self.name, name, revision=self.commit or self.revision)
        for pause in (*_PAUSES, None):
            try:
                found = get_hf_file_metadata(url, token=self.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
                break
            except EntryNotFoundError:
                return None
            except HfHubHTTPError as error:
                if not patient or pause is None or error.response.status_code < 500:
                    raise self._error(name, error) from None
                time.sleep(pause)
            except Exception as error:  # of the HTTP library below, whose classes are not huggingface_hub's to name
                raise self._error(name, error, reached=False) from None
        if not (_is_plain(found.commit_hash) and _is_plain(found.etag)):
            raise HubError(problems.no_hub(name), where=self.where)
        return found

    def _download(self, name: str, asked: HfFileMetadata | None) -> Path | None:
        try:
            # For a file that is not there as well: the cache remembers that it is not.
            path = Path(
                hf_hub_download(
                    self.name,
                    name,
                    revision=self.commit or self.revision,
                    token=self.token,
                    cache_dir=self.cache_dir,
                )
            )
        except LocalEntryNotFoundError as error:
            cause = error.__cause__ or error
            raise self._error(name, cause, reached=isinstance(cause, HfHubHTTPError)) from None
        except EntryNotFoundError as error:
            commit = error.response.headers.get("X-Repo-Commit") if isinstance(error, HfHubHTTPError) else None
            self.commit = self.commit or (commit if _is_plain(commit) else None)
            return None
        except Exception as error:
            # A length that is not the announced one is an OSError without a number.
            if type(error) is OSError and error.errno is None and asked is not None and _sends_page(asked.location):
                raise HubError(problems.page(name), where=self.where) from None
            raise self._error(name, error, size=asked.size if asked else None) from None
        with path.open("rb") as file:
            start = file.read(200)
        if _is_page(start):
            # Left in the cache it would be taken for the file for ever.
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise HubError(problems.page(name), where=self.where)
        return self._pinned(name, path)

    def _pinned(self, name: str, path: Path) -> Path:
        self.commit = _commit(path, name)
        return path

    def _error(self, name: str, error: BaseException, *, reached: bool = True, size: int | None = None) -> HubError:
        known = next((problem for kind, problem in _KNOWN.items() if isinstance(error, kind)), None)
        if known is not None:
            problem = known
        elif isinstance(error, RevisionNotFoundError):
            problem = problems.no_revision(self.commit or self.revision)
        elif isinstance(error, HfHubHTTPError):
            response = error.response
            answer = f"{response.status_code} {response.reason_phrase}"
            if error.server_message:
                answer += f": {problems.line(error.server_message)}"
            problem = problems.refused(name, response.status_code, answer, response.headers)
        else:
            problem = problems.broken_off(name, error, size) if reached else problems.unreachable(name, error)
        if isinstance(self.token, str):
            problem = replace(problem, message=problem.message.replace(self.token, "<secret>"))
        return HubError(problem, where=self.where)


# The first that fits: to huggingface_hub a gated repository is one that was not found.
_KNOWN = {
    GatedRepoError: problems.GATED,
    RepositoryNotFoundError: problems.NOT_FOUND,
    DisabledRepoError: problems.DISABLED,
    LocalTokenNotFoundError: problems.NO_TOKEN,
}


def check_id(name: str) -> None:
    """Nothing. Raises HubError when `name` cannot be the id of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        problem = Problem(subject="repository", message=f"is not an id of the hub: {problems.line(error)}")
        raise HubError(problem, where=name) from None


def _commit(path: Path, name: str) -> str:
    """The commit of a file in the cache, from its path: snapshots/COMMIT/NAME."""
    return path.parents[len(PurePosixPath(name).parts) - 1].name


def _is_plain(word: str | None) -> bool:
    """Whether a word of the hub's can be a name in the cache."""
    return bool(word and re.fullmatch(r"\w[\w.-]*", word))


def _is_page(start: bytes) -> bool:
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _sends_page(url: str) -> bool:
    """Whether an address, asked without a token, sends an HTML page."""
    try:
        with http_stream_backoff("GET", url, max_retries=0, timeout=constants.HF_HUB_ETAG_TIMEOUT) as response:
            return _is_page(next(response.iter_bytes(200), b""))
    except Exception:  # then it is not known, and the length is what is said to be wrong
        return False

"""Where a checkpoint's files are: a local folder, or the Hugging Face hub. Only this file reaches the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack

from huggingface_hub import constants, file_exists, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

from bombus.policies.errors import CheckpointError, HubError, Problem, SpecError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A source of files. `folder` is set for a local one; else `name` is an id on the hub.

    The environment variables of huggingface_hub (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, ...) apply.
    """

    name: str
    folder: Path | None = None
    revision: str | None = None
    subfolder: str | None = None
    token: str | bool | None = None
    cache_dir: str | PathLike[str] | None = None
    local_files_only: bool = False

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def find(self, filename: str) -> Path | None:
        """The local path of a file, fetched when it has to be; None when the repository does not have it."""
        if self.folder is not None:
            return _local(self.folder / (self.subfolder or "") / filename)
        name = f"{self.subfolder}/{filename}" if self.subfolder else filename
        cache = None if self.cache_dir is None else Path(self.cache_dir)
        if self.offline:
            # Not hf_hub_download(local_files_only=True), which may still ask the hub about other things.
            cached = try_to_load_from_cache(self.name, name, cache_dir=cache, revision=self.revision)
            return Path(cached) if isinstance(cached, str) else None
        try:
            return Path(
                hf_hub_download(
                    self.name,
                    name,
                    revision=self.revision,
                    token=self.token,
                    cache_dir=cache,
                )
            )
        except LocalEntryNotFoundError as error:
            raise HubError(self._missing(filename), where=str(self)) from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise HubError(self._problem(filename, error), where=str(self)) from error

    def require(self, filename: str, remedy: str) -> Path:
        """Like `find`. Raises CheckpointError with `remedy` when the repository does not have the file."""
        path = self.find(filename)
        if path is None and self.offline:
            raise HubError(self._missing(filename), where=str(self))
        if path is None:
            inside = f" in subfolder {self.subfolder!r}" if self.subfolder else ""
            raise CheckpointError(
                Problem(subject=f"file {filename}", message=f"is not there{inside}", remedy=remedy), where=str(self)
            )
        return path

    @property
    def offline(self) -> bool:
        """Whether only files that are on this machine already may be used, of a repository on the hub."""
        return self.folder is None and (self.local_files_only or constants.HF_HUB_OFFLINE)

    def has(self, filename: str) -> bool:
        """Whether the repository has the file; it is not fetched."""
        if self.folder is not None or self.offline:
            return self.find(filename) is not None
        name = f"{self.subfolder}/{filename}" if self.subfolder else filename
        return file_exists(self.name, name, revision=self.revision, token=self.token)

    def fetch(self, filenames: Iterable[str], *, progress: bool | None = None) -> tuple[dict[str, Path], list[str]]:
        """(paths of the files that are there, names of those that are not).

        `progress` shows a bar over the files of a hub repository; None shows it in a terminal or notebook.
        """
        names = list(filenames)
        if self.folder is None:
            names_shown: Iterable[str] = tqdm(
                names, desc=f"files of {self.name}", unit="file", disable=None if progress is None else not progress
            )
        else:
            names_shown = names
        found = {name: self.find(name) for name in names_shown}
        return {n: p for n, p in found.items() if p is not None}, [n for n, p in found.items() if p is None]

    def _missing(self, filename: str) -> Problem:
        if self.offline:
            return Problem(
                subject=f"file {filename}",
                message="is not in the local cache, and the network is switched off",
                remedy="unset HF_HUB_OFFLINE and local_files_only, or download the repository first",
            )
        return Problem(
            subject=f"file {filename}",
            message="is not in the local cache, and the hub cannot be reached",
            remedy="check the network and HF_ENDPOINT, or give the path of a local folder",
        )

    def _problem(self, filename: str, error: Exception) -> Problem:
        if isinstance(error, GatedRepoError):
            return Problem(
                subject="repository",
                message="is gated",
                remedy="accept its terms on the hub, then log in with `hf auth login` or pass token=",
            )
        if isinstance(error, RepositoryNotFoundError):
            return Problem(
                subject="repository",
                message="does not exist on the hub, or is private; there is no local folder of that name either",
                remedy="check the spelling, or pass token= for a private repository",
            )
        if isinstance(error, RevisionNotFoundError):
            return Problem(
                subject=f"revision {self.revision!r}", message="does not exist", remedy="leave it out for the newest"
            )
        first_line = next(iter(str(error).strip().splitlines()), repr(error))
        return Problem(
            subject=f"file {filename}",
            message=f"could not be fetched: {first_line}",
            remedy="try again, or check HF_ENDPOINT, HF_TOKEN and the free disk space",
        )


class HubOptions(TypedDict, total=False):
    """What every function that takes a repository accepts for one on the hub; huggingface_hub's meanings."""

    revision: str | None
    subfolder: str | None
    token: str | bool | None
    cache_dir: str | PathLike[str] | None
    local_files_only: bool


def open_repository(repo: str | PathLike[str], **options: Unpack[HubOptions]) -> Repository:
    """A Repository for a local folder or a hub id. Raises HubError when `repo` can be neither."""
    name = str(repo)
    folder = Path(repo).expanduser()
    if folder.is_dir():
        if options.get("revision") is not None:
            problem = Problem(subject="revision", message="has no meaning for a local folder", remedy="leave it out")
            raise HubError(problem, where=name)
        return Repository(name=name, folder=folder, subfolder=options.get("subfolder"))
    if folder.is_file():
        raise HubError(
            Problem(subject="repository", message="is a file", remedy=f"give its folder, {folder.parent}"), where=name
        )
    if isinstance(repo, PathLike) or not _REPO_ID.fullmatch(name):
        raise HubError(
            Problem(
                subject="repository",
                message="there is no such folder, and it is not the form of a hub id",
                expected="a folder with config.json, or an id like Qwen/Qwen3-0.6B",
            ),
            where=name,
        )
    return Repository(name=name, **options)


def read_json(path: Path, kind: type[CheckpointError] | type[SpecError] = SpecError) -> dict[str, Any]:
    """The JSON object in a file. Raises `kind` when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        problem = Problem(subject="file", message=f"is not valid JSON: {error}", remedy="download it again")
        raise kind(problem, where=str(path)) from error
    if not isinstance(value, dict):
        raise kind(Problem(subject="file", message="must hold a JSON object", found=repr(value)[:80]), where=str(path))
    return value


def _local(path: Path) -> Path | None:
    if not path.exists():
        return None
    if not path.is_file():
        raise CheckpointError(
            Problem(subject="file", message="is not a regular file", remedy="replace it by the real file"),
            where=str(path),
        )
    return path

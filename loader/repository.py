"""Where a checkpoint's files are: a local folder, a model that ships with the package, or a repository on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypedDict, Unpack

from tqdm.auto import tqdm

from bombus.loader.folder import find_file, is_inside
from bombus.loader.hub_problems import not_cached
from bombus.loader.shipped import shipped_folder
from bombus.policies.errors import CheckpointError, HubError, Problem

if TYPE_CHECKING:
    from bombus.loader.hub import HubFiles

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A source of files. `folder` is set for a local one, or one that ships; else `name` is an id on the hub.

    The environment variables of huggingface_hub (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, ...) apply. All
    files of one Repository are of one commit, also where the branch moves meanwhile.
    """

    name: str
    folder: Path | None = None
    revision: str | None = None
    subfolder: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | PathLike[str] | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.subfolder and not is_inside(self.subfolder):
            problems.append(
                Problem(
                    subject=f"subfolder {self.subfolder!r}",
                    message="is not a folder of the repository",
                    expected="its path in the repository, with / and without ..",
                )
            )
        if self.revision is not None and not is_inside(self.revision):
            problems.append(
                Problem(subject=f"revision {self.revision!r}", message="is not the name of a branch, tag or commit")
            )
        if isinstance(self.token, str) and not re.fullmatch(r"[!-~]+", self.token):
            problems.append(
                Problem(
                    subject="token",
                    message="is empty, or holds white space or other characters that no token has",
                    remedy="copy it again, without the end of the line",
                )
            )
        if problems:
            raise HubError(problems, where=self.name)

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @cached_property
    def _hub(self) -> HubFiles:
        # Here and not above: a client of HTTP takes a while to import, and folders need none.
        from bombus.loader.hub import HubFiles, check_id

        check_id(self.name)
        return HubFiles(
            name=self.name,
            where=str(self),
            revision=self.revision,
            token=self.token,
            cache_dir=None if self.cache_dir is None else Path(self.cache_dir).expanduser(),
            local_files_only=self.local_files_only,
        )

    @property
    def offline(self) -> bool:
        """Whether only files that are on this machine already may be used, of a repository on the hub."""
        return self.folder is None and self._hub.offline

    def find(self, filename: str) -> Path | None:
        """The local path of a file, fetched when it has to be; None when the repository does not have it.

        Raises CheckpointError for a name or a link that leads out of the repository, and HubError.
        """
        path = self._path(filename)
        return self._hub.find(path) if self.folder is None else find_file(self.folder, path)

    def has(self, filename: str) -> bool:
        """Whether the repository has the file; it is not fetched. Raises as `find`."""
        path = self._path(filename)
        return self._hub.has(path) if self.folder is None else find_file(self.folder, path) is not None

    def require(self, filename: str, remedy: str) -> Path:
        """Like `find`. Raises CheckpointError with `remedy` when the repository does not have the file."""
        path = self.find(filename)
        if path is None and self._may_exist(filename):
            raise HubError(not_cached(filename), where=str(self))
        if path is None:
            inside = f" in subfolder {self.subfolder!r}" if self.subfolder else ""
            raise CheckpointError(
                Problem(subject=f"file {filename}", message=f"is not there{inside}", remedy=remedy), where=str(self)
            )
        return path

    def fetch(self, filenames: Iterable[str], *, progress: bool | None = None) -> tuple[dict[str, Path], list[str]]:
        """(paths of the files that are there, names of those that are not).

        `progress` shows a bar over the files of a hub repository; None shows it in a terminal or notebook.
        Raises CheckpointError that lists every file of a folder that is refused, and HubError; offline, that lists
        every file that is not in the cache.
        """
        names = list(filenames)
        hidden = self.folder is not None or (None if progress is None else not progress)
        found: dict[str, Path | None] = {}
        refused: list[CheckpointError] = []
        for name in tqdm(names, desc=f"files of {self.name}", unit="file", disable=hidden):
            try:
                found[name] = self.find(name)
            except CheckpointError as error:
                refused.append(error)
        if len(refused) == 1:
            raise refused[0]
        if refused:
            problems = [replace(p, subject=str(error.where)) for error in refused for p in error.problems]
            raise CheckpointError(problems, where=str(self))
        missing = [name for name, path in found.items() if path is None]
        absent = [not_cached(name) for name in missing if self._may_exist(name)]
        if absent:
            raise HubError(absent, where=str(self))
        return {name: path for name, path in found.items() if path is not None}, missing

    def _path(self, filename: str) -> str:
        """The file's path in the repository."""
        if not is_inside(filename):
            problem = Problem(subject=f"file {filename!r}", message="is not the name of a file in the repository")
            raise CheckpointError(problem, where=str(self))
        return (PurePosixPath(self.subfolder or "") / filename).as_posix()

    def _may_exist(self, filename: str) -> bool:
        """Whether a file that was not found may be on the hub all the same, which must not be asked."""
        return self.offline and self._hub.cached(self._path(filename)) is None


class HubOptions(TypedDict, total=False):
    """What every function that takes a repository accepts for one on the hub; huggingface_hub's meanings."""

    revision: str | None
    subfolder: str | None
    token: str | bool | None
    cache_dir: str | PathLike[str] | None
    local_files_only: bool


def open_repository(repo: str | PathLike[str], **options: Unpack[HubOptions]) -> Repository:
    """A Repository for a local folder, the name of a model that ships with the package (bombus/...), or a hub id.

    The first of these that `repo` is. Raises HubError when it is none.
    """
    name = str(repo)
    folder = Path(repo).expanduser()
    if folder.is_dir():
        return _opened(name, folder, "a local folder", options)
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
    shipped = shipped_folder(name)
    if shipped is not None:
        return _opened(name, shipped, "a model that ships with Bombus", options)
    return Repository(name=name, **options)


def _opened(name: str, folder: Path, what: str, options: HubOptions) -> Repository:
    if options.get("revision") is not None:
        problem = Problem(subject="revision", message=f"has no meaning for {what}", remedy="leave it out")
        raise HubError(problem, where=name)
    return Repository(name=name, folder=folder, subfolder=options.get("subfolder"))

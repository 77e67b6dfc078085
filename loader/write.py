"""Writing safetensors: whole files or none, tensors in any order, one at a time in memory.

Tensors lie at multiples of 64 bytes as far as their sizes permit, so that XLA on CPU can take them over from a mapped
file: the header is filled up with spaces, and sizes that are no such multiple come last. It stays an ordinary file.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from bombus.loader.safetensors import DTYPES
from bombus.loader.tensors import ALIGNMENT
from bombus.policies.errors import CheckpointError, Problem
from bombus.policies.formats import DType, Shape

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PARTIAL = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.partial", re.DOTALL)


class TensorWriter:
    """A safetensors file that appears at `path` when everything is in it: name -> (shape, type) says what that is.

    Use it with `with`. An error, a full disk or a killed process leaves what was at `path` before, and at most a
    hidden partial file, which the next writer into that folder removes.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[Shape, DType]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in tensors.items()}
        entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
        position = 0
        self._starts: dict[str, int] = {}
        for name in sorted(tensors, key=lambda name: sizes[name] % ALIGNMENT > 0):
            shape, dtype = tensors[name]
            end = position + sizes[name]
            entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
            self._starts[name], position = position, end
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        self._header = len(header).to_bytes(8, "little") + header
        self._tensors = tensors
        self._missing = set(tensors)

    def __enter__(self) -> Self:
        with _told(self.path):
            remove_partials(self.path.parent)
            self._partial, self._file = _open_partial(self.path)
            try:
                _write_at(self._file, 0, self._header)
            except BaseException:  # without `with` having begun, nobody else would
                _let_go(self._file, self._partial)
                raise
        return self

    def write(self, name: str, array: np.ndarray) -> None:
        """Put a tensor in its place. Raises CheckpointError when it cannot be written."""
        shape, dtype = self._tensors[name]
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} was to be {dtype}{shape}, not {array.dtype}{array.shape}")
        if name not in self._missing:
            raise ValueError(f"written twice: {name}")
        self._missing.remove(name)
        values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        with _told(self.path):
            _write_at(self._file, len(self._header) + self._starts[name], values.data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._missing:
                    raise ValueError(f"never written: {', '.join(sorted(self._missing))}")
                with _told(self.path):
                    _publish(self._file, self._partial, self.path)
        finally:
            _let_go(self._file, self._partial)


def write_bytes(path: Path, data: bytes) -> None:
    """Put a small file at `path`, all of it or none. Raises CheckpointError when it cannot be written."""
    with _told(path):
        partial, file = _open_partial(path)
        try:
            _write_at(file, 0, data)
            _publish(file, partial, path)
        finally:
            _let_go(file, partial)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there. Raises CheckpointError where that cannot be."""
    with _told(path, "could not be removed", "check the permissions of the folder"):
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder to write into. Raises CheckpointError where that cannot be."""
    remedy = "check the permissions of the folder that it is to be in, or give another"
    with _told(folder, "cannot be made", remedy, subject="folder"):
        folder.mkdir(parents=True, exist_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what writers that no longer run left behind: theirs is no longer locked."""
    for path in folder.glob(".*.partial"):
        if not _PARTIAL.fullmatch(path.name):  # another program's
            continue
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:  # another writer finished, or removed it, meanwhile
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError:
            pass  # its writer is at work
        finally:
            os.close(file)


def _write_at(file: int, position: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view, position = view[written:], position + written


def _publish(file: int, partial: Path, path: Path) -> None:
    """Give a whole file its name, so that both survive a loss of power."""
    os.fsync(file)
    os.replace(partial, path)
    with suppress(OSError):  # the file is there now; not every file system syncs folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _let_go(file: int, partial: Path) -> None:
    """Close a partial file, and remove it if it has not become another: no error, so none hides what went wrong."""
    with suppress(OSError):
        partial.unlink(missing_ok=True)
    with suppress(OSError):
        os.close(file)


@contextmanager
def _told(
    path: Path,
    message: str = "could not be written",
    remedy: str = "check the free space and the permissions of the folder",
    *,
    subject: str = "file",
) -> Iterator[None]:
    """Errors of the system as CheckpointError."""
    try:
        yield
    except OSError as error:
        problem = Problem(subject=subject, message=f"{message}: {error.strerror or error}", remedy=remedy)
        raise CheckpointError(problem, where=str(path)) from error


def _open_partial(path: Path) -> tuple[Path, int]:
    """A new hidden file beside `path`, locked as long as it is open."""
    while True:
        partial = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two lines above somebody who cleans up may have taken it for one without a writer.
            if os.fstat(file).st_nlink:
                return partial, file
        except BlockingIOError:
            pass
        except OSError:
            return partial, file  # a file system without locks
        os.close(file)

"""Tensors in files, whatever the format of the file: known by their headers, read one at a time.

They are read with `pread` into memory of their own, so a file that is cut short meanwhile gives an error and not a
dead process, as a mapped one would.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bombus.policies.errors import CheckpointError, Problem

# XLA on CPU takes a host buffer over without a copy only at this alignment.
ALIGNMENT = 64
_PIECE = 1 << 20
_LARGE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What a header says about a tensor: its type, its shape, and where its bytes are in `file`, in C order.

    stride: the distances in elements along each dimension, counted from `start`, of values that lie otherwise.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int
    stride: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """The size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, first: int, last: int | None = None) -> TensorInfo:
        """The tensor that is one element of this along its first axis, or those from `first` up to `last`."""
        step = self.stride[0] if self.stride else math.prod(self.shape[1:])
        shape = self.shape[1:] if last is None else (last - first, *self.shape[1:])
        stride = self.stride[1:] if self.stride and last is None else self.stride
        if stride is None:
            size = math.prod(shape)
        else:
            size = sum((count - 1) * step for count, step in zip(shape, stride, strict=True)) + 1
        start = self.start + first * step * self.dtype.itemsize
        return replace(self, shape=shape, stride=stride, start=start, stop=start + size * self.dtype.itemsize)

    def read(self, name: str) -> np.ndarray:
        """The values, in C order in an aligned buffer of their own. Raises CheckpointError when the file has changed.

        `name` is what the error calls the tensor.
        """
        stored = self.stored_bytes(name).view(self.dtype)
        if self.stride is None:
            return stored.reshape(self.shape)
        strides = [step * self.dtype.itemsize for step in self.stride]
        # Not as_strided, which knows no types of ml_dtypes; and NumPy checks the bounds.
        values = np.ndarray(self.shape, self.dtype, buffer=stored, strides=strides)
        result = empty(self.shape, self.dtype)
        result[...] = values
        return result

    def stored_bytes(self, name: str) -> np.ndarray:
        """The bytes from `start` up to `stop`."""
        target = empty((self.stop - self.start,), np.dtype(np.uint8))
        try:
            with self.file.open("rb", buffering=0) as file:
                done = 0
                while done < target.nbytes:
                    count = os.preadv(file.fileno(), [memoryview(target)[done:]], self.start + done)
                    if count == 0:
                        break
                    done += count
        except OSError as error:
            problem = Problem(subject=f"tensor {name}", message=f"cannot be read: {error}")
            raise CheckpointError(problem, where=str(self.file)) from error
        if done < target.nbytes:
            raise ends_early(name, self.file, target.nbytes, done)
        return target


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that XLA on CPU takes over without a copy; not initialised."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes >= _LARGE:
        # Pages that the system hands out all at once: one by one, when they are touched, takes twice as long.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
        return np.frombuffer(mmap.mmap(-1, nbytes, flags=flags), dtype).reshape(shape)
    buffer = np.empty(nbytes + ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % ALIGNMENT
    return buffer[offset : offset + nbytes].view(dtype).reshape(shape)


def same_bytes(first: TensorInfo, second: TensorInfo, name: str) -> bool:
    """Whether two tensors hold the same bytes; compared in pieces where they lie in one, so neither is in memory.

    `name` is what an error calls the one that cannot be read. Raises CheckpointError as TensorInfo.read does.
    """
    if first.nbytes != second.nbytes:
        return False
    pairs = zip(_pieces(first, name), _pieces(second, name), strict=True)
    return all(a == b for a, b in pairs)


def _pieces(info: TensorInfo, name: str) -> Iterator[bytes]:
    if type(info) is not TensorInfo or info.stride is not None:
        values = info.read(name).reshape(-1).view(np.uint8)
        yield from (values[first : first + _PIECE].tobytes() for first in range(0, info.nbytes, _PIECE))
        return
    for first in range(info.start, info.stop, _PIECE):
        yield replace(info, start=first, stop=min(first + _PIECE, info.stop)).stored_bytes(name).tobytes()


def ends_early(name: str, file: Path, expected: int, found: int) -> CheckpointError:
    """The error of a tensor that a file no longer holds as a whole."""
    return CheckpointError(
        Problem(
            subject=f"tensor {name}",
            message="ends early: the file became shorter while it was read",
            expected=f"{expected} bytes",
            found=f"{found}",
            remedy="download the file again",
        ),
        where=str(file),
    )

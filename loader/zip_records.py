"""The records of a zip archive: where they are, and tensors in those that are compressed.

Python's zipfile takes directories of any size, records that overlap, and bytes before and after the archive; and it
does not say where a record's bytes start.

Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bombus.loader.sniff import AGAIN
from bombus.loader.tensors import TensorInfo, empty
from bombus.policies.errors import CheckpointError, Problem

_MAX_DIRECTORY = 32_000_000  # torch.save writes less than 100 bytes for a storage
_MAX_RATIO = 1032  # of deflate, which writes 258 bytes for two bits
_PIECE = 1 << 20
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_WIDE = 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
_STORE = "write the archive again, neither compressed nor encrypted (`zip -0`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Bytes of a file from `start` up to `stop`; compressed when `deflated`. They are or become `size` bytes."""

    start: int
    stop: int
    size: int
    deflated: bool = False


@dataclass(frozen=True, kw_only=True)
class DeflatedTensor(TensorInfo):
    """A tensor in a compressed record; `start` and `stop` count in what the record inflates to."""

    record: Record

    def stored_bytes(self, name: str) -> np.ndarray:
        """The bytes from `start` up to `stop`. What comes before them is inflated in pieces and dropped."""
        target = empty((self.stop - self.start,), np.dtype(np.uint8))
        try:
            with self.file.open("rb") as file:
                position = 0
                for piece in _inflate(file, self.record, f"tensor {name}", self.file):
                    first, last = max(self.start, position), min(self.stop, position + len(piece))
                    if first < last:
                        values = np.frombuffer(piece, np.uint8)[first - position : last - position]
                        target[first - self.start : last - self.start] = values
                    position += len(piece)
                    # A tensor at the end reads on, to see that it is the end.
                    if self.stop <= position < self.record.size:
                        break
        except OSError as error:
            problem = Problem(subject=f"tensor {name}", message=f"cannot be read: {error}")
            raise CheckpointError(problem, where=str(self.file)) from error
        return target


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What the directory says of a record; `header` is the position of its local header."""

    raw_name: bytes
    flags: int
    method: int
    packed: int
    size: int
    header: int

    @property
    def name(self) -> str:
        return self.raw_name.decode("utf-8", "backslashreplace")

    def problem(self, message: str, remedy: str = AGAIN) -> Problem:
        return Problem(subject=f"record {self.name[:200]!r}", message=message, remedy=remedy)


def read_records(file: BinaryIO, path: Path) -> dict[str, Record]:
    """Name -> Record of everything in a zip archive.

    Raises CheckpointError for an archive that is damaged or encrypted, or in which two names lead to the same bytes
    or one name to two places.
    """
    try:
        start, directory, count = _directory(file, path)
        entries = sorted(_entries(directory, count, path), key=lambda entry: entry.header)
    except struct.error as error:
        raise _damaged("has a directory that ends early", path) from error
    limits = [*(min(entry.header, start) for entry in entries[1:]), start]
    records: dict[str, Record] = {}
    for entry, limit in zip(entries, limits, strict=True):
        found = _locate(file, entry, limit)
        if entry.name in records:
            found = entry.problem("stands twice in the archive")
        if isinstance(found, Problem):
            raise CheckpointError(found, where=str(path))
        records[entry.name] = found
    return records


def read_record(file: BinaryIO, record: Record, name: str, path: Path, *, limit: int) -> bytes:
    """All bytes of a record. Raises CheckpointError, before anything is read, when they are more than `limit`."""
    if record.size > limit:
        problem = Problem(
            subject=f"record {name}", message="is too large", expected=f"at most {limit} bytes", found=f"{record.size}"
        )
        raise CheckpointError(problem, where=str(path))
    if record.deflated:
        return b"".join(_inflate(file, record, f"record {name}", path))
    return os.pread(file.fileno(), record.size, record.start)


def _inflate(file: BinaryIO, record: Record, subject: str, path: Path) -> Iterator[bytes]:
    """The bytes of a compressed record in pieces of at most 1 MB.

    Raises CheckpointError when they are more or fewer than the archive says.
    """

    def refused(message: str) -> CheckpointError:
        problem = Problem(subject=subject, message=message, expected=f"{record.size} bytes", remedy=AGAIN)
        return CheckpointError(problem, where=str(path))

    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    position, left = record.start, record.size
    while not stream.eof:
        packed = stream.unconsumed_tail
        if not packed:
            packed = os.pread(file.fileno(), min(_PIECE, record.stop - position), position)
            position += len(packed)
        try:
            piece = stream.decompress(packed, _PIECE)
        except zlib.error as error:
            raise refused(f"cannot be inflated: {error}") from error
        left -= len(piece)
        if left < 0:
            raise refused("inflates to more than the archive says")
        if not packed and not piece:
            break
        yield piece
    if left or not stream.eof:
        raise refused("inflates to less than the archive says")


def _directory(file: BinaryIO, path: Path) -> tuple[int, bytes, int]:
    """(position, bytes, number of entries) of the archive's directory."""
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    first = max(0, size - _END.size - 0xFFFF)
    tail = os.pread(descriptor, size - first, first)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise _damaged("has no directory at its end: the file is cut short", path)
    _, *disks, here, count, length, start, comment = _END.unpack_from(tail, at)
    end = first + at
    if spare := size - end - _END.size - comment:
        raise _damaged(f"has {spare} spare bytes at its end" if spare > 0 else "is cut short in its comment", path)
    locator = os.pread(descriptor, _LOCATOR.size, max(0, end - _LOCATOR.size))
    if locator.startswith(b"PK\6\7"):
        # Not outside the file, where nothing can be read; the signature is not there either.
        end = min(_LOCATOR.unpack(locator)[2], end)
        signature, _, _, _, *disks, here, count, length, start = _END64.unpack(os.pread(descriptor, _END64.size, end))
        if signature != b"PK\6\6":
            raise _damaged("has no directory where it should be", path)
    if any(disks) or here != count:
        raise _damaged("is one of several parts", path)
    if start + length != end:
        raise _damaged("has no directory where it should be", path)
    if length > _MAX_DIRECTORY:
        raise _damaged(f"has a directory of {length} bytes, more than {_MAX_DIRECTORY}", path)
    return start, os.pread(descriptor, length, start), count


def _entries(directory: bytes, count: int, path: Path) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        signature, _, _, flags, method, _, _, _, packed, size, *lengths, _, _, _, header = _ENTRY.unpack_from(
            directory, at
        )
        name, extra, comment = lengths
        at += _ENTRY.size
        if signature != b"PK\1\2":
            raise _damaged("has a directory with something else in it", path)
        size, packed, header = _widened(directory[at + name : at + name + extra], size, packed, header)
        yield _Entry(
            raw_name=directory[at : at + name], flags=flags, method=method, packed=packed, size=size, header=header
        )
        at += name + extra + comment
    if at != len(directory):
        raise _damaged("has a directory that does not end with its last entry", path)


def _widened(extra: bytes, *values: int) -> Iterator[int]:
    """The values; those that do not fit 32 bits come from the zip64 field of the extra ones."""
    at, wide = 0, b""
    while at < len(extra) and not wide and _WIDE in values:
        kind, length = struct.unpack_from("<2H", extra, at)
        wide = extra[at + 4 : at + 4 + length] if kind == 1 else b""
        at += 4 + length
    at = 0
    for value in values:
        yield value if value != _WIDE else struct.unpack_from("<Q", wide, at)[0]
        at += 8 * (value == _WIDE)


def _locate(file: BinaryIO, entry: _Entry, limit: int) -> Record | Problem:
    """The record of an entry, which has to end before `limit`, where the next one or the directory starts."""
    raw = os.pread(file.fileno(), _LOCAL.size + len(entry.raw_name), min(entry.header, limit))
    if len(raw) < _LOCAL.size + len(entry.raw_name):
        return entry.problem("lies outside the file")
    signature, _, flags, method, *_, name, extra = _LOCAL.unpack_from(raw)
    start = entry.header + _LOCAL.size + name + extra
    stop = start + entry.packed
    if (signature, method, raw[_LOCAL.size :]) != (b"PK\3\4", entry.method, entry.raw_name):
        return entry.problem("is not where the directory says, or is another one there")
    if (flags | entry.flags) & 1:
        return entry.problem("is encrypted", _STORE)
    if method not in (_STORED, _DEFLATED):
        return entry.problem(f"is compressed by method {method}, which is not supported", _STORE)
    if stop > limit:
        return entry.problem("overlaps what comes after it")
    if entry.size > entry.packed * _MAX_RATIO or (method == _STORED and entry.size != entry.packed):
        return entry.problem(f"cannot have {entry.size} bytes, from {entry.packed} in the file")
    return Record(start=start, stop=stop, size=entry.size, deflated=method == _DEFLATED)


def _damaged(message: str, path: Path) -> CheckpointError:
    return CheckpointError(Problem(subject="zip archive", message=message, remedy=AGAIN), where=str(path))

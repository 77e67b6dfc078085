"""A strict reader of the headers of safetensors files.

The format: a little-endian u64 with the header's length, the header (JSON), then the tensors' bytes. The reader
refuses everything that the format forbids, and says what the file seems to be instead.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bombus.loader.sniff import AGAIN, ZIP, is_pickle, placeholder
from bombus.loader.tensors import TensorInfo
from bombus.policies.errors import CheckpointError, Problem, closest

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "BOOL": np.dtype(np.bool_),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
}
_MAX_HEADER = 100_000_000  # as in the reference implementation
_MAX_DIMENSIONS = 64


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Name -> TensorInfo of every tensor in a safetensors file, without reading tensor bytes.

    Raises CheckpointError with all that is wrong with the file.
    """
    entries, start, size = _read_entries(path)
    entries.pop("__metadata__", None)
    problems: list[Problem] = []
    tensors = {}
    for name, entry in entries.items():
        tensor = _tensor(name, entry, path, start, problems)
        if tensor is not None:
            tensors[name] = tensor
    if not problems:
        problems = _layout(tensors, start, size)
    if problems:
        raise CheckpointError(problems, where=str(path))
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The free text of a safetensors file, by name. Raises CheckpointError as read_header does."""
    metadata: dict[str, str] = _read_entries(path)[0].get("__metadata__", {})
    return metadata


def _read_entries(path: Path) -> tuple[dict[str, Any], int, int]:
    """(what the header says, where the tensors begin, the size of the file)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
            raise CheckpointError(_not_safetensors(start + file.read(200), size, length), where=str(path))
        raw = file.read(length)
    return _parse(raw, path), 8 + length, size


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        if text[:1].isspace():
            raise ValueError("white space before the object")
        entries = json.loads(text, object_pairs_hook=_without_duplicates)
        if not isinstance(entries, dict):
            raise ValueError("not an object")
        metadata = entries.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ must map strings to strings")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(
            Problem(subject="header", message=f"is not valid: {error}", remedy="download the file again"),
            where=str(path),
        ) from error
    return entries


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0]!r} stands twice")
    return result


def _tensor(name: str, entry: Any, path: Path, data: int, problems: list[Problem]) -> TensorInfo | None:
    def refuse(message: str, **details: str) -> None:
        problems.append(Problem(subject=f"tensor {name}", message=message, **details))

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse("must have dtype, shape and data_offsets", found=repr(entry)[:200])
        return None
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if dtype is None:
        refuse(f"has type {entry['dtype']!r}, which is not known", remedy=closest(str(entry["dtype"]), DTYPES))
    elif not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        refuse("has no valid shape", expected=f"up to {_MAX_DIMENSIONS} sizes", found=repr(shape)[:200])
    elif not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse("has no valid data_offsets", expected="[start, end] with start <= end", found=repr(offsets)[:200])
    elif math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        refuse(
            f"has a size that does not fit {entry['dtype']} of shape {shape}",
            expected=f"{math.prod(shape) * dtype.itemsize} bytes",
            found=f"{offsets[1] - offsets[0]}",
        )
    elif math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
        # Of no values, and yet more than NumPy can count.
        refuse("has no valid shape", expected="sizes that fit in 63 bits together", found=repr(shape)[:200])
    else:
        return TensorInfo(dtype=dtype, shape=tuple(shape), file=path, start=data + offsets[0], stop=data + offsets[1])
    return None


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _layout(tensors: Mapping[str, TensorInfo], data: int, size: int) -> list[Problem]:
    """The format wants the tensors to fill the rest of the file: no holes, no overlaps, nothing before or after."""
    problems = []
    end = data
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            what = "overlaps the tensor before it" if info.start < end else "leaves a hole before it"
            found = f"{info.start - data}"
            problems.append(
                Problem(subject=f"tensor {name}", message=what, expected=f"offset {end - data}", found=found)
            )
        end = max(end, info.stop)
    if end != size:
        spare = size - end
        message = f"has {spare} spare bytes at its end" if spare > 0 else f"is cut short: {-spare} bytes are missing"
        problems.append(
            Problem(
                subject="file",
                message=message,
                expected=f"{end} bytes",
                found=f"{size}",
                remedy="download it again",
            )
        )
    return problems


def _not_safetensors(start: bytes, size: int, length: int) -> Problem:
    if instead := placeholder(start):
        return instead
    if start.startswith(ZIP) or is_pickle(start):
        return Problem(
            subject="file",
            message="is a PyTorch pickle under the name of a safetensors file; it was not opened",
            remedy="convert it with the safetensors library where you trust it",
        )
    return Problem(
        subject="file",
        message="is not a safetensors file" if size else "is empty",
        expected=f"a header of at most {min(_MAX_HEADER, max(size - 8, 0))} bytes",
        found=f"{length} bytes" if len(start) >= 8 else f"{size} bytes in all",
        remedy=AGAIN,
    )

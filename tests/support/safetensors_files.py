"""Safetensors files, byte by byte."""

from __future__ import annotations

import json


def entry(start, stop, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def file_of(header, data=b""):
    """A file's bytes, from a header as an object, text or bytes."""
    raw = header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else None
    raw = json.dumps(header).encode() if raw is None else raw
    return len(raw).to_bytes(8, "little") + raw + data

"""What reading a file of torch's says that is not one, and how much memory that takes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from bombus.loader.torch_files import read_torch_header
from bombus.policies.errors import CheckpointError


def refusal(path: Path, content: bytes) -> str:
    """The text of the error with which reading these bytes ends."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_torch_header(path)
    assert str(caught.value).startswith(f"{path}: "), caught.value
    return str(caught.value)


def cheap_refusal(path: Path, content: bytes) -> str:
    """The same, of what is held in proportion to the file, whatever it claims to be."""
    tracemalloc.start()
    try:
        found = refusal(path, content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000 + 100 * len(content), peak
    return found

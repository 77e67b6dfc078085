"""What tests of the cache share: loads that must not read a tensor, and where an array lies in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from bombus.loader import cache
from bombus.loader.cache import cache_key
from bombus.loader.conventions import ACTIVATION_WORDS, CACHE_WORDS
from bombus.loader.load import load_plan
from bombus.loader.meta import JoinedTensor
from bombus.loader.tensors import TensorInfo
from bombus.loader.zip_records import DeflatedTensor
from bombus.models.model import flat

# Small: one tile per kernel, and nothing here is about tiles.
SIZES = {"preset": "original", "num_blocks": 1}
REMEDY = "Check the free space and the permissions of the folder"


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on whoever reads a tensor fails the test. Headers may be read, and scales of activations, which are for
    the report.
    """
    reported = (*ACTIVATION_WORDS, *CACHE_WORDS)

    def forbid(kind: type[TensorInfo], method: str) -> None:
        real = getattr(kind, method)

        def read(self: TensorInfo, name: str) -> Any:
            assert name.endswith(reported), f"{name} of {self.file} was read"
            return real(self, name)

        monkeypatch.setattr(kind, method, read)

    for kind in (TensorInfo, JoinedTensor, DeflatedTensor):
        for method in ("read", "stored_bytes"):
            forbid(kind, method)


def count_conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one entry for every set of parameters that is made for the cache."""
    made, real = [], cache.stream_parameters

    def stream(plan: Any, progress: Any) -> Any:
        made.append(cache_key(plan))
        return real(plan, progress)

    monkeypatch.setattr(cache, "stream_parameters", stream)
    return made


def key_of(repo: Any, **options: Any) -> str:
    """The key of what load_model would return."""
    return cache_key(load_plan(repo, **options).plan)


def mapped_range(path: Path) -> tuple[int, int]:
    """The addresses at which this process has mapped a file. It may be in several pieces, one after the other."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert lines, f"{path} is not mapped"
    ends = sorted(tuple(int(end, 16) for end in line[0].split("-")) for line in lines)
    return ends[0][0], ends[-1][1]


def not_mapped(params: Mapping[str, Any], path: Path) -> dict[str, jax.Array]:
    """The arrays that are not the pages of a file."""
    first, last = mapped_range(path)
    return {
        name: array
        for name, array in flat(params).items()
        if not first <= array.unsafe_buffer_pointer() < array.unsafe_buffer_pointer() + array.nbytes <= last
    }

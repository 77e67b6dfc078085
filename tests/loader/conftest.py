"""Checkpoints of their own, for tests that damage them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damaged import SIZES


@pytest.fixture
def fp8(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("qwen3", "f8_e4m3fn", **SIZES), tmp_path / "checkpoint"))


@pytest.fixture
def llama(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("llama", "bf16", **SIZES), tmp_path / "checkpoint"))

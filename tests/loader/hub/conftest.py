"""A hub of this process's own, and a checkpoint on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_client import attach
from hub_server import HubServer

SIZES = {"preset": "original", "num_blocks": 1}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def pauses(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """The seconds that somebody wanted to wait, since the server is the hub of this process."""
    return attach(hub, monkeypatch, tmp_path / "home")


@pytest.fixture
def folder(tiny: Callable[..., Path], hub: HubServer, pauses: list[float]) -> Path:
    """A checkpoint that is on the hub as owner/tiny."""
    folder = tiny("qwen3", "bf16", **SIZES)
    hub.add("owner/tiny", folder)
    return folder

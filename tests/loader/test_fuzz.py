"""Every reader on damaged files, for a moment; benchmarks/fuzz_loader.py does it for hours."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fresh, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bombus

NAMES = (
    *("safetensors, header", "safetensors, bytes", "index", "config", "params.json", "generation config"),
    *("pickle", "zip archive", "old torch file"),
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {target.name: target for target in targets(tmp_path_factory.mktemp("whole"))}


def test_every_target_runs(known: dict[str, Any]) -> None:
    assert tuple(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_gives_an_error_of_ours_or_is_read(name: str, known: dict[str, Any], tmp_path: Path) -> None:
    target = known[name]

    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        value = data.draw(target.inputs)
        with contextlib.suppress(bombus.BombusError):
            target.read(fresh(tmp_path / "now"), value)

    run()

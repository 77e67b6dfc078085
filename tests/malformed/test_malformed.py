"""Every row of the list of malformed inputs: one error of ours with its whole text, in bounded memory; or accepted."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import rows_checkpoints
import rows_headers
import rows_pickles
import rows_services
from malformed import CASES, Case

import bombus

SIZES = {"preset": "original", "num_blocks": 1}
# Far below what the sizes in the inputs ask for, and above what loading the whole checkpoint takes.
MEMORY = 24 << 20

MODULES = (rows_headers, rows_checkpoints, rows_pickles, rows_services)


MESSAGES = json.loads((Path(__file__).parent / "messages.json").read_text("utf-8"))


def rows_of(text: str) -> set[int]:
    """The numbers in "34-36" or "7"."""
    first, _, last = text.partition("-")
    return set(range(int(first), int(last or first) + 1))


def test_every_row_has_a_case() -> None:
    covered = set().union(*(rows_of(case.rows) for case in CASES))
    assert covered == set(range(1, 67))


def test_every_message_has_a_case() -> None:
    assert set(MESSAGES) == {str(case) for case in CASES if case.kind is not None}


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path, case: Case) -> Path:
    architecture = "llama" if case.weights == "f32" else "qwen3"
    return Path(shutil.copytree(tiny(architecture, case.weights, **SIZES), tmp_path / "checkpoint"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_malformed_input(case: Case, folder: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("malformed_input", case.rows)
    action = case.spoil(folder) or (lambda: bombus.load_model(folder))
    modules = set(sys.modules)
    if case.traced:
        tracemalloc.start()
    try:
        if case.kind is None:
            action()
        else:
            with pytest.raises(bombus.BombusError) as caught:
                action()
            assert type(caught.value) is case.kind
            said = str(caught.value).replace(str(folder), "{folder}").replace(str(folder.parent), "{parent}")
            assert said == MESSAGES[str(case)]
        assert tracemalloc.get_traced_memory()[1] < MEMORY  # nothing, where it is not traced
    finally:
        tracemalloc.stop()
    assert not [name for name in set(sys.modules) - modules if "evil" in name]
    assert not (folder / "ran").exists()
    assert not [thread.name for thread in threading.enumerate() if "ThreadPool" in thread.name]

"""The inside of a contender's process: what the tasks do, whose memory and seconds count."""

from __future__ import annotations

import io
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from bombus.evaluation import worker
from bombus.evaluation.contenders import Turn

WORK = {"rows": 2, "prompt_tokens": 4, "new_tokens": 9}


class Steady:
    """Memory and seconds of its own, and the new tokens that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def load(self) -> dict[str, Any]:
        return {"weight_bytes": 100}

    def prepare(self, workload: Any) -> dict[str, Any]:
        return {"cache_bytes": 10, "step_bytes": 1.0}

    def run(self, workload: Any, new_tokens: int) -> Turn:
        self.asked.append(new_tokens)
        return Turn(first_seconds=100.0, decode_seconds=7.0, tokens=[[1] * new_tokens] * workload.rows)

    def peak_memory(self) -> int | None:
        return None


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> Steady:
    made = Steady()
    monkeypatch.setattr(worker, "make_contender", lambda contender: made)
    monkeypatch.setattr(worker, "reset_peak_memory", lambda: 1000)
    monkeypatch.setattr(worker, "peak_memory", lambda: 1250)
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=iter((50.0, 60.0, 65.0, 70.0, 80.0)).__next__))
    return made


def test_ours_counts_from_the_start_of_its_process(steady: Steady) -> None:
    """Prepared between 50 and 60; the process began at 10; the first token after another 100."""
    found = worker.Worker(10.0).load({"name": "a", "kind": "bombus"}, WORK)
    facts = {"weight_bytes": 100, "load_memory": 250, "cache_bytes": 10, "step_bytes": 1.0}
    assert found == {**facts, "prepare_seconds": 10.0, "start_seconds": 150.0, "alone_memory": 250}
    assert steady.asked == [2, 9], "one short run, which is slower than the next, and one for its peak of memory"


def test_a_rival_does_not_pay_for_our_imports(steady: Steady) -> None:
    """It begins at 50, when it is told to load; prepared between 60 and 65."""
    found = worker.Worker(10.0).load({"name": "a", "kind": "transformers"}, WORK)
    assert (found["prepare_seconds"], found["start_seconds"]) == (5.0, 115.0)


def test_a_further_workload_has_no_start_and_nothing_alone(steady: Steady) -> None:
    serving = worker.Worker(10.0)
    serving.load({"name": "a", "kind": "bombus"}, WORK)
    steady.asked.clear()
    found = serving.prepare(WORK)
    assert (found["start_seconds"], found["alone_memory"], steady.asked) == (None, None, [2])


def test_a_round_has_its_peak_above_what_was_there_before_the_load(steady: Steady) -> None:
    serving = worker.Worker(10.0)
    serving.load({"name": "a", "kind": "bombus"}, WORK)
    found = serving.measure(WORK, dispatch=True)
    assert found == {"first_seconds": 100.0, "decode_seconds": 7.0, "peak_memory": 250, "tokens": [[1] * 9] * 2}


def test_a_devices_own_peak_comes_first(steady: Steady, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "peak_memory", lambda: 77)
    assert worker.Worker(10.0).load({"name": "a", "kind": "bombus"}, WORK)["load_memory"] == 77


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (ValueError("shapes differ"), False),
    ],
)
def test_what_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert worker.is_out_of_memory(error) is expected


def test_only_answers_are_on_standard_output(steady: Steady, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a task that fails; what a library prints goes to standard error."""
    monkeypatch.setattr(steady, "load", lambda: os.write(1, b"noise\n") and {"weight_bytes": 1})
    tasks = [{"task": "load", "contender": {"name": "a", "kind": "bombus"}, "workload": WORK}, {"task": "measure"}]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(task) + "\n" for task in tasks)))
    kept, (reading, writing) = os.dup(1), os.pipe()
    os.dup2(writing, 1)
    try:
        worker.serve(10.0)
    finally:
        os.dup2(kept, 1)
        os.close(writing)
    with os.fdopen(reading) as answers:
        first, second = map(json.loads, answers.read().splitlines())
    assert first["weight_bytes"] == 1
    assert second["error"].startswith("TypeError: Worker.measure() missing 1 required positional argument")
    assert second["out_of_memory"] is False

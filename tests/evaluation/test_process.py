"""A contender's process: tasks and answers as lines of JSON, and what is said of one that has ended."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from bombus.evaluation import Contender, EvaluationError, OutOfMemory
from bombus.evaluation.process import ContenderProcess

ECHO = """
import json, os, sys
for line in sys.stdin:
    print(json.dumps({"got": json.loads(line), "platforms": os.environ.get("JAX_PLATFORMS")}), flush=True)
"""


def process(code: str, **options: Any) -> ContenderProcess:
    return ContenderProcess(Contender(name="x", kind="bombus", **options), (sys.executable, "-S", "-c", code))


def test_a_task_is_a_line_and_so_is_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "as it was")
    with process(ECHO, options={"repo": "ü"}) as running:
        answer = running.load({"rows": 1})
        contender = {"name": "x", "kind": "bombus", "options": {"repo": "ü"}, "device": None}
        assert answer["got"] == {"task": "load", "contender": contender, "workload": {"rows": 1}}
        assert answer["platforms"] == "as it was"
        assert running.ask("measure", dispatch=True)["got"] == {"task": "measure", "dispatch": True}
    assert running._process.returncode is not None


@pytest.mark.parametrize(("device", "platforms"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_the_device_is_chosen_in_the_processs_environment(device: Any, platforms: str) -> None:
    with process(ECHO, device=device) as running:
        assert running.ask("load")["platforms"] == platforms


@pytest.mark.parametrize(("out_of_memory", "kind"), [("true", OutOfMemory), ("false", EvaluationError)])
def test_what_a_contender_says_is_an_error_of_ours(out_of_memory: str, kind: type[Exception]) -> None:
    answer = f'{{"error": "KeyError: 3", "out_of_memory": {out_of_memory}}}'
    with process(f"input(); print('{answer}', flush=True); input()") as running:
        with pytest.raises(EvaluationError) as caught:
            running.ask("measure")
        assert type(caught.value) is kind
        assert str(caught.value) == "x: cannot measure: KeyError: 3"


def test_a_process_that_ends_leaves_its_last_line() -> None:
    with process("import sys; sys.exit('first\\nand last')") as running:
        with pytest.raises(EvaluationError) as caught:
            running.ask("load")
        assert type(caught.value) is EvaluationError
        assert str(caught.value) == "x: cannot load: its process ended with status 1: and last"


def test_a_process_that_the_system_ends_took_too_much_memory() -> None:
    with process("import os; input(); os.kill(os.getpid(), 9)") as running:
        with pytest.raises(OutOfMemory) as caught:
            running.ask("measure")
        text = "x: cannot measure: the system ended its process, as it does when memory runs out"
        assert str(caught.value) == text

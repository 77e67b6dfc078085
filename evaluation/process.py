"""A contender's process, seen from outside: a line of JSON in, a line of JSON out, one task at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from bombus.evaluation.contenders import Contender
from bombus.evaluation.errors import EvaluationError, OutOfMemory
from bombus.policies.errors import Problem

# -P: what lies in the user's folder is not imported. The clock is read first, so that it counts the imports.
_CODE = "import time; began = time.perf_counter(); from bombus.evaluation.worker import serve; serve(began)"
COMMAND = (sys.executable, "-P", "-c", _CODE)
_PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}


class ContenderProcess:
    """A process that loads a contender and then measures when it is asked to."""

    def __init__(self, contender: Contender, command: tuple[str, ...] = COMMAND) -> None:
        self.contender = contender
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (the process writes it as long as it lives)
        environment = dict(os.environ)
        if contender.device is not None:
            environment["JAX_PLATFORMS"] = _PLATFORMS[contender.device]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            encoding="utf-8",
        )

    def load(self, workload: dict[str, int]) -> dict[str, Any]:
        """What the contender says of its load, and of a first run of the workload."""
        return self.ask("load", contender=asdict(self.contender), workload=workload)

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one task. Raises OutOfMemory or EvaluationError with what the process says, or its last line
        if it has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._ended(task)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = OutOfMemory if answer["out_of_memory"] else EvaluationError
            raise kind(self._problem(task, answer["error"]))
        return answer

    def close(self) -> None:
        """Nothing; the process has ended."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ended(self, task: str) -> EvaluationError:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        # Without a word, as the system ends who takes too much memory.
        if status == -signal.SIGKILL:
            return OutOfMemory(self._problem(task, "the system ended its process, as it does when memory runs out"))
        last = f": {lines[-1][:500]}" if lines else ""
        return EvaluationError(self._problem(task, f"its process ended with status {status}{last}"))

    def _problem(self, task: str, message: str) -> Problem:
        return Problem(subject=self.contender.name, message=f"cannot {task}: {message}")

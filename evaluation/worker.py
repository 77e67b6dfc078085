"""A contender's process, seen from inside."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

from bombus.evaluation.contenders import Contender, Measured
from bombus.evaluation.machine import peak_memory, reset_peak_memory
from bombus.evaluation.workload import Workload

_CLASSES = {
    "bombus": ("bombus.evaluation.run_bombus", "BombusContender"),
    "transformers": ("bombus.evaluation.run_transformers", "TransformersContender"),
    "llama.cpp": ("bombus.evaluation.run_llama_cpp", "LlamaCppContender"),
}
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "can't allocate memory", "failed to allocate")


def serve(began: float) -> None:
    """Nothing; answers the tasks on standard input until it ends. began: when the process did, by perf_counter."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker(began)
    for line in sys.stdin:
        try:
            task = json.loads(line)
            answer = getattr(worker, task.pop("task"))(**task)
        except KeyboardInterrupt:
            return
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            answer = {"error": text[:2000], "out_of_memory": is_out_of_memory(error)}
        print(json.dumps(answer), file=answers, flush=True)


def make_contender(contender: Contender) -> Measured:
    """The object that loads and runs, of the class of its kind; what that needs is imported here."""
    module, name = _CLASSES[contender.kind]
    made: Measured = getattr(importlib.import_module(module), name)(**contender.options, device=contender.device)
    return made


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory has run out; of JAX, torch and llama.cpp only their words say so."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


class Worker:
    """The tasks: each takes and returns plain data."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._base: int | None = 0

    def load(self, contender: dict[str, Any], workload: dict[str, int]) -> dict[str, Any]:
        """Loads; then as `prepare`, with the seconds from the start of the process to the first token."""
        if contender["kind"] != "bombus":  # then the imports so far are not the contender's
            self._began = time.perf_counter()
        self._contender = make_contender(Contender(**contender))
        self._base = reset_peak_memory()
        facts = self._contender.load()
        facts["load_memory"] = self._peak()
        return {**facts, **self.prepare(workload, is_first=True)}

    def prepare(self, workload: dict[str, int], is_first: bool = False) -> dict[str, Any]:
        """Compiles or makes room, and runs once to two tokens: the first run is slower.

        Of the first workload also the peak of a round, before there are programs and caches for others.
        """
        work = Workload(**workload)
        began = time.perf_counter()
        facts = self._contender.prepare(work)
        ready = time.perf_counter()
        first = self._contender.run(work, min(2, work.new_tokens))
        since = ready - self._began + first.first_seconds
        alone = self.measure(workload)["peak_memory"] if is_first else None
        found = {"prepare_seconds": ready - began, "start_seconds": since if is_first else None}
        return {**facts, **found, "alone_memory": alone}

    def measure(self, workload: dict[str, int], dispatch: bool = False) -> dict[str, Any]:
        """One round: seconds, the peak of memory, the tokens."""
        work = Workload(**workload)
        reset_peak_memory()
        turn = self._contender.run(work, work.new_tokens)
        seconds = {"first_seconds": turn.first_seconds, "decode_seconds": turn.decode_seconds}
        found = {**seconds, "peak_memory": self._peak(), "tokens": turn.tokens}
        if dispatch and hasattr(self._contender, "dispatch_seconds"):
            found["dispatch_seconds"] = self._contender.dispatch_seconds(work)
        return found

    def bandwidth(self) -> dict[str, float]:
        """Bytes per second that the contender's device reads."""
        return {"bytes_per_second": self._contender.bandwidth()}  # type: ignore[attr-defined]

    def _peak(self) -> int | None:
        on_device = self._contender.peak_memory()
        if on_device is not None:
            return on_device
        peak = peak_memory()
        return None if peak is None or self._base is None else peak - self._base

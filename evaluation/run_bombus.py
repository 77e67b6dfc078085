"""Bombus as a contender. Runs in a process of its own.

The programs are those of `generate`: a prompt is read by one, the new tokens are the steps of another's loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bombus.evaluation.contenders import Prepared, Turn
from bombus.evaluation.workload import Workload
from bombus.generation.loop import Programs, compile_programs
from bombus.generation.memory import give_back
from bombus.generation.request import Request, make_request
from bombus.generation.state import State
from bombus.loader import GenerationConfig, load_model
from bombus.loader.plan import Entry

_DISPATCHED = 16  # steps that are started one by one
_HEAD = "language_modeling_head."
_EMBEDDER = "embedder."


class BombusContender:
    """A model of a repository, with a policy or the file's own types."""

    def __init__(self, *, repo: str, device: str | None = None, **options: Any) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else a GPU's memory is taken at once
        self._repo, self._options = repo, options
        self._ready: dict[Workload, tuple[Request, Programs]] = {}
        jax.block_until_ready(jnp.zeros(1) + 1)  # starts the backend before memory is measured

    def load(self) -> dict[str, Any]:
        """Load; seconds, bytes, versions, the platform."""
        began = time.perf_counter()
        self._loaded = load_model(self._repo, **self._options, progress=False)
        jax.block_until_ready(self._loaded.params)
        return {
            "versions": f"bombus {version('bombus')}, jax {jax.__version__}",
            "load_seconds": time.perf_counter() - began,
            "weight_bytes": self._loaded.report.nbytes,
            "platform": jax.default_backend(),
        }

    def prepare(self, workload: Workload) -> Prepared:
        """Compile the two programs."""
        loaded = self._loaded
        # Greedy and without stop ids; the repository's settings would be another task.
        options = {"generation_config": GenerationConfig(), "max_new_tokens": workload.new_tokens}
        request = make_request(loaded, workload.prompts(loaded.spec.vocab_size), options, has_text=False)
        arguments = (request.rows, request.bucket, request.call, request.plan)
        programs = compile_programs(loaded.model, loaded.params, *arguments)
        self._ready[workload] = request, programs
        slots = request.bucket + request.plan.new_tokens
        cache = jax.eval_shape(lambda: loaded.model.init_cache(request.rows, slots))
        half_way = workload.rows * (workload.prompt_tokens + workload.new_tokens / 2)
        read = step_bytes(loaded.report.plan.entries, workload.rows, getattr(loaded.spec, "num_experts_per_token", 0))
        return {"cache_bytes": cache.nbytes, "step_bytes": read + half_way * cache.bytes_per_token}

    def run(self, workload: Workload, new_tokens: int) -> Turn:
        """Prompts in, tokens out, arrays to the device and tokens back included."""
        began = time.perf_counter()
        state = self._first(workload)
        middle = time.perf_counter()
        if new_tokens > 1:
            state = self._go_on(workload, state, new_tokens)
        seconds = time.perf_counter() - middle
        request = self._ready[workload][0]
        tokens = np.asarray(state.history.tokens_BL)[: workload.rows, request.bucket :][:, :new_tokens].tolist()
        size = state.cache.nbytes
        del state
        give_back(size)  # as generate does
        return Turn(first_seconds=middle - began, decode_seconds=seconds, tokens=tokens)

    def dispatch_seconds(self, workload: Workload) -> float:
        """Seconds that a step takes longer when the host starts it and waits for it, than as one of a loop's steps."""
        steps = min(_DISPATCHED, workload.new_tokens - 1)
        if not steps:
            return 0.0
        state = self._first(workload)
        began = time.perf_counter()
        for step in range(steps):
            state = self._go_on(workload, state, 2 + step)
        middle = time.perf_counter()
        state = self._first(workload)
        again = time.perf_counter()
        self._go_on(workload, state, 1 + steps)
        return (middle - began - (time.perf_counter() - again)) / steps

    def peak_memory(self) -> int | None:
        """The device's high-water mark since the start; None on CPU."""
        stats = jax.devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use") if jax.default_backend() != "cpu" else None

    def bandwidth(self) -> float:
        """Bytes per second that the device reads, the best of several sums of an array."""
        values = jnp.ones((1 << 30) // 4, jnp.float32)
        add = jax.jit(jnp.sum).lower(values).compile()
        best = 0.0
        for _ in range(6):
            began = time.perf_counter()
            jax.block_until_ready(add(values))
            best = max(best, values.nbytes / (time.perf_counter() - began))
        return best

    def _first(self, workload: Workload) -> State:
        request, programs = self._ready[workload]
        state: State = programs.prefill(self._loaded.params, *request.padded(), request.call)
        np.asarray(state.history.length)  # the host has the first token
        return state

    def _go_on(self, workload: Workload, state: State, until: int) -> State:
        request, programs = self._ready[workload]
        nobody = np.zeros(request.rows, np.bool_)
        state = programs.decode(self._loaded.params, state, nobody, request.call, np.int32(until))
        np.asarray(state.history.length)  # the step is over
        return state


def step_bytes(entries: Sequence[Entry], rows: int, experts_per_token: int) -> float:
    """The bytes of parameters that a decode step of so many rows has to read.

    All of them, but: of a table of embeddings that is no head the rows' own, and of a stack of experts the share that
    is expected to be chosen by any row.
    """
    has_head = any(entry.path.startswith(_HEAD) and entry.path.endswith(".kernel") for entry in entries)
    found = 0.0
    for entry in entries:
        share = 1.0
        if entry.path.startswith(_EMBEDDER) and len(entry.shape) == 2:
            is_head = not has_head and "token_embedding" in entry.path
            share = 1.0 if is_head else min(1.0, rows / entry.shape[0])
        elif len(entry.shape) == 3:
            share = 1 - (1 - min(1.0, experts_per_token / entry.shape[0])) ** rows
        found += share * entry.nbytes
    return found

"""llama.cpp (llama-cpp-python) as a contender. Runs in a process of its own, the only one that imports it.

Its C functions are called directly: the package's own loop reads one row only.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import time
from typing import Any

import numpy as np

from bombus.evaluation.contenders import Prepared, Turn
from bombus.evaluation.machine import this_machine
from bombus.evaluation.workload import Workload

_CACHE_BYTES = 2  # of a value: float16, its default
_BATCH = 2048  # tokens that one call takes, its default


class LlamaCppContender:
    """A GGUF file. tied_head: whether the embeddings are also the head. threads: as many as cores unless given."""

    def __init__(
        self, *, file: str, tied_head: bool = True, device: str | None = None, threads: int | None = None
    ) -> None:
        self._lib: Any = importlib.import_module("llama_cpp")
        self._file, self._tied_head, self._device = file, tied_head, device
        self._threads = threads or os.cpu_count() or 1
        self._contexts: dict[Workload, Any] = {}
        self._lib.llama_backend_init()

    def load(self) -> dict[str, Any]:
        """Load; seconds, bytes, versions."""
        lib = self._lib
        began = time.perf_counter()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = -1 if self._device == "gpu" else 0
        # Its buffers for AMX end the process on some machines that have it (version 0.3.36).
        if any(name.startswith("amx") for name in this_machine().instructions):
            options.use_extra_bufts = False
        self._model = lib.llama_model_load_from_file(self._file.encode(), options)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {self._file}")
        self._vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._weights = lib.llama_model_size(self._model)
        return {
            "versions": f"llama-cpp-python {lib.__version__}",
            "load_seconds": time.perf_counter() - began,
            "weight_bytes": self._weights,
        }

    def prepare(self, workload: Workload) -> Prepared:
        """A context with a sequence for each row, which has a cache of its own size."""
        lib = self._lib
        options = lib.llama_context_default_params()
        options.n_ctx = workload.rows * -(-workload.tokens // 256) * 256  # its caches are whole pieces of 256
        options.n_batch = max(_BATCH, workload.rows)
        options.n_seq_max = workload.rows
        options.n_threads = options.n_threads_batch = self._threads
        context = lib.llama_init_from_model(self._model, options)
        if not context:
            raise MemoryError(f"llama.cpp makes no context of {options.n_ctx} tokens")
        self._contexts[workload] = context
        per_token = self._cache_values() * _CACHE_BYTES
        half_way = workload.rows * (workload.prompt_tokens + workload.new_tokens / 2)
        read = self._weights * (1 - self._idle_share(workload.rows))
        return {"cache_bytes": options.n_ctx * per_token, "step_bytes": read + half_way * per_token}

    def run(self, workload: Workload, new_tokens: int) -> Turn:
        """Greedy tokens, a call for each step of all rows."""
        lib, context = self._lib, self._contexts[workload]
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        prompts = workload.prompts(self._vocab_size)
        batch = lib.llama_batch_init(max(_BATCH, workload.rows), 0, 1)
        try:
            began = time.perf_counter()
            rows = [(row, place, token) for row, prompt in enumerate(prompts) for place, token in enumerate(prompt)]
            last = workload.prompt_tokens - 1
            found: list[list[int]] = [[] for _ in prompts]
            for start in range(0, len(rows), _BATCH):
                self._step(context, batch, rows[start : start + _BATCH], last, found)
            middle = time.perf_counter()
            for place in range(last + 1, last + new_tokens):
                step = [(row, place, tokens[-1]) for row, tokens in enumerate(found)]
                self._step(context, batch, step, place, found)
            seconds = time.perf_counter() - middle
        finally:
            lib.llama_batch_free(batch)
        return Turn(first_seconds=middle - began, decode_seconds=seconds, tokens=found)

    def peak_memory(self) -> int | None:
        """None: the process's own counts."""
        return None

    def _step(
        self, context: Any, batch: Any, items: list[tuple[int, int, int]], last: int, found: list[list[int]]
    ) -> None:
        """One call with these (row, place, token); the token after place `last` of a row joins what is found."""
        for index, (row, place, token) in enumerate(items):
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = place == last
        batch.n_tokens = len(items)
        status = self._lib.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode gives {status}")
        for index, (row, place, _) in enumerate(items):
            if place == last:
                logits = self._lib.llama_get_logits_ith(context, index)
                found[row].append(int(np.argmax(np.ctypeslib.as_array(logits, (self._vocab_size,)))))

    def _cache_values(self) -> int:
        """Keys and values of a token, in all layers."""
        lib, model = self._lib, self._model
        head = self._number("attention.key_length", lib.llama_model_n_embd(model) // lib.llama_model_n_head(model))
        value = self._number("attention.value_length", head)
        return int(lib.llama_model_n_layer(model) * lib.llama_model_n_head_kv(model) * (head + value))

    def _idle_share(self, rows: int) -> float:
        """The share of the weights that a step does not read: the embeddings, where the head is a matrix of its own.

        llama.cpp does not say so itself; by the numbers of parameters, which is exact for a file of one type.
        """
        if self._tied_head:
            return 0.0
        table = (self._vocab_size - rows) * self._lib.llama_model_n_embd(self._model)
        return float(max(0, table) / self._lib.llama_model_n_params(self._model))

    def _number(self, key: str, default: int) -> int:
        text = self._text("general.architecture")
        found = self._text(f"{text}.{key}")
        return int(found) if found else default

    def _text(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(128)
        size = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if size > 0 else ""

"""The contenders of qwen3_0_6b.py, each in a process of its own: Bombus, and transformers where it is installed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PREFILL = 512
PROMPT = 32
STEPS = 16
NEW_TOKENS = 32


def worker(name: str, folder: Path, device: str) -> None:
    """One contender: reads a task per line, answers with a line of JSON."""
    contender = Transformers(folder, device) if name == "transformers" else Ours(folder, name, device)
    for line in sys.stdin:
        task, *arguments = line.split()
        print(json.dumps(getattr(contender, task)(*arguments)), flush=True)


class Ours:
    """Bombus, in bf16 or in FP8 with the file's types preserved."""

    def __init__(self, folder: Path, weights: str, device: str) -> None:
        os.environ["JAX_PLATFORMS"] = "cuda" if device == "gpu" else "cpu"
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax

        import bombus

        self.jax, self.bombus, self.folder, self.device = jax, bombus, folder / weights, device
        jax.block_until_ready(jax.numpy.zeros(1) + 1)  # starts the backend before memory is measured

    def load(self) -> dict[str, Any]:
        """Load and compile (prefill and loop, tracing included); seconds, memory, versions."""
        from bombus.generation.loop import compile_programs
        from bombus.generation.request import make_request

        before = reset_peak_memory()
        started = time.perf_counter()
        self.loaded = self.bombus.load_model(self.folder, preserve_source_types=True, progress=False)
        seconds = time.perf_counter() - started
        peak = peak_memory() - before
        stats = self.jax.devices()[0].memory_stats() or {}
        size = (self.folder / "model.safetensors").stat().st_size
        self.requests, self.programs, compiled = {}, {}, {}
        for rows, bucket in ((1, PROMPT), (4, PROMPT), (1, PREFILL)):
            started = time.perf_counter()
            prompts = (np.arange(rows * bucket).reshape(rows, bucket) % 1000).tolist()
            options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "stop_token_ids": (), "prefill_chunk": None}
            request = make_request(self.loaded, prompts, options, has_text=False)
            self.requests[rows, bucket] = request
            self.programs[rows, bucket] = compile_programs(
                self.loaded.model, self.loaded.params, rows, request.bucket, request.call, request.plan
            )
            compiled[f"{rows} rows, prompt of {bucket}"] = round(time.perf_counter() - started, 2)
            self._decode(self._prefill(rows, bucket), rows, bucket, 2)  # the first run is slower
        return {
            "versions": f"bombus {self.bombus.__version__}, jax {self.jax.__version__}",
            "file_bytes": size,
            "load_seconds": round(seconds, 2),
            "load_peak_memory_over_file": round((stats.get("peak_bytes_in_use", 0) or peak) / size, 3),
            "compile_seconds": compiled,
            "bytes_per_step": self.loaded.report.nbytes,
        }

    def decode(self, batch: str) -> dict[str, float]:
        """Decode steps per second times rows."""
        rows = int(batch)
        state = self._decode(self._prefill(rows, PROMPT), rows, PROMPT, 2)
        started = time.perf_counter()
        self._decode(state, rows, PROMPT, 2 + STEPS)
        return {"tokens_per_second": rows * STEPS / (time.perf_counter() - started)}

    def prefill(self) -> dict[str, float]:
        """Prompt tokens per second."""
        started = time.perf_counter()
        self._prefill(1, PREFILL)
        return {"tokens_per_second": PREFILL / (time.perf_counter() - started)}

    def bandwidth(self) -> dict[str, float]:
        """Bytes read and written per second by a pass over a large array, in place: no page is touched first here."""
        jnp = self.jax.numpy
        values = [jnp.ones((1 << 30) // 4, jnp.float32)]
        step = self.jax.jit(lambda x: x + 1, donate_argnums=0)
        seconds = _fastest(lambda: values.append(self.jax.block_until_ready(step(values.pop()))))
        return {"gigabytes_per_second": 2 * values[0].nbytes / seconds / 1e9}

    def _prefill(self, rows: int, bucket: int) -> Any:
        request = self.requests[rows, bucket]
        state = self.programs[rows, bucket].prefill(self.loaded.params, *request.padded(), request.call)
        return self.jax.block_until_ready(state)

    def _decode(self, state: Any, rows: int, bucket: int, until: int) -> Any:
        decode, request = self.programs[rows, bucket].decode, self.requests[rows, bucket]
        done, until = np.zeros(rows, np.bool_), np.int32(until)
        return self.jax.block_until_ready(decode(self.loaded.params, state, done, request.call, until))


class Transformers:
    """transformers (torch) in bf16, on the bf16 checkpoint."""

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        import transformers

        self.torch, self.transformers, self.folder = torch, transformers, folder / "bf16"
        self.device = "cuda" if device == "gpu" else "cpu"
        torch.set_num_threads(os.cpu_count() or 1)

    def load(self) -> dict[str, Any]:
        """Load; seconds, memory, versions."""
        before = reset_peak_memory()
        started = time.perf_counter()
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.torch.bfloat16)
        self.model.to(self.device)
        seconds = time.perf_counter() - started
        peak = peak_memory() - before
        if self.device == "cuda":
            peak = self.torch.cuda.max_memory_allocated()
        size = (self.folder / "model.safetensors").stat().st_size
        self._generate(1, PROMPT, 2)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {
            "versions": f"transformers {self.transformers.__version__}, torch {self.torch.__version__}",
            "file_bytes": size,
            "load_seconds": round(seconds, 2),
            "load_peak_memory_over_file": round(peak / size, 3),
            "bytes_per_step": 2 * parameters,
        }

    def decode(self, batch: str) -> dict[str, float]:
        """Decode steps per second times rows."""
        return {"tokens_per_second": int(batch) * STEPS / self._generate(int(batch), PROMPT, STEPS)[1]}

    def prefill(self) -> dict[str, float]:
        """Prompt tokens per second."""
        return {"tokens_per_second": PREFILL / self._generate(1, PREFILL, 0)[0]}

    def _generate(self, batch: int, bucket: int, steps: int) -> tuple[float, float]:
        torch = self.torch
        tokens = (torch.arange(batch * bucket) % 1000).reshape(batch, bucket).to(self.device)
        with torch.inference_mode():
            started = self._now()
            output = self.model(tokens, use_cache=True, logits_to_keep=1)
            middle = self._now()
            for _ in range(steps):
                tokens = output.logits[:, -1:].argmax(-1)
                output = self.model(tokens, past_key_values=output.past_key_values, use_cache=True)
            return middle - started, self._now() - middle

    def _now(self) -> float:
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()


def _fastest(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(4):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def reset_peak_memory() -> int:
    """Set the process's high-water mark to its present size (Linux) and return that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def peak_memory() -> int:
    """The high-water mark of the process, in bytes."""
    return memory("VmHWM")


def memory(field: str) -> int:
    """A field of the process's status, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

"""Loading and generating with a Qwen3-0.6B-shaped random checkpoint, beside transformers where it is installed.

    python benchmarks/qwen3_0_6b.py [--device gpu] [--rounds 3] [--layers 28] [--folder DIR] > result.json

Prints JSON. Every contender (ours in bf16, ours in FP8 with its types preserved, transformers in bf16) is a process
of its own that loads, compiles and then measures when it is told to, in turns, so that a slow minute of the
machine hits them all alike: compare ratios, not absolute numbers. Peak memory is the high-water mark of the process
while it loads, less its size before, over the size of the weight file (device memory on a GPU).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "max_positions": 40960,
}
CONTENDERS = ("bf16", "f8_e4m3fn", "transformers")
PREFILL = 512
PROMPT = 32
STEPS = 16
NEW_TOKENS = 32


def main() -> None:
    """Make the checkpoints, start the contenders, let them measure in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept; default: a temporary folder")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.folder, options.device)
        return
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(run(options, options.folder or Path(temporary)), indent=2))


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    for weights in ("bf16", "f8_e4m3fn"):
        if not (folder / weights).exists():
            command = (
                "import json, sys; from bombus.testing import tiny_checkpoint; "
                "tiny_checkpoint('qwen3', sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))"
            )
            sizes = json.dumps(SHAPE | {"num_blocks": options.layers})
            subprocess.run([sys.executable, "-c", command, folder / weights, weights, sizes], check=True)
    names = [name for name in CONTENDERS if name != "transformers" or importlib.util.find_spec("transformers")]
    results: dict[str, dict[str, Any]] = {}
    processes = {}
    for name in names:  # one after the other: a load is not measured beside another
        processes[name] = _start(name, folder, options.device)
        results[name] = _ask(processes[name], "load")
    tasks = ["decode 1", "decode 4", "prefill"]
    samples: dict[str, dict[str, list[float]]] = {name: {task: [] for task in tasks} for name in names}
    bandwidth = []
    for _ in range(options.rounds):
        for task in tasks:
            for name in names:
                samples[name][task].append(_ask(processes[name], task)["tokens_per_second"])
        bandwidth.append(_ask(processes["f8_e4m3fn"], "bandwidth")["gigabytes_per_second"])
    for process in processes.values():
        process.stdin.close()
        process.wait()
    copy = statistics.median(bandwidth)
    for name in names:
        speeds = {f"{task}_tokens_per_second": statistics.median(values) for task, values in samples[name].items()}
        results[name] |= {key.replace(" ", "_"): round(value, 2) for key, value in speeds.items()}
        read = results[name]["bytes_per_step"] * speeds["decode 1_tokens_per_second"] / 1e9
        results[name]["decode_1_fraction_of_copy_bandwidth"] = round(read / copy, 3)
    return {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "device": options.device,
        "layers": options.layers,
        "copy_bandwidth_gigabytes_per_second": round(copy, 2),
        "results": results,
        "ratios_to_transformers": _ratios(results) if "transformers" in results else None,
    }


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

        before = _reset_peak_memory()
        started = time.perf_counter()
        self.loaded = self.bombus.load_model(self.folder, preserve_source_types=True, progress=False)
        seconds = time.perf_counter() - started
        peak = _peak_memory() - before
        stats = self.jax.devices()[0].memory_stats() or {}
        size = (self.folder / "model.safetensors").stat().st_size
        self.programs, compiled = {}, {}
        for rows, bucket in ((1, PROMPT), (4, PROMPT), (1, PREFILL)):
            started = time.perf_counter()
            arguments = self._arguments(rows, bucket)
            self.programs[rows, bucket] = compile_programs(self.loaded.model, *arguments, new_tokens=NEW_TOKENS)
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
        """Prompt tokens per second, first new token included."""
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

    def _arguments(self, rows: int, bucket: int) -> tuple[Any, ...]:
        from bombus.generation.sampling import Sampling

        jnp = self.jax.numpy
        tokens = jnp.arange(rows * bucket, dtype=jnp.int32).reshape(rows, bucket) % 1000
        zeros = jnp.zeros((rows,), jnp.int32)
        greedy = jnp.zeros((rows,), jnp.float32)
        sampling = Sampling(temperature=greedy, top_k=zeros, top_p=greedy + 1, seed=zeros.astype(jnp.uint32))
        return self.loaded.params, tokens, tokens >= 0, sampling, jnp.full((32,), -1, jnp.int32)

    def _prefill(self, rows: int, bucket: int) -> Any:
        return self.jax.block_until_ready(self.programs[rows, bucket].prefill(*self._arguments(rows, bucket)))

    def _decode(self, state: Any, rows: int, bucket: int, until: int) -> Any:
        params, _, _, sampling, stop = self._arguments(rows, bucket)
        until = self.jax.numpy.int32(until)
        return self.jax.block_until_ready(self.programs[rows, bucket].decode(params, state, sampling, stop, until))


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
        before = _reset_peak_memory()
        started = time.perf_counter()
        self.model = self.transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.torch.bfloat16)
        self.model.to(self.device)
        seconds = time.perf_counter() - started
        peak = _peak_memory() - before
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


def _start(name: str, folder: Path, device: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder), "--device", device]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: Any, task: str) -> dict[str, Any]:
    process.stdin.write(task + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a contender ended during {task!r} with status {process.wait()}")
    return json.loads(answer)


def _ratios(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    keys = [key for key in results["transformers"] if key.endswith("tokens_per_second")]
    rival = results["transformers"]
    return {name: {key: round(result[key] / rival[key], 2) for key in keys} for name, result in results.items()}


def _fastest(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(4):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def _reset_peak_memory() -> int:
    """Set the process's high-water mark to its present size (Linux) and return that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak_memory() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    notable = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{model} ({', '.join(notable)})"


if __name__ == "__main__":
    main()

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
from pathlib import Path
from typing import Any

from contenders import worker

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


def run(
    options: argparse.Namespace, folder: Path, architecture: str = "qwen3", shape: dict[str, int] = SHAPE
) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    for weights in ("bf16", "f8_e4m3fn"):
        make_checkpoint(folder / weights, weights, options.layers, architecture, shape)
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


def make_checkpoint(
    folder: Path, weights: str, layers: int, architecture: str = "qwen3", shape: dict[str, int] = SHAPE
) -> None:
    """Make a random checkpoint of this shape if it is not there, in a process whose memory ends with it."""
    if folder.exists():
        return
    command = (
        "import json, sys; from bombus.testing import tiny_checkpoint; "
        "tiny_checkpoint(sys.argv[1], sys.argv[2], sys.argv[3], **json.loads(sys.argv[4]))"
    )
    sizes = json.dumps(shape | {"num_blocks": layers})
    subprocess.run([sys.executable, "-c", command, architecture, folder, weights, sizes], check=True)


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


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    notable = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{model} ({', '.join(notable)})"


if __name__ == "__main__":
    main()

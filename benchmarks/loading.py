"""Loading a Qwen3-0.6B-shaped block-FP8 checkpoint: seconds and memory, beside safetensors.flax and transformers.

    python benchmarks/loading.py [--rounds 3] [--layers 28] [--folder DIR] [--markdown]

Prints JSON, or a table. Every load is a process of its own, in turns, with the page cache warm; only the load is
timed, not the imports. "All bytes read" adds one pass over every parameter, because a mapped file is not read by then.
Peak memory is the high-water mark of the process while it loads, less its size before, over the size of the file;
anonymous memory is what is not a mapped file's pages, after it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3_0_6b import make_checkpoint

from bombus.evaluation.machine import memory, peak_memory, reset_peak_memory

FP8, BF16 = "f8_e4m3fn", "bf16"
WEIGHTS = "model.safetensors"


def ours(folder: Path, **options: Any) -> Callable[[], Any]:
    """load_model with these arguments."""
    import bombus

    return lambda: bombus.load_model(folder, progress=False, **options).params


def theirs(folder: Path) -> Callable[[], Any]:
    """safetensors.flax's load_file; it has no float8, so the same bytes are there as uint8."""
    import safetensors.flax

    return lambda: safetensors.flax.load_file(folder / "bytes.safetensors")


def torch(folder: Path) -> Callable[[], Any]:
    """transformers' from_pretrained. On CPU it dequantizes block FP8 to bf16."""
    import torch
    import transformers

    return lambda: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


CONTENDERS: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "Bombus, FP8 kept": lambda folder: ours(folder / FP8, preserve_source_types=True),
    "Bombus, FP8 kept, from its cache": lambda folder: ours(
        folder / FP8, preserve_source_types=True, cache=folder / "cache"
    ),
    "safetensors.flax, the same bytes": lambda folder: theirs(folder / FP8),
    "Bombus, FP8 dequantized to bf16": lambda folder: ours(folder / FP8),
    "transformers, FP8 dequantized to bf16": lambda folder: torch(folder / FP8),
    "Bombus, bf16": lambda folder: ours(folder / BF16),
    "transformers, bf16": lambda folder: torch(folder / BF16),
}
# What each is compared with.
RIVALS = {
    "Bombus, FP8 kept": "safetensors.flax, the same bytes",
    "Bombus, FP8 kept, from its cache": "safetensors.flax, the same bytes",
    "Bombus, FP8 dequantized to bf16": "transformers, FP8 dequantized to bf16",
    "Bombus, bf16": "transformers, bf16",
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One load in this process."""
    import jax
    import numpy as np

    jax.block_until_ready(jax.numpy.zeros(1) + 1)  # starts the backend before memory is measured
    load = CONTENDERS[name](folder)
    before, anonymous = reset_peak_memory(), memory("RssAnon")
    started = time.perf_counter()
    found = load()
    arrays = list(found.parameters()) if hasattr(found, "parameters") else jax.block_until_ready(jax.tree.leaves(found))
    first = np.asarray(arrays[0].detach().float() if hasattr(found, "parameters") else arrays[0]).reshape(-1)[0]
    seconds = time.perf_counter() - started
    peak, kept = peak_memory() - before, memory("RssAnon") - anonymous
    for array in arrays:  # without a conversion: as bytes
        if hasattr(found, "parameters"):
            array.detach().view(-1).view(__import__("torch").uint8)[::64].sum().item()
        else:
            np.asarray(array).reshape(-1).view(np.uint8)[::64].sum()
    return {
        "seconds": seconds,
        "seconds_all_bytes": time.perf_counter() - started,
        "peak_bytes": peak,
        "anonymous_bytes": kept,
        "first": float(first),
    }


def run(folder: Path, rounds: int, layers: int) -> dict[str, Any]:
    """Everything that was measured: medians by contender, and ratios to the rivals."""
    for weights in (BF16, FP8):
        make_checkpoint(folder / weights, weights, layers)
    _as_bytes(folder / FP8)
    names = [name for name in CONTENDERS if "transformers" not in name or importlib.util.find_spec("transformers")]
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
            answer = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
            ).stdout
            if turn:  # the first fills the page cache and ours
                samples[name].append(json.loads(answer.splitlines()[-1]))
    results = {}
    for name, found in samples.items():
        size = (folder / (BF16 if name.endswith(", bf16") else FP8) / WEIGHTS).stat().st_size
        middle = {key: statistics.median(sample[key] for sample in found) for key in found[0] if key != "first"}
        results[name] = {
            "file_megabytes": round(size / 1e6),
            "seconds": round(middle["seconds"], 2),
            "seconds_all_bytes": round(middle["seconds_all_bytes"], 2),
            "peak_over_file": round(middle["peak_bytes"] / size, 3),
            "anonymous_over_file": round(middle["anonymous_bytes"] / size, 3),
        }
    for name, rival in RIVALS.items():
        if name in results and rival in results:
            for key in ("seconds", "seconds_all_bytes"):
                ratios = [b[key] / a[key] for a, b in zip(samples[name], samples[rival], strict=True)]
                results[name][f"times_faster_{key}"] = round(statistics.median(ratios), 2)
    return results


def _as_bytes(folder: Path) -> None:
    """The same file with every type called uint8, which safetensors.flax can read."""
    target = folder / "bytes.safetensors"
    if target.exists():
        return
    raw = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            header[name] = {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    target.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def as_markdown(results: dict[str, Any]) -> str:
    """The results as a table."""
    keys = ("file_megabytes", "seconds", "seconds_all_bytes", "peak_over_file", "anonymous_over_file")
    lines = ["| | file, MB | load, s | all bytes read, s | peak over file | anonymous over file | times faster |"]
    lines.append("|---" * 7 + "|")
    for name, result in results.items():
        faster = result.get("times_faster_seconds")
        shown = "" if faster is None else f"{faster} ({result['times_faster_seconds_all_bytes']})"
        lines.append(f"| {name} | " + " | ".join(str(result[key]) for key in keys) + f" | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Make the checkpoints, load them in turns, print what came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept; default: a temporary folder")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        results = run(options.folder or Path(temporary), options.rounds, options.layers)
    print(as_markdown(results) if options.markdown else json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

"""Loading and generating with a Qwen3-0.6B-shaped random checkpoint, beside transformers and llama.cpp.

    python benchmarks/qwen3_0_6b.py [--rounds 3] [--folder DIR] [--layers 28] [--only NAME ...] [--markdown]

Prints JSON, or a table of Markdown. Every contender is a process of its own that loads, compiles and then measures
when it is told to, in turns, so that a slow minute of the machine hits them all alike: compare ratios, not absolute
numbers. transformers and llama.cpp (llama-cpp-python, and gguf to make its files) are left out where they are not
installed. Peak memory of the load is the high-water mark of the process, less its size before, over the size of the
weight file; while generating, over weights and cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bombus.evaluation import (
    Contender,
    Measurement,
    Workload,
    bombus_contender,
    export_gguf,
    llama_cpp_contender,
    markdown_table,
    measure_in_turns,
    this_machine,
    transformers_contender,
)

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_heads": 16,
    "num_kv_heads": 8,
    "head_dim": 128,
    "max_positions": 40960,
}
FP8, BF16, WEIGHTS = "f8_e4m3fn", "bf16", "model.safetensors"
# The prompt of 512 is read and one token written: its speed is the prefill's.
WORKLOADS = {
    "decode, 1 row": Workload(prompt_tokens=32, new_tokens=33),
    "decode, 4 rows": Workload(rows=4, prompt_tokens=32, new_tokens=33),
    "prefill of 512": Workload(prompt_tokens=512, new_tokens=1),
}
# name -> the checkpoint, and what load_model takes.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bombus, bf16": (BF16, {}),
    "Bombus, FP8 kept": (FP8, {"preserve_source_types": True}),
    # With tied embeddings the table is the head as well.
    "Bombus, FP8 kept, int8 head": (FP8, {"preserve_source_types": True, "policy": {"embedding": "int8"}}),
    "Bombus, int4": (BF16, {"policy": "int4"}),
}
TRANSFORMERS = "transformers, bf16"
LLAMA_CPP = {"llama.cpp, Q8_0": "Q8_0", "llama.cpp, BF16": "BF16"}
NAMES = (*OURS, TRANSFORMERS, *LLAMA_CPP)


def main() -> None:
    """Make the checkpoints, let the contenders measure in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept; default: a temporary folder")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = run(options, options.folder or Path(temporary), names=options.only)
    print(as_markdown(found) if options.markdown else json.dumps(found, indent=2))


def run(
    options: argparse.Namespace,
    folder: Path,
    architecture: str = "qwen3",
    shape: Mapping[str, int] = SHAPE,
    names: Sequence[str] = NAMES,
) -> dict[str, Any]:
    """Everything that was measured, as plain data. Rivals that are not installed are left out."""
    for weights in (BF16, FP8):
        make_checkpoint(folder / weights, weights, options.layers, architecture, shape)
    contenders = [contender for name in names for contender in make_contender(name, folder, options.device)]
    found, bandwidth = measure_in_turns(
        contenders,
        tuple(WORKLOADS.values()),
        rounds=options.rounds,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    by_name: dict[str, dict[str, Measurement]] = {}
    for place, measurement in enumerate(found):
        by_name.setdefault(measurement.contender, {})[list(WORKLOADS)[place % len(WORKLOADS)]] = measurement
    return {
        "machine": this_machine().to_json(),
        "described": str(this_machine()),
        "device": options.device,
        "layers": options.layers,
        "rounds": options.rounds,
        "read_bandwidth_gigabytes_per_second": round(bandwidth / 1e9, 2),
        "results": {name: result(name, measured, folder, bandwidth) for name, measured in by_name.items()},
        "times_as_fast_as": {
            rival: {name: times(measured, by_name[rival]) for name, measured in by_name.items()}
            for rival in by_name
            if rival not in OURS
        },
    }


def make_contender(name: str, folder: Path, device: str) -> list[Contender]:
    """The contender of that name; none where it is not installed."""
    if name in OURS:
        weights, arguments = OURS[name]
        return [bombus_contender(folder / weights, name=name, device=device, **arguments)]
    needed = ("torch", "transformers") if name == TRANSFORMERS else ("llama_cpp", "gguf")
    if not all(map(importlib.util.find_spec, needed)):
        print(f"{name} is left out: {' or '.join(needed)} is not installed", file=sys.stderr)
        return []
    if name == TRANSFORMERS:
        return [replace(transformers_contender(folder / BF16, device=device), name=name)]
    file = folder / f"{LLAMA_CPP[name]}.gguf"
    if not file.exists():
        part = file.with_suffix(".part")
        export_gguf(folder / BF16, part, LLAMA_CPP[name]).replace(file)
    return [llama_cpp_contender(file, name=name, tied_head=True, device=device)]


def result(name: str, measured: Mapping[str, Measurement], folder: Path, bandwidth: float) -> dict[str, Any]:
    """What was measured of one contender, by what the table calls it."""
    first = measured["decode, 1 row"]
    file = weight_file(name, folder)
    size = file.stat().st_size
    found: dict[str, Any] = {
        "versions": first.versions,
        "weight file, MB": round(size / 1e6),
        "weights in memory, MB": round(first.weight_bytes / 1e6),
        "load, seconds": round(first.load_seconds, 2),
        "peak memory of the load over the file": None if first.load_memory is None else first.load_memory / size,
        "from the start to the first token, seconds": first.start_seconds,
    }
    for work, measurement in measured.items():
        found[f"prepare, {work}, seconds"] = round(measurement.prepare_seconds, 2)
    for work, measurement in measured.items():
        speed = measurement.prefill if measurement.decode is None else measurement.decode
        found[f"{work}, tokens per second"] = speed
    found["decode, 1 row, of the read bandwidth"] = first.fraction_of(bandwidth)
    found["peak memory while generating, 1 row, over weights and cache"] = first.memory_ratio
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}


def weight_file(name: str, folder: Path) -> Path:
    """What a contender reads."""
    if name in LLAMA_CPP:
        return folder / f"{LLAMA_CPP[name]}.gguf"
    return folder / (OURS[name][0] if name in OURS else BF16) / WEIGHTS


def times(measured: Mapping[str, Measurement], rival: Mapping[str, Measurement]) -> dict[str, float]:
    """How many times as fast as a rival, by workload."""
    pairs = {work: measurement.times(rival[work]) for work, measurement in measured.items()}
    return {work: round(prefill if decode is None else decode, 2) for work, (decode, prefill) in pairs.items()}


def as_markdown(found: Mapping[str, Any]) -> str:
    """The table, a column for each contender, and below it the machine, the rounds and the versions."""
    results, ratios = found["results"], found["times_as_fast_as"]
    rows = [["", *results]]
    keys = [key for key in next(iter(results.values())) if key != "versions"]
    rows += [[key, *("" if one[key] is None else f"{one[key]:,}" for one in results.values())] for key in keys]
    rows += [
        [f"{work}, times {rival}", *(f"{by_name[name][work]}" for name in results)]
        for rival, by_name in ratios.items()
        for work in WORKLOADS
    ]
    versions = dict.fromkeys(result["versions"] for result in results.values())
    return (
        f"{markdown_table(rows)}\n\n{found['described']}, reads {found['read_bandwidth_gigabytes_per_second']} GB/s; "
        f"{found['layers']} layers; medians of {found['rounds']} rounds; {'; '.join(versions)}."
    )


def make_checkpoint(
    folder: Path, weights: str, layers: int, architecture: str = "qwen3", shape: Mapping[str, int] = SHAPE
) -> None:
    """Make a random checkpoint of this shape if it is not there, in a process whose memory ends with it."""
    if folder.exists():
        return
    command = (
        "import json, sys; from bombus.testing import tiny_checkpoint; "
        "tiny_checkpoint(sys.argv[1], sys.argv[2], sys.argv[3], **json.loads(sys.argv[4]))"
    )
    sizes = json.dumps({**shape, "num_blocks": layers})
    subprocess.run([sys.executable, "-c", command, architecture, folder, weights, sizes], check=True)


if __name__ == "__main__":
    main()

"""What each lever of docs/performance.md brings: tables for a Qwen3-0.6B-shaped random checkpoint.

    python benchmarks/levers.py [--rounds 2] [--folder DIR] [--layers 28] [--markdown]

Within a table the contenders measure in turns; between tables compare nothing. The checkpoints are those of
qwen3_0_6b.py.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3_0_6b import BF16, FP8, make_checkpoint

from bombus.evaluation import Workload, bombus_contender, markdown_table, measure_in_turns, this_machine

DECODE = Workload(prompt_tokens=32, new_tokens=33)
PREFILL = Workload(prompt_tokens=512, new_tokens=1)
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "f32": (BF16, {"policy": "f32"}),
    "bf16": (BF16, {}),
    "f8_e4m3fn, table and head bf16": (FP8, {"preserve_source_types": True}),
    "f8_e4m3fn, table and head int8": (FP8, {"preserve_source_types": True, "policy": {"embedding": "int8"}}),
    "int8": (BF16, {"policy": "int8"}),
    "int4": (BF16, {"policy": "int4"}),
    "mxfp4": (BF16, {"policy": "mxfp4"}),
}
BATCHES = (1, 2, 4, 8, 16, 32)
Rows = list[list[str]]


def formats(folder: Path, rounds: int) -> Rows:
    """One user's speed by what the weights are stored as."""
    contenders = [bombus_contender(folder / file, name=name, **how) for name, (file, how) in FORMATS.items()]
    found, bandwidth = measure_in_turns(contenders, (DECODE,), rounds=rounds)
    base = found[list(FORMATS).index("bf16")]
    return [
        ["stored as", "weights, MB", "tokens per second", "times bf16", "of the read bandwidth"],
        *(
            [
                one.contender,
                f"{one.weight_bytes / 1e6:,.0f}",
                f"{one.decode:.1f}",
                f"{one.times(base)[0]:.2f}",
                f"{one.fraction_of(bandwidth):.2f}",
            ]
            for one in found
        ),
    ]


def batches(folder: Path, rounds: int) -> Rows:
    """Throughput by the number of users; and what a step takes longer when Python starts each."""
    contender = bombus_contender(folder / FP8, name="FP8", preserve_source_types=True)
    works = [replace(DECODE, rows=rows) for rows in BATCHES]
    found, _ = measure_in_turns([contender], works, rounds=rounds, dispatch=True)
    return [
        ["users", "tokens per second", "for each user", "ms per step", "a step started by Python, ms more"],
        *(
            [
                str(one.workload.rows),
                f"{one.decode:.1f}",
                f"{one.decode_per_user:.1f}",
                f"{1000 / (one.decode_per_user or 1):.0f}",
                f"{1000 * (one.dispatch or 0):.1f}",
            ]
            for one in found
        ),
    ]


def settings(folder: Path, rounds: int) -> Rows:
    """XLA's optimizations, and the kernels, on and off."""
    rows = [["", "compile, s", "decode, tokens per second", "prefill of 512, tokens per second"]]
    for name, variables in {
        "as it is": {},
        "`XLA_FLAGS=--xla_backend_optimization_level=0`": {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        "`BOMBUS_KERNELS=plain`": {"BOMBUS_KERNELS": "plain"},
        "`BOMBUS_KERNELS=xla`": {"BOMBUS_KERNELS": "xla"},
    }.items():
        with environment(variables):
            contender = bombus_contender(folder / FP8, name=name, preserve_source_types=True)
            (one, two), _ = measure_in_turns([contender], (DECODE, PREFILL), rounds=rounds)
        rows.append([name, f"{one.prepare_seconds:.1f}", f"{one.decode:.1f}", f"{two.prefill:.0f}"])
    return rows


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """With these variables set, for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def main() -> None:
    """Measure one table after the other, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept; default: a temporary folder")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for weights in (BF16, FP8):
            make_checkpoint(folder / weights, weights, options.layers)
        found = {table.__name__: table(folder, options.rounds) for table in (formats, batches, settings)}
    if options.markdown:
        print("\n\n".join(markdown_table(rows) for rows in found.values()))
    else:
        print(json.dumps({"machine": str(this_machine()), "rounds": options.rounds, **found}, indent=2))


if __name__ == "__main__":
    main()

"""The C++ kernels alone: bytes of weights per second, beside a plain read of the same bytes in the same run.

    python benchmarks/kernels.py [--formats "f8_e4m3fn;int4"] [--rows 1,2,4] [--rounds 7] [--outputs 8192] [--markdown]

Eight weights of one shape, one after the other, so that all of them together are far larger than the caches. Every
round reads them plainly and multiplies with each number of rows in turn; the fastest of the rounds counts, for both.
XLA's own way is measured as well where it is asked for with --xla: it is many times slower.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bombus.evaluation.machine import this_machine
from bombus.kernels import Weight, native, product, quantize
from bombus.kernels.product import by_tiles, whole
from bombus.policies.formats import find_format

FORMATS = (
    *("bf16", "f8_e4m3fn", "f8_e4m3fn(tile=channel)", "f8_e5m2", "int8", "int8(group=32)", "int4"),
    *("int4(group=32)", "int4(group=64, zero_points)", "bfp8", "bfp4", "mxfp8", "mxfp4", "nvfp4"),
)
WEIGHTS = 8


def make_weights(format: str, outputs: int, inputs: int) -> list[Weight]:
    """Distinct buffers with the same random weight."""
    values = np.random.default_rng(0).standard_normal((outputs, inputs), np.float32)
    first = quantize(jnp.asarray(values), find_format(format))
    return [jax.tree.map(lambda array: jax.device_put(np.array(array)), first) for _ in range(WEIGHTS)]


def fastest(runs: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """name -> seconds of its fastest run; the runs take turns."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def measure(format: str, options: argparse.Namespace) -> dict[str, Any]:
    """GB/s of the plain read, and of the product with each number of rows, with the fraction of the read."""
    weights = make_weights(format, options.outputs, options.inputs)
    size = sum(array.nbytes for array in jax.tree.leaves(weights))
    codes = sum(weight.codes.nbytes for weight in weights)

    def read(weights: list[Weight]) -> list[jax.Array]:
        return [native.read_bytes(weight.codes) for weight in weights]

    def multiply(x: jax.Array, weights: list[Weight]) -> list[jax.Array]:
        return [product(x, weight, compute_type=jnp.dtype(jnp.bfloat16)) for weight in weights]

    def multiply_with_xla(x: jax.Array, weights: list[Weight]) -> list[jax.Array]:
        way = by_tiles if x.shape[0] <= 16 else whole
        return [way(x, weight) for weight in weights]

    runs: dict[Any, Callable[[], Any]] = {"read": partial(jax.jit(read), weights)}
    for rows in options.rows:
        x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, options.inputs)), jnp.bfloat16)
        runs[rows] = partial(jax.jit(multiply), x, weights)
        if options.xla:
            runs[f"{rows}, XLA"] = partial(jax.jit(multiply_with_xla), x, weights)
    seconds = fastest(runs, options.rounds)
    read_speed = codes / seconds.pop("read") / 1e9
    return {
        "format": format,
        "read": round(read_speed, 1),
        "rows": {
            str(name): {
                "gigabytes_per_second": round(size / taken / 1e9, 1),
                "of_the_read": round(size / taken / 1e9 / read_speed, 2),
            }
            for name, taken in seconds.items()
        },
    }


def main() -> None:
    """Print JSON, or a table in Markdown."""
    numbers = partial(map, int)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", type=lambda text: text.split(";"), default=list(FORMATS), help="separated by ;")
    parser.add_argument("--rows", type=lambda text: list(numbers(text.split(","))), default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--outputs", type=int, default=8192)
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    tables = [measure(format, options) for format in options.formats]
    if not options.markdown:
        print(
            json.dumps({"machine": str(this_machine()), "kernels": native.kernels_in_use(), "tables": tables}, indent=2)
        )
        return
    names = [f"{name} {'row' if name == '1' else 'rows'}, GB/s" for name in tables[0]["rows"]]
    print(f"| format | plain read, GB/s | {' | '.join(names)} |")
    print("|---" * (len(names) + 2) + "|")
    for table in tables:
        cells = [f"{row['gigabytes_per_second']} ({row['of_the_read']})" for row in table["rows"].values()]
        print(f"| `{table['format']}` | {table['read']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

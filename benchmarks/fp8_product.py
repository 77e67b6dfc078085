"""What XLA:CPU makes of an FP8 product in a generation loop, three ways; speed, temporaries and compile time.

    python benchmarks/fp8_product.py [--kernels 16] > result.json

All three compute the same product for kernels of 3072x1024 and 1024x3072, one after the other, inside a while loop:
"whole" dequantizes a kernel and multiplies, with an optimization barrier against hoisting; "tiles" decodes a tile at a
time in a loop; "bombus" is bombus.kernels.product, which does that inside a conditional.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from bombus.kernels import dequantize, product

WIDE, NARROW, BLOCK, TILE = 3072, 1024, (128, 128), 128
F32 = jnp.dtype(jnp.float32)
CONTRACT = (((1,), (1,)), ((), ()))


def whole(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """Dequantize the kernel, then multiply."""
    codes, x = lax.optimization_barrier((codes, x))
    return lax.dot_general(x, dequantize(codes, scale, BLOCK, F32), CONTRACT)


def tiles(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """Dequantize a tile of outputs, multiply, go on to the next."""

    def step(index: jax.Array, y: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(codes, index * TILE, TILE)
        factors = lax.dynamic_slice_in_dim(scale, index * TILE // BLOCK[0], TILE // BLOCK[0])
        result = lax.dot_general(x, dequantize(part, factors, BLOCK, F32), CONTRACT)
        return lax.dynamic_update_slice_in_dim(y, result, index * TILE, 1)

    return lax.fori_loop(0, codes.shape[0] // TILE, step, jnp.zeros((x.shape[0], codes.shape[0]), F32))


def bombus(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """What Bombus does."""
    return product(x, codes, scale, block_shape=BLOCK, compute_type=F32)


def main() -> None:
    """Measure each way at one, four and 256 rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=16)
    options = parser.parse_args()
    random = np.random.default_rng(0)

    def kernel(outputs: int, inputs: int) -> tuple[jax.Array, jax.Array]:
        codes = random.standard_normal((outputs, inputs), np.float32).astype(ml_dtypes.float8_e4m3fn)
        scale = random.uniform(0.01, 0.02, (outputs // BLOCK[0], inputs // BLOCK[1])).astype(np.float32)
        return jnp.asarray(codes), jnp.asarray(scale)

    pairs = [(kernel(WIDE, NARROW), kernel(NARROW, WIDE)) for _ in range(options.kernels // 2)]
    results = [measure(way, rows, pairs) for rows in (1, 4, 256) for way in (whole, tiles, bombus)]
    print(json.dumps({"jax": jax.__version__, "kernels": options.kernels, "results": results}, indent=2))


def measure(way: Callable[..., jax.Array], rows: int, pairs: list[Any]) -> dict[str, Any]:
    """One way at one number of rows."""

    def step(x: jax.Array, pairs: list[Any]) -> jax.Array:
        for first, second in pairs:
            x = x + jnp.tanh(way(jnp.tanh(way(x, *first)), *second))
        return x

    def loop(x: jax.Array, pairs: list[Any], count: int) -> jax.Array:
        body = lambda carry: (carry[0] + 1, step(carry[1], pairs))  # noqa: E731
        return lax.while_loop(lambda carry: carry[0] < count, body, (0, x))[1]

    x = jnp.ones((rows, NARROW), F32)
    started = time.perf_counter()
    compiled = jax.jit(loop).lower(x, pairs, 0).compile()
    compile_seconds = time.perf_counter() - started
    steps, times = 2, []
    for _ in range(4):
        started = time.perf_counter()
        jax.block_until_ready(compiled(x, pairs, steps))
        times.append((time.perf_counter() - started) / steps)
    weights = 2 * len(pairs) * WIDE * NARROW
    return {
        "way": way.__name__,
        "rows": rows,
        "gigaweights_per_second": round(weights / min(times) / 1e9, 2),
        "temporaries_over_one_float32_kernel": round(
            compiled.memory_analysis().temp_size_in_bytes / (4 * WIDE * NARROW), 2
        ),
        "compile_seconds": round(compile_seconds, 2),
    }


if __name__ == "__main__":
    main()

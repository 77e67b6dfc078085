"""Compile a forward pass by hand: `jax.jit`, ahead of time, and what the compiler says about memory.

`python notebooks/jit_inference.py` makes a tiny FP8 checkpoint; BOMBUS_MODEL names another folder or hub id.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

import bombus
from bombus.testing import tiny_checkpoint

BATCH, TOKENS = 1, 32
RUNS = 10


def main(repo: str) -> None:
    """Load `repo` with its types kept, compile one forward pass in two ways, and time it."""
    loaded = bombus.load_model(repo, preserve_source_types=True)
    model, params = loaded.model, loaded.params
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(f"loaded {type(loaded.spec).__name__}, {stored:,} bytes of parameters on {jax.devices()[0]}")

    tokens_BT = jax.random.randint(jax.random.key(0), (BATCH, TOKENS), 0, loaded.spec.vocab_size)

    # 1. Ahead of time, from shapes and types alone: this could run before a weight is read.
    shapes = jax.ShapeDtypeStruct(tokens_BT.shape, tokens_BT.dtype)
    started = time.perf_counter()
    lowered = jax.jit(forward_of(model)).lower(model.abstract_params, shapes)
    traced = time.perf_counter()
    compiled = lowered.compile()
    print(f"ahead of time: traced in {traced - started:.2f} s, compiled in {time.perf_counter() - traced:.2f} s")

    # What the program needs beside its arguments. FP8 kernels are dequantized a tile at a time, in temporaries.
    memory = compiled.memory_analysis()
    if memory is not None:  # not every backend says
        kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.dtype == jnp.float8_e4m3fn)
        print(f"memory: {memory.argument_size_in_bytes:,} bytes of arguments, {memory.temp_size_in_bytes:,} temporary")
        if kernels:
            print(f"  (the {kernels:,} FP8 weights would be {2 * kernels:,} bytes in bf16)")

    # 2. jax.jit compiles in the first call.
    on_call = jax.jit(forward_of(model))
    started = time.perf_counter()
    expected = jax.block_until_ready(on_call(params, tokens_BT))
    print(f"jax.jit: first call {time.perf_counter() - started:.2f} s, compilation in it")

    same = jnp.array_equal(expected, compiled(params, tokens_BT))
    print(f"both give the same logits: {bool(same)}")
    for name, call in (("jax.jit", on_call), ("ahead of time", compiled)):
        seconds = median_seconds(lambda call=call: call(params, tokens_BT))
        print(f"{name}: {1000 * seconds:.2f} ms for {BATCH} x {TOKENS} tokens, median of {RUNS}")


def forward_of(model: bombus.Model) -> Callable[..., jax.Array]:
    """The function to compile. The model owns no arrays, so it is closed over; the parameters are an argument."""
    return lambda params, tokens_BT: model.apply(params, tokens_BT, last_only=True).logits


def median_seconds(call: Callable[[], jax.Array]) -> float:
    """The median time of a call, result included."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(os.environ.get("BOMBUS_MODEL") or str(tiny_checkpoint("qwen3", Path(temporary) / "tiny-qwen3-fp8")))

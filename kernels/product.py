"""x times a stored kernel: the one place that decides how a product is computed.

Shapes: R rows of x, I inputs, O outputs. Kernels are (O, I), as in the checkpoint. Results are float32.

What XLA:CPU does, measured (benchmarks/README.md, "FP8 product"):
- Anything computed from the weights alone is loop-invariant in a generation loop, so XLA hoists it and holds the
  whole model dequantized; `optimization_barrier` is gone before that pass. It does not hoist out of a
  conditional, so weights are converted inside one, whose condition is always true and XLA cannot know it.
- A float8 operand of any other operation is first widened to float16 as a whole, so codes are sliced as bytes.
- A bfloat16 product with one row is slow and converts the kernel; with two rows and float32 output it does not.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from bombus.kernels.fp8 import decode_e4m3fn, dequantize, scale_rows

_FEW_ROWS = 16
_TILE_OUTPUTS = 128  # a decoded tile stays in the L2 cache


# jit: equal shapes are traced and lowered once for all layers of a model. XLA inlines the call.
@partial(jax.jit, static_argnames=("block_shape", "compute_type"))
def product(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array | None = None,
    *,
    block_shape: tuple[int, int] = (128, 128),
    compute_type: jnp.dtype,
) -> jax.Array:
    """x (..., I) times kernel (O, I), computed in `compute_type`, accumulated and returned in float32 (..., O).

    `scale` is the grid of a float8_e4m3fn kernel. A kernel stored in another type than `compute_type` is converted
    while the product runs: with few rows tile by tile, with many as a whole, and never more than this one kernel.
    """
    x_RI = x.reshape(-1, x.shape[-1]).astype(compute_type)
    if scale is None and kernel.dtype == compute_type:
        rows = x_RI.shape[0]
        if rows == 1 and compute_type != jnp.float32:
            x_RI = jnp.pad(x_RI, ((0, 1), (0, 0)))
        y_RO = _dot(x_RI, kernel)[:rows]
    else:
        y_RO = lax.platform_dependent(
            x_RI,
            kernel,
            *(() if scale is None else (scale,)),
            cpu=partial(_by_tiles if x_RI.shape[0] <= _FEW_ROWS else _guarded, block_shape=block_shape),
            default=partial(_whole, block_shape=block_shape),
        )
    return y_RO.reshape(*x.shape[:-1], kernel.shape[0])


def _dot(x: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    """x (R, I) or (I,) times kernel, (R, O) or (O,) in float32."""
    contract_inputs = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, kernel_OI, contract_inputs, preferred_element_type=jnp.float32)


def _whole(x_RI: jax.Array, kernel: jax.Array, scale: jax.Array | None = None, *, block_shape) -> jax.Array:
    # The barrier ties the codes to x, so that accelerators do not dequantize ahead of time or outside a loop.
    x_RI, kernel = lax.optimization_barrier((x_RI, kernel))
    if scale is None:
        return _dot(x_RI, kernel.astype(x_RI.dtype))
    return _dot(x_RI, dequantize(kernel, scale, block_shape, x_RI.dtype))


def _guarded(x_RI: jax.Array, kernel: jax.Array, *scales: jax.Array, block_shape) -> jax.Array:
    """For many rows on CPU: one kernel at a time is converted, which costs little beside the product."""
    bits = lax.bitcast_convert_type(x_RI[0, 0].astype(jnp.float32), jnp.int32)
    return lax.cond(
        (bits | 1) != 0,  # always; see the docstring of the module
        partial(_whole, block_shape=block_shape),
        lambda x_RI, kernel, *_: jnp.zeros((x_RI.shape[0], kernel.shape[0]), jnp.float32),
        *(x_RI, kernel, *scales),
    )


def _by_tiles(x_RI: jax.Array, kernel: jax.Array, scale: jax.Array | None = None, *, block_shape) -> jax.Array:
    """For few rows on CPU: a tile of outputs at a time is converted and used in the caches."""
    outputs = kernel.shape[0]
    rows = x_RI.shape[0]
    # With few rows a product waits for memory: float32 arithmetic costs nothing, and rounds less.
    compute_type = jnp.dtype(jnp.float32)
    # A single row as a vector: XLA:CPU's product of a matrix and a vector, without copies around it.
    x = x_RI[0].astype(compute_type) if rows == 1 else x_RI.astype(compute_type)
    # At least two tiles: XLA unrolls a loop of one, and the conditional and its protection with it. The last
    # tile starts early enough to be whole and computes some outputs again.
    tile = min(_TILE_OUTPUTS, max(1, -(-outputs // 2)))
    tiles = -(-outputs // tile)

    def compute(first: jax.Array, x: jax.Array, kernel: jax.Array, *scales: jax.Array) -> jax.Array:
        return _dot(x, _converted(kernel, scales, first, tile, block_shape, compute_type))

    def step(index: jax.Array, y: jax.Array) -> jax.Array:
        first = jnp.minimum(index * tile, outputs - tile)
        scales = () if scale is None else (scale,)
        part = lax.cond(
            index < tiles,  # always; see the docstring of the module
            compute,
            lambda *_: jnp.zeros((*x.shape[:-1], tile), jnp.float32),
            *(first, x, kernel, *scales),
        )
        return lax.dynamic_update_slice_in_dim(y, part, first, axis=y.ndim - 1)

    # Every output is written, so any start will do. Zeros would be made for all layers ahead of time and held.
    start = jnp.broadcast_to(x[..., :1].astype(jnp.float32), (*x.shape[:-1], outputs))
    return lax.fori_loop(0, tiles, step, start).reshape(rows, outputs)


def _converted(kernel, scales, first, tile, block_shape, dtype) -> jax.Array:
    inputs = kernel.shape[1]
    if not scales:
        return lax.dynamic_slice(kernel, (first, 0), (tile, inputs)).astype(dtype)
    as_bytes = lax.bitcast_convert_type(kernel, jnp.uint8)
    codes = lax.dynamic_slice(as_bytes, (first, 0), (tile, inputs))
    weights = decode_e4m3fn(lax.bitcast_convert_type(codes, jnp.float8_e4m3fn))
    return (weights * scale_rows(scales[0], first + jnp.arange(tile), inputs, block_shape)).astype(dtype)

"""x times a stored kernel: the one place that decides how a product is computed.

Shapes: R rows of x, I inputs, O outputs. Kernels are (O, I), as in the checkpoint. Results are float32.

What XLA:CPU does, measured (benchmarks/README.md, "FP8 product"):
- Anything computed from the weights alone is loop-invariant in a generation loop, so XLA hoists it and holds the
  whole model dequantized; `optimization_barrier` is gone before that pass. It does not hoist out of a
  conditional, so weights are converted inside one, whose condition is always true and XLA cannot know it.
- A float8 operand of any other operation is first widened to float16 as a whole, so codes are sliced as bytes.
- A float16 product is done in float32, by way of a copy of the kernel that is hoisted as well.
- A bfloat16 product with one row is slow and converts the kernel; with two rows and float32 output it does not.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from bombus.kernels.weight import Weight, as_bits, dequantize, half_values, row_values

_FEW_ROWS = 16
_TILE_OUTPUTS = 128  # a decoded tile stays in the L2 cache


# jit: equal shapes are traced and lowered once for all layers of a model. XLA inlines the call.
@partial(jax.jit, static_argnames=("compute_type",))
def product(x: jax.Array, weight: Weight, *, compute_type: jnp.dtype) -> jax.Array:
    """x (..., I) times a stored weight (O, I), computed in `compute_type`: (..., O), summed and returned in float32.

    A weight that is stored otherwise than in `compute_type` is converted while the product runs: with few rows tile
    by tile, with many as a whole, and never more than this one weight.
    """
    x_RI = x.reshape(-1, x.shape[-1]).astype(compute_type)
    cpu = _by_tiles if x_RI.shape[0] <= _FEW_ROWS else _guarded
    if weight.format.is_low or weight.codes.dtype != compute_type:
        y_RO = lax.platform_dependent(x_RI, weight, cpu=cpu, default=_whole)
    elif compute_type == jnp.float16:
        y_RO = lax.platform_dependent(x_RI, weight, cpu=cpu, default=_plain)
    else:
        y_RO = _plain(x_RI, weight)
    return y_RO.reshape(*x.shape[:-1], weight.shape[0])


def _plain(x_RI: jax.Array, weight: Weight) -> jax.Array:
    rows = x_RI.shape[0]
    if rows == 1 and x_RI.dtype != jnp.float32:
        x_RI = jnp.pad(x_RI, ((0, 1), (0, 0)))
    return _dot(x_RI, weight.codes)[:rows]


def _dot(x: jax.Array, kernel_OI: jax.Array) -> jax.Array:
    """x (R, I) or (I,) times kernel, (R, O) or (O,) in float32."""
    contract_inputs = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, kernel_OI, contract_inputs, preferred_element_type=jnp.float32)


def _whole(x_RI: jax.Array, weight: Weight) -> jax.Array:
    # The barrier ties the codes to x, so that accelerators do not dequantize ahead of time or outside a loop.
    x_RI, weight = lax.optimization_barrier((x_RI, weight))
    return _dot(x_RI, dequantize(weight, x_RI.dtype))


def _guarded(x_RI: jax.Array, weight: Weight) -> jax.Array:
    """For many rows on CPU: one weight at a time is converted, which costs little beside the product."""
    bits = lax.bitcast_convert_type(x_RI[0, 0].astype(jnp.float32), jnp.int32)
    return lax.cond(
        (bits | 1) != 0,  # always; see the docstring of the module
        _whole,
        lambda x_RI, weight: jnp.zeros((x_RI.shape[0], weight.shape[0]), jnp.float32),
        *(x_RI, weight),
    )


def _by_tiles(x_RI: jax.Array, weight: Weight) -> jax.Array:
    """For few rows on CPU: a tile of outputs at a time is converted and used in the caches."""
    outputs = weight.shape[0]
    rows = x_RI.shape[0]
    # With few rows a product waits for memory: float32 arithmetic costs nothing, and rounds less.
    compute_type = jnp.dtype(jnp.float32)
    # A single row as a vector: XLA:CPU's product of a matrix and a vector, without copies around it.
    x = x_RI[0].astype(compute_type) if rows == 1 else x_RI.astype(compute_type)
    # At least two tiles: XLA unrolls a loop of one, and the conditional and its protection with it. The last
    # tile starts early enough to be whole and computes some outputs again.
    tile = min(_TILE_OUTPUTS, max(1, -(-outputs // 2)))
    tiles = -(-outputs // tile)

    def compute(first: jax.Array, x: jax.Array, weight: Weight) -> jax.Array:
        if weight.format.packed:
            codes = lax.dynamic_slice_in_dim(weight.codes, first, tile)
            halves = half_values(weight, first + jnp.arange(tile), codes)
            return _dot(x[..., ::2], halves[0]) + _dot(_odd(x), halves[1])
        return _dot(x, _converted(weight, first, tile, compute_type))

    def step(index: jax.Array, y: jax.Array) -> jax.Array:
        first = jnp.minimum(index * tile, outputs - tile)
        part = lax.cond(
            index < tiles,  # always; see the docstring of the module
            compute,
            lambda *_: jnp.zeros((*x.shape[:-1], tile), jnp.float32),
            *(first, x, weight),
        )
        return lax.dynamic_update_slice_in_dim(y, part, first, axis=y.ndim - 1)

    # Every output is written, so any start will do. Zeros would be made for all layers ahead of time and held.
    start = jnp.broadcast_to(x[..., :1].astype(jnp.float32), (*x.shape[:-1], outputs))
    return lax.fori_loop(0, tiles, step, start).reshape(rows, outputs)


def _odd(x: jax.Array) -> jax.Array:
    """The odd inputs of x, as many as there are even ones: a zero where the last has no partner."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, x.shape[-1] % 2)])[..., 1::2]


def _converted(weight: Weight, first: jax.Array, tile: int, dtype: jnp.dtype) -> jax.Array:
    """`tile` rows of the weight from row `first` on, (tile, I)."""
    if not weight.format.is_low:
        return lax.dynamic_slice_in_dim(weight.codes, first, tile).astype(dtype)
    bits = lax.dynamic_slice_in_dim(as_bits(weight.codes), first, tile)
    codes = bits if bits.dtype == weight.codes.dtype else lax.bitcast_convert_type(bits, weight.codes.dtype)
    return row_values(weight, first + jnp.arange(tile), codes).astype(dtype)

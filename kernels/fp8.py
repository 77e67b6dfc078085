"""Block FP8 (e4m3fn codes, one scale per tile): exact decoding, dequantization, quantization.

Shapes: O outputs, I inputs, (P, Q) = block_shape, the scale grid is (ceil(O/P), ceil(I/Q)). The scale
multiplies, although checkpoints call it `weight_scale_inv`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

E4M3FN_MAX = 448.0


def decode_e4m3fn(codes: jax.Array) -> jax.Array:
    """The exact float32 values of e4m3fn codes, NaN included; any shape."""
    return lax.platform_dependent(codes, cpu=_decode_by_shifts, default=lambda codes: codes.astype(jnp.float32))


def _decode_by_shifts(codes: jax.Array) -> jax.Array:
    # XLA:CPU converts float8 one value at a time (0.7 GB/s). Moved up by seven bits a code is a float16 that is
    # 256 times too small, subnormals included; only NaN (all magnitude bits set) needs a select.
    bits = lax.bitcast_convert_type(codes, jnp.uint8).astype(jnp.uint16)
    magnitude = bits & 0x7F
    half = ((bits & 0x80) << 8) | jnp.where(magnitude == 0x7F, jnp.uint16(0x7E00), magnitude << 7)
    return lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32) * 256.0


def scale_grid(shape: Sequence[int], block_shape: tuple[int, int]) -> tuple[int, int]:
    """The shape of the scales of a kernel of shape (O, I): partial tiles at the edges have one too."""
    return (-(-shape[0] // block_shape[0]), -(-shape[1] // block_shape[1]))


def scale_rows(scale: jax.Array, rows: jax.Array, columns: int, block_shape: tuple[int, int]) -> jax.Array:
    """The float32 scale of every weight in the given rows, (len(rows), columns), from the grid."""
    # Truncating division and clipped indices compile to less than Python's floor division and wrapped ones.
    tiles = lax.div(rows, jnp.asarray(block_shape[0], rows.dtype))
    per_row = jnp.take(scale.astype(jnp.float32), tiles, axis=0, mode="clip")
    return jnp.repeat(per_row, block_shape[1], axis=1)[:, :columns]


def dequantize(codes: jax.Array, scale: jax.Array, block_shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """The whole kernel (O, I) in `dtype`: multiplied in float32 and rounded once."""
    factors = scale_rows(scale, jnp.arange(codes.shape[0]), codes.shape[1], block_shape)
    return (decode_e4m3fn(codes) * factors).astype(dtype)


def quantize(kernel: jax.Array, block_shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """(codes (O, I), float32 scale grid): each tile's largest magnitude becomes 448, rounded to nearest even."""
    outputs, inputs = kernel.shape
    grid = scale_grid(kernel.shape, block_shape)
    padded = jnp.pad(
        kernel.astype(jnp.float32),
        ((0, grid[0] * block_shape[0] - outputs), (0, grid[1] * block_shape[1] - inputs)),
    )
    largest = jnp.abs(padded.reshape(grid[0], block_shape[0], grid[1], block_shape[1])).max(axis=(1, 3))
    scale = jnp.where(largest > 0, largest / E4M3FN_MAX, 1.0)
    scaled = kernel.astype(jnp.float32) / scale_rows(scale, jnp.arange(outputs), inputs, block_shape)
    # The quotient of the largest value may round above 448, where e4m3fn has no infinity but NaN.
    return jnp.clip(scaled, -E4M3FN_MAX, E4M3FN_MAX).astype(jnp.float8_e4m3fn), scale

"""Quantization: float values to the codes and scales of a storage format, rounded to nearest, ties to even.

Tiles: (G, P, H, Q), the weight cut into G x H tiles of P outputs and Q inputs, filled up with zeros at the edges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bombus.kernels.weight import Weight, map_experts, pack
from bombus.policies.formats import Format

# Tiles -> (their codes, the parts of the weight by name; grids as (G, H)).
Encoded: TypeAlias = tuple[jax.Array, dict[str, jax.Array]]

E4M3FN_MAX = 448.0
_E2M1_MAX = 6.0
# The exponent of the largest element, and how many bits its mantissa has (OCP MX v1.0, section 5.3).
_MX_ELEMENTS = {"f8_e4m3fn": (8, 3, E4M3FN_MAX), "f8_e5m2": (15, 2, 57344.0), "e2m1": (2, 1, _E2M1_MAX)}
_MIN_E4M3FN = 2.0**-9


@partial(jax.jit, static_argnames="format")
def quantize(values: jax.Array, format: Format, global_scale: jax.Array | None = None) -> Weight:
    """The weight (O, I) in `format`; a plain format is a cast. Of a stack (E, O, I) each expert by itself.

    global_scale: that of a larger nvfp4 weight of which these are some rows.
    Values that are not finite make all scales NaN: check these where it matters.
    """
    if values.ndim == 3 and format.is_low:
        return map_experts(lambda expert: quantize(expert, format, global_scale), values)
    shape = (values.shape[-2], values.shape[-1])
    if not format.is_low:
        return Weight(codes=values.astype(format.dtype), format=format.canonical, shape=shape)
    tiles = _tiled(values.astype(jnp.float32), format)
    codes, parts = _nvfp4(tiles, global_scale) if format.kind.global_scale else _ENCODERS[format.name](tiles, format)
    codes = codes.reshape(codes.shape[0] * codes.shape[1], -1)[: shape[0], : shape[1]]
    # By themselves some would vanish: an exponent saturates.
    unknown = jnp.full((), jnp.nan, format.scale_type)
    parts["scale_inv"] = jnp.where(jnp.isfinite(_largest(tiles)).all(), parts["scale_inv"], unknown)
    return Weight(codes=pack(codes) if format.packed else codes, **parts, format=format.canonical, shape=shape)


def _tiled(values: jax.Array, format: Format) -> jax.Array:
    grid = format.grid(values.shape)
    tile = [size or whole for size, whole in zip(format.tile, values.shape, strict=True)]
    padding = [(0, count * size - whole) for count, size, whole in zip(grid, tile, values.shape, strict=True)]
    return jnp.pad(values, padding).reshape(grid[0], tile[0], grid[1], tile[1])


def _over(grid: jax.Array) -> jax.Array:
    """A grid (G, H), to be broadcast over its tiles."""
    return grid[:, None, :, None]


def _reduced(tiles: jax.Array, pair: Callable[..., jax.Array], all_of: Callable[..., jax.Array]) -> jax.Array:
    """`all_of`, jnp.max or jnp.min, over each tile, (G, H); `pair` is the same of two arrays."""
    # Halved first: XLA:CPU writes to memory whatever it reduces more than 32 of at once, and computes for itself only
    # what is read up to eight times.
    for _ in range(3):
        axis = 1 if tiles.shape[1] > 32 else 3
        if tiles.shape[axis] > 32 and tiles.shape[axis] % 2 == 0:
            tiles = pair(*jnp.split(tiles, 2, axis))
    return all_of(tiles, axis=(1, 3))


def _largest(tiles: jax.Array) -> jax.Array:
    """The largest magnitude of each tile; not finite where one of its values is not."""
    # As bits, which are in the order of the magnitudes, NaN the largest: XLA:CPU's maximum of floats drops NaN.
    bits = lax.bitcast_convert_type(tiles, jnp.uint32) & 0x7FFFFFFF
    return lax.bitcast_convert_type(_reduced(bits, jnp.maximum, jnp.max), jnp.float32)


def _positive(scale: jax.Array, dtype: np.dtype) -> jax.Array:
    """Scales as they are stored; where that is zero one, of which nothing but zeros is a multiple."""
    if dtype == jnp.float8_e8m0fnu:
        return _power_of_two_above(scale)
    stored = scale.astype(dtype)
    return jnp.where(stored == 0, jnp.ones((), dtype), stored)


def _float8(tiles: jax.Array, format: Format) -> Encoded:
    top = float(jnp.finfo(format.dtype).max)
    scale = _positive(_largest(tiles) / top, format.scale_type)
    # The quotient of the largest value may round above the top, where e4m3fn has no infinity but NaN.
    scaled = tiles / _over(scale.astype(jnp.float32))
    return jnp.clip(scaled, -top, top).astype(format.dtype), {"scale_inv": scale}


def _integer(tiles: jax.Array, format: Format) -> Encoded:
    if format.zero_points:
        return _affine(tiles, format)
    top = 2 ** (format.kind.bits - 1) - 1
    scale = _positive(_largest(tiles) / top, format.scale_type)
    codes = jnp.clip(jnp.round(tiles / _over(scale.astype(jnp.float32))), -top, top)
    return (codes + format.kind.offset).astype(format.dtype), {"scale_inv": scale}


def _affine(tiles: jax.Array, format: Format) -> Encoded:
    # Zero is always in the range, so that it is stored exactly.
    low = jnp.minimum(_reduced(tiles, jnp.minimum, jnp.min), 0)
    high = jnp.maximum(_reduced(tiles, jnp.maximum, jnp.max), 0)
    scale = _positive((high - low) / 15, format.scale_type)
    scale32 = scale.astype(jnp.float32)
    zero = jnp.clip(jnp.round(-low / scale32), 0, 15)
    codes = jnp.clip(jnp.round(tiles / _over(scale32)) + _over(zero), 0, 15)
    return codes.astype(jnp.uint8), {"scale_inv": scale, "zero_point": zero.astype(jnp.uint8)}


def _bfp(tiles: jax.Array, format: Format) -> Encoded:
    exponent = _exponent(_largest(tiles))
    codes = _bfp_magnitudes(tiles, exponent, format)
    if format.scale_rule == "search":
        lower = jnp.maximum(exponent, 1) - 1
        other = _bfp_magnitudes(tiles, lower, format)
        error, other_error = (_bfp_error(tiles, *pair, format) for pair in ((codes, exponent), (other, lower)))
        better = (other_error < error) & (exponent > 8)
        codes = jnp.where(_over(better), other, codes)
        exponent = jnp.where(better, lower, exponent)
    scale = lax.bitcast_convert_type(exponent.astype(jnp.uint8), jnp.float8_e8m0fnu)
    return (codes + format.kind.offset).astype(format.dtype), {"scale_inv": scale}


def _bfp_magnitudes(tiles: jax.Array, exponent: jax.Array, format: Format) -> jax.Array:
    """Signed magnitudes on the grid of the block's exponent: shifted right, to nearest even, saturated.

    In integers, as tt-metal does it, so that nothing depends on how XLA treats subnormal numbers.
    """
    bits = lax.bitcast_convert_type(tiles, jnp.uint32)
    own = (bits >> 23) & 0xFF
    mantissa = jnp.where(own == 0, jnp.uint32(0), (bits & 0x7FFFFF) | 0x800000)
    kept = format.kind.bits - 1
    distance = _over(exponent.astype(jnp.int32)) - own.astype(jnp.int32)
    # One bit more than a mantissa has is zero already; a distance below zero is a value that saturates.
    shift = jnp.clip(24 - kept + distance, 0, 25).astype(jnp.uint32)
    odd = (mantissa >> shift) & 1
    half = (jnp.uint32(1) << shift) >> 1
    rounded = (mantissa + half - jnp.where(half > 0, 1 - odd, 0)) >> shift
    top = 2**kept - 1
    magnitude = jnp.minimum(rounded, top).astype(jnp.int32)
    return jnp.where(tiles < 0, -magnitude, magnitude)


def _bfp_error(tiles: jax.Array, codes: jax.Array, exponent: jax.Array, format: Format) -> jax.Array:
    step = lax.bitcast_convert_type(
        jnp.maximum(exponent, 7).astype(jnp.uint32) - format.kind.fraction << 23, jnp.float32
    )
    return ((tiles - codes.astype(jnp.float32) * _over(step)) ** 2).sum(axis=(1, 3))


def _mx(tiles: jax.Array, format: Format) -> Encoded:
    element = "e2m1" if format.kind.e2m1 else format.option("element")
    top_exponent, mantissa_bits, top = _MX_ELEMENTS[element]
    largest = _largest(tiles)
    if format.scale_rule == "ceil":
        scale = _power_of_two_above(largest / top)
    else:
        if format.scale_rule == "even":
            # Rounded to the element's mantissa first, so that what would saturate gets the next power of two.
            rounded = lax.bitcast_convert_type(largest, jnp.uint32) + (1 << (22 - mantissa_bits))
            largest = lax.bitcast_convert_type(rounded, jnp.float32)
        biased = jnp.clip(_exponent(largest).astype(jnp.int32) - top_exponent, 1, 254)
        scale = lax.bitcast_convert_type(biased.astype(jnp.uint8), jnp.float8_e8m0fnu)
    biased = lax.bitcast_convert_type(scale, jnp.uint8).astype(jnp.uint32)
    # Divided by the power of two: multiplied with its reciprocal, which is one too.
    scaled = tiles * _over(lax.bitcast_convert_type((254 - biased) << 23, jnp.float32))
    if element == "e2m1":
        return _encode_e2m1(scaled), {"scale_inv": scale}
    return jnp.clip(scaled, -top, top).astype(format.dtype), {"scale_inv": scale}


def _nvfp4(tiles: jax.Array, global_scale: jax.Array | None) -> Encoded:
    largest = _largest(tiles)
    if global_scale is None:
        global_scale = global_scale_of(largest.max())
    scaled = jnp.clip(largest / _E2M1_MAX * global_scale, _MIN_E4M3FN, E4M3FN_MAX)
    scale = scaled.astype(jnp.float8_e4m3fn)
    codes = _encode_e2m1(tiles * (global_scale / _over(scale.astype(jnp.float32))))
    return codes, {"scale_inv": scale, "global_scale": global_scale[None]}


def global_scale_of(largest: jax.Array) -> jax.Array:
    """What the scales of an nvfp4 weight are divided by, so that the largest is the largest e4m3fn number."""
    # Smaller weights than 2^-100 would need a scale that float32 does not have; they become zero.
    return jnp.where(largest > 2.0**-100, E4M3FN_MAX * _E2M1_MAX / largest, 1.0)


def _encode_e2m1(values: jax.Array) -> jax.Array:
    """The codes 0..15 of the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, saturated."""
    magnitude = jnp.abs(values)
    # A tie goes to the even code: up at the bounds with an odd code below, down at the others.
    up = sum((magnitude >= bound).astype(jnp.uint8) for bound in (0.75, 1.75, 3.5))
    down = sum((magnitude > bound).astype(jnp.uint8) for bound in (0.25, 1.25, 2.5, 5.0))
    # No negative zero: one value has one code.
    return jnp.where((values < 0) & (up + down > 0), up + down + 8, up + down)


def _exponent(magnitude: jax.Array) -> jax.Array:
    """The biased exponent of float32 magnitudes, 0 for zero."""
    return lax.bitcast_convert_type(magnitude, jnp.uint32) >> 23


def _power_of_two_above(value: jax.Array) -> jax.Array:
    """The least power of two (e8m0) that is not below a positive value; 2^-126 for zero."""
    bits = lax.bitcast_convert_type(value, jnp.uint32)
    biased = (bits >> 23) + ((bits & 0x7FFFFF) > 0).astype(jnp.uint32)
    return lax.bitcast_convert_type(jnp.clip(biased, 1, 254).astype(jnp.uint8), jnp.float8_e8m0fnu)


_ENCODERS: dict[str, Callable[[jax.Array, Format], Encoded]] = {
    "f8_e4m3fn": _float8,
    "f8_e5m2": _float8,
    "int8": _integer,
    "int4": _integer,
    "bfp8": _bfp,
    "bfp4": _bfp,
    "mxfp8": _mx,
    "mxfp4": _mx,
}

"""A stored weight, and its values: exact decoding of every format of policies/formats.py, at run time.

Shapes: O outputs, I inputs, R some of the rows, (P, Q) the tile that shares a scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bombus.policies.formats import PARTS, Format, find_format


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Weight:
    """A weight of `shape` (O, I) as it is stored: its codes, or its values in a plain type, and its parts.

    A stack of experts is one whose arrays have an axis E in front; `shape` is that of one expert.
    """

    codes: jax.Array
    scale_inv: jax.Array | None = None
    zero_point: jax.Array | None = None
    global_scale: jax.Array | None = None
    format: Format = field(metadata={"static": True})
    shape: tuple[int, int] = field(metadata={"static": True})

    @classmethod
    def plain(cls, values: jax.Array) -> Weight:
        """A weight (O, I), or a stack (E, O, I), that is stored as its values."""
        return cls(codes=values, format=find_format(values.dtype), shape=(values.shape[-2], values.shape[-1]))

    def rows(self, first: int, last: int) -> Weight:
        """The rows from `first` up to `last`, where tiles begin and end there."""
        tile = self.format.tile[0] if self.format.is_low else 1
        grid = slice(first // tile, -(-last // tile)) if tile else slice(None)
        parts: dict[str, Any] = {name: part[grid] for name, part in self.parts.items() if name != "global_scale"}
        return replace(self, codes=self.codes[first:last], **parts, shape=(last - first, self.shape[1]))

    @property
    def experts(self) -> int | None:
        """How many experts are stacked; None for a weight that is no stack."""
        return self.codes.shape[0] if self.codes.ndim == 3 else None

    def expert(self, index: jax.Array | int) -> Weight:
        """The weight of one expert of a stack. An index past the end is the last."""
        return jax.tree.map(lambda array: slice_bits(array, index)[0], self)

    @property
    def parts(self) -> dict[str, jax.Array]:
        """name -> array of what there is beside the codes."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}


def dequantize(weight: Weight, dtype: jnp.dtype) -> jax.Array:
    """The whole weight (O, I), or stack (E, O, I), in `dtype`: computed in float32 and rounded once.

    A stack goes expert by expert, so that the float32 values are never all there.
    """
    if not weight.format.is_low:
        return weight.codes.astype(dtype)
    if weight.experts is not None:
        each = lax.map(lambda index: as_bits(dequantize(weight.expert(index), dtype)), jnp.arange(weight.experts))
        return from_bits(each, jnp.dtype(dtype))
    return row_values(weight, jnp.arange(weight.shape[0]), weight.codes).astype(dtype)


def row_values(weight: Weight, rows: jax.Array, codes: jax.Array) -> jax.Array:
    """The float32 values (R, I) of the rows with these numbers and codes of a low-precision weight."""
    if weight.format.packed:
        codes = unpack(codes, weight.shape[1])
    return _values(weight, rows, codes, slice(None))


def half_values(weight: Weight, rows: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The float32 values (R, ceil(I/2)) of the even and of the odd inputs of rows with two codes a byte.

    Without the shuffle that brings them in turn, which costs XLA:CPU more than all the rest. Where I is odd the last
    of the odd inputs stands for nothing.
    """
    return _values(weight, rows, codes & 15, slice(0, None, 2)), _values(weight, rows, codes >> 4, slice(1, None, 2))


def _values(weight: Weight, rows: jax.Array, codes: jax.Array, inputs: slice) -> jax.Array:
    """The float32 values of rows and of some of the inputs, with a code for each."""
    values = _elements(codes, weight.format)
    if weight.zero_point is not None:
        values = values - _per_weight(weight.zero_point, weight, rows, inputs).astype(jnp.float32)
    return values * _scales(weight, rows, inputs)


def _scales(weight: Weight, rows: jax.Array, inputs: slice) -> jax.Array:
    """The float32 scales of rows and inputs, (R, inputs) or (R, 1)."""
    assert weight.scale_inv is not None
    stored = weight.scale_inv.dtype
    # Sliced as bits and converted afterwards: XLA:CPU would convert all of the scales for every tile.
    scale = _per_weight(as_bits(weight.scale_inv), weight, rows, inputs)
    if stored == jnp.float8_e8m0fnu:
        # As the exponent of a float32. 2^-127 is no normal number: XLA:CPU takes it for zero. 255 is refused at load.
        scale = lax.bitcast_convert_type(scale.astype(jnp.uint32) << 23, jnp.float32)
        return scale * 2.0**-weight.format.kind.fraction
    scale = from_bits(scale, stored)
    if stored == jnp.float8_e4m3fn:
        assert weight.global_scale is not None
        return decode_e4m3fn(scale) / weight.global_scale
    return scale.astype(jnp.float32)


def _per_weight(grid: jax.Array, weight: Weight, rows: jax.Array, inputs: slice) -> jax.Array:
    """The grid's number of every weight in the given rows and inputs, or (R, 1) where a row has one."""
    tile_rows, tile_columns = weight.format.tile
    # Truncating division and clipped indices compile to less than Python's floor division and wrapped ones.
    tiles = lax.div(rows, jnp.asarray(tile_rows or weight.shape[0], rows.dtype))
    per_row = grid if grid.shape[0] == 1 else jnp.take(grid, tiles, axis=0, mode="clip")
    if grid.shape[1] == 1:
        return per_row
    count = len(range(weight.shape[1])[inputs])
    step = inputs.step or 1
    # Whole tiles of every second input, filled up to the width of bytes where the last input has no partner.
    width = -(-weight.shape[1] // step)
    if tile_columns % step == 0:
        return jnp.repeat(per_row, tile_columns // step, axis=1)[:, :width]
    columns = jnp.repeat(per_row, tile_columns, axis=1)[:, : weight.shape[1]][:, inputs]
    return jnp.pad(columns, ((0, 0), (0, width - count)))


def as_bits(values: jax.Array) -> jax.Array:
    """Codes or scales as unsigned integers, in which XLA:CPU slices and gathers without widening all of them."""
    if values.dtype.itemsize > 2 or not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return lax.bitcast_convert_type(values, jnp.uint8 if values.dtype.itemsize == 1 else jnp.uint16)


def map_experts(make: Callable[[Any], Weight], each: Any) -> Weight:
    """The stack of what `make` returns for each of the arrays (E, ...), one after the other."""
    one = jax.eval_shape(make, jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape[1:], array.dtype), each))
    types = jax.tree.map(lambda array: array.dtype, each)

    def make_bits(bits: Any) -> Weight:
        return jax.tree.map(as_bits, make(jax.tree.map(from_bits, bits, types)))

    # As bits in and out: XLA:CPU would keep what is narrower than float32 as that around the loop.
    made = lax.map(make_bits, jax.tree.map(as_bits, each))
    return jax.tree.map(lambda array, like: from_bits(array, like.dtype), made, one)


def from_bits(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The inverse of `as_bits`."""
    return bits if bits.dtype == dtype else lax.bitcast_convert_type(bits, dtype)


def slice_bits(values: jax.Array, first: jax.Array | int, size: int = 1) -> jax.Array:
    """`size` of the codes or scales along the first axis, from `first` on, sliced as bits."""
    return from_bits(lax.dynamic_slice_in_dim(as_bits(values), first, size), values.dtype)


def _elements(codes: jax.Array, format: Format) -> jax.Array:
    """The float32 values of codes, one in each place, before any scale."""
    if format.kind.e2m1:
        return _decode_e2m1(codes)
    if codes.dtype == jnp.float8_e4m3fn:
        return decode_e4m3fn(codes)
    if codes.dtype == jnp.float8_e5m2:
        # The upper half of a float16.
        bits = lax.bitcast_convert_type(codes, jnp.uint8).astype(jnp.uint16) << 8
        return lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32)
    values = codes.astype(jnp.float32)
    return values - format.kind.offset if format.kind.offset and not format.zero_points else values


def pack(codes: jax.Array) -> jax.Array:
    """Two 4-bit codes a byte, the even one in the low half: (R, I) -> (R, ceil(I/2)), uint8."""
    codes = jnp.pad(codes.astype(jnp.uint8), ((0, 0), (0, codes.shape[1] % 2)))
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack(packed: jax.Array, inputs: int) -> jax.Array:
    """The 4-bit codes (R, I) in bytes (R, ceil(I/2)); the inverse of `pack`."""
    halves = (packed[:, :, None] >> jnp.array([0, 4], jnp.uint8)) & 15
    return halves.reshape(packed.shape[0], -1)[:, :inputs]


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


def _decode_e2m1(codes: jax.Array) -> jax.Array:
    # Sign and three bits at the top of a float16's exponent and mantissa, 2^14 times too small, subnormals included.
    bits = codes.astype(jnp.uint16)
    half = ((bits & 8) << 12) | ((bits & 7) << 9)
    return lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32) * 2.0**14

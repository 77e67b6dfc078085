"""Stored: keys or values of some slots as a cache keeps them, plain or quantized, and the two products that read them.

Shapes: X rows times key/value heads, S slots, T new tokens, H head size, R query rows that share a key/value head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
from jax import lax

from bombus.kernels import decode_e4m3fn
from bombus.kernels.native_write import write_slots
from bombus.kernels.weight import as_bits, from_bits
from bombus.policies.formats import DType, find_format

# Format -> (type of its codes, smallest and largest value of a code).
CODES: dict[str, tuple[DType, float, float]] = {
    "f8_e4m3fn": (jnp.dtype(jnp.float8_e4m3fn), -448.0, 448.0),
    "int8": (jnp.dtype(jnp.int8), -128.0, 127.0),
    "int4": (jnp.dtype(jnp.uint8), -8.0, 7.0),
}
_BY_TYPE = {dtype: name for name, (dtype, _, _) in CODES.items()}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Stored:
    """Slots (X, S) of vectors (H,): values as they are, or codes of which each stands for code * scale + zero.

    codes: (X, S, H); of int4 (X, S, H / 2), where a byte holds in its low half dimension h and in its high half
    h + H / 2. scale: (X, S), or (X,) where it is fixed; None for plain values. zero: (X, S), or None.
    Every slot is quantized by itself, so that neither other rows nor other tokens change what it holds.
    """

    codes: jax.Array
    scale: jax.Array | None = None
    zero: jax.Array | None = None

    @property
    def slots(self) -> int:
        """The number of slots."""
        return self.codes.shape[1]

    @property
    def format(self) -> str:
        """The name of the format."""
        return str(find_format(self.codes.dtype)) if self.scale is None else _BY_TYPE[self.codes.dtype]

    def encoded(self, new_XTH: jax.Array) -> Stored:
        """New vectors in this format: to the nearest code, ties to even, and what is out of range to the last one.

        Where this holds plain values they may also be (B, T, K, H).
        """
        if self.scale is None:
            return Stored(codes=_cast(new_XTH, self.codes.dtype))
        dtype, low, high = CODES[self.format]
        x = new_XTH.astype(jnp.float32)
        zero = None
        if self.scale.ndim == 1:
            scale = jnp.broadcast_to(self.scale[:, None], x.shape[:2])
        elif self.zero is None:
            scale = jnp.abs(x).max(axis=-1) / high
        else:
            scale = (x.max(axis=-1) - x.min(axis=-1)) / (high - low)
            zero = x.min(axis=-1) - low * scale
        divisor = jnp.where(scale > 0, scale, 1.0)[..., None]
        units = (x if zero is None else x - zero[..., None]) / divisor
        if dtype != jnp.float8_e4m3fn:
            units = jnp.round(units)
        codes = jnp.clip(units, low, high)
        packed = _pack(codes) if self.format == "int4" else codes.astype(dtype)
        return Stored(codes=packed, scale=self.scale if self.scale.ndim == 1 else scale, zero=zero)

    def written(self, new: Stored, first: jax.Array) -> Stored:
        """With the encoded vectors at slot `first` and after."""
        return self._with(new, lambda old, new: write_slots(old, new, first))

    def written_around(self, new: Stored, length: jax.Array) -> Stored:
        """A ring, in which slot s lives at s % S, with the last S of the encoded vectors of slots from `length` on."""
        tokens = new.slots
        newest = length + tokens - 1
        index_S = tokens - 1 - (newest - jnp.arange(self.slots, dtype=jnp.int32)) % self.slots

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            taken = jnp.take(as_bits(new), jnp.maximum(index_S, 0), axis=1)
            fresh = (index_S >= 0).reshape(-1, *([1] * (old.ndim - 2)))
            return from_bits(jnp.where(fresh, taken, as_bits(old)), old.dtype)

        return self._with(new, write)

    def take(self, rows_X: jax.Array) -> Stored:
        """These rows."""
        taken = jax.tree.map(lambda array: jnp.take(as_bits(array), rows_X, axis=0, mode="clip"), self)
        return jax.tree.map(lambda bits, array: from_bits(bits, array.dtype), taken, self)

    def scores(self, q_XRH: jax.Array) -> jax.Array:
        """The products of queries and vectors, (X, R, S), accumulated in float32."""
        if self.scale is None:
            q_XRH = q_XRH.astype(self.codes.dtype)
            return jnp.einsum("xrh,xsh->xrs", q_XRH, self.codes, preferred_element_type=jnp.float32)
        scores = _apart("xrh,xsh->xrs", q_XRH, self) * self._over(self.scale)
        if self.zero is None:
            return scores
        return scores + q_XRH.astype(jnp.float32).sum(axis=-1, keepdims=True) * self._over(self.zero)

    def mixed(self, weights_XRS: jax.Array, dtype: DType) -> jax.Array:
        """The sums of the vectors with float32 weights, (X, R, H), accumulated in float32; codes are taken as dtype."""
        if self.scale is None:
            weights_XRS = weights_XRS.astype(self.codes.dtype)
            return jnp.einsum("xrs,xsh->xrh", weights_XRS, self.codes, preferred_element_type=jnp.float32)
        mixed = _apart("xrs,xsh->xrh", (weights_XRS * self._over(self.scale)).astype(dtype), self)
        if self.zero is None:
            return mixed
        return mixed + (weights_XRS * self._over(self.zero)).sum(axis=-1, keepdims=True)

    def units(self, dtype: DType) -> jax.Array:
        """The values of the codes before scale and zero, (X, S, H), exact in every 16-bit type."""
        if self.codes.dtype == jnp.float8_e4m3fn:
            return decode_e4m3fn(self.codes).astype(dtype)
        if self.format == "int4":
            halves = jnp.concatenate((self.codes & 15, self.codes >> 4), axis=-1)
            return (halves.astype(jnp.int8) - 8).astype(dtype)
        return self.codes.astype(dtype)

    def _with(self, new: Stored, write: Callable[[jax.Array, jax.Array], jax.Array]) -> Stored:
        changed = {
            field.name: write(old, getattr(new, field.name))
            for field in fields(self)
            if (old := getattr(self, field.name)) is not None and old.ndim > 1
        }
        return replace(self, **changed)

    @staticmethod
    def _over(grid: jax.Array) -> jax.Array:
        """Scales or zeros, to be broadcast over (X, R, S)."""
        return grid[:, None, None] if grid.ndim == 1 else grid[:, None, :]


def empty_stored(
    format: str | None, shape: tuple[int, int, int], dtype: DType, *, zero_points: bool, fixed_X: jax.Array | None
) -> Stored:
    """Free slots (X, S, H) in a format; None for values of type `dtype`.

    fixed_X: the largest magnitude that a code must reach, (X,), where scales are fixed; None for scales of each slot,
    with zero points if they are asked for and the codes are integers.
    """
    rows, slots, size = shape
    if format not in CODES:
        return Stored(codes=jnp.zeros(shape, dtype if format is None else find_format(format).dtype))
    code_type, _, high = CODES[format]
    codes = jnp.zeros((rows, slots, size // 2 if format == "int4" else size), code_type)
    if fixed_X is not None:
        return Stored(codes=codes, scale=fixed_X / high)
    zero = jnp.zeros((rows, slots), jnp.float32) if zero_points and format != "f8_e4m3fn" else None
    return Stored(codes=codes, scale=jnp.zeros((rows, slots), jnp.float32), zero=zero)


def _apart(equation: str, x: jax.Array, stored: Stored) -> jax.Array:
    """The product of x and the codes' values, which are made for it alone and gone afterwards."""

    def run(x: jax.Array, stored: Stored) -> jax.Array:
        x, stored = lax.optimization_barrier((x, stored))
        return jnp.einsum(equation, x, stored.units(x.dtype), preferred_element_type=jnp.float32)

    def guarded(x: jax.Array, stored: Stored) -> jax.Array:
        # XLA:CPU fuses the conversion with the write before it, and then copies the codes of all layers. It fuses
        # nothing into a conditional. The condition holds always, which XLA does not know.
        bits = lax.bitcast_convert_type(x.reshape(-1)[0].astype(jnp.float32), jnp.int32)
        found = jax.eval_shape(run, x, stored)
        return lax.cond((bits | 1) != 0, run, lambda *_: jnp.zeros(found.shape, found.dtype), x, stored)

    return lax.platform_dependent(x, stored, cpu=guarded, default=run)


def _cast(new_XTH: jax.Array, dtype: DType) -> jax.Array:
    if dtype == jnp.float16 and new_XTH.dtype != dtype:  # beyond whose range lies infinity
        top = jnp.asarray(jnp.finfo(dtype).max, new_XTH.dtype)
        new_XTH = jnp.clip(new_XTH, -top, top)
    return new_XTH.astype(dtype)


def _pack(codes: jax.Array) -> jax.Array:
    """Codes -8 to 7 (..., H) as bytes (..., H / 2)."""
    low, high = jnp.split((codes + 8).astype(jnp.uint8), 2, axis=-1)
    return low | (high << 4)

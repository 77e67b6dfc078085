"""A stored weight in another storage format, some rows at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bombus.kernels.quantize import global_scale_of, quantize
from bombus.kernels.weight import Weight, as_bits, dequantize, from_bits
from bombus.policies.formats import Format

_VALUES_AT_A_TIME = 2**24  # 64 MB in float32


def requantize(weight: Weight, format: Format) -> Weight:
    """A stored weight in another format, by way of float32. Where only the type of its scales differs they are cast.

    A large weight goes some rows at a time, a stack expert by expert, so that its float32 values are never all there.
    """
    if weight.scale_inv is not None and weight.format.same_codes(format):
        scale_inv = weight.scale_inv.astype(format.scale_type)
        return replace(weight, scale_inv=scale_inv, format=format.canonical)
    if weight.experts is not None:
        each = (requantize(weight.expert(index), format) for index in range(weight.experts))
        return _stacked([jax.block_until_ready(expert) for expert in each])
    outputs, inputs = weight.shape
    tiles = (weight.format.tile[0], format.tile[0]) if weight.format.is_low else (format.tile[0],)
    step = max(1, _VALUES_AT_A_TIME // max(inputs, 1)) // math.lcm(*tiles) * math.lcm(*tiles) if all(tiles) else 0
    if not 0 < step < outputs:
        return _requantize(weight, format)
    bounds = [(first, min(first + step, outputs)) for first in range(0, outputs, step)]
    shared = None
    if format.kind.global_scale:
        shared = global_scale_of(jnp.stack([_largest_of(weight.rows(*some)) for some in bounds]).max())
    # Waiting for each piece bounds the memory.
    pieces = [jax.block_until_ready(_requantize(weight.rows(*some), format, shared)) for some in bounds]
    return _joined(pieces, weight.shape)


@partial(jax.jit, static_argnames="format")
def _requantize(weight: Weight, format: Format, global_scale: jax.Array | None = None) -> Weight:
    return quantize(dequantize(weight, jnp.dtype(jnp.float32)), format, global_scale)


@jax.jit
def _largest_of(weight: Weight) -> jax.Array:
    return jnp.abs(dequantize(weight, jnp.dtype(jnp.float32))).max()


def _joined(pieces: list[Weight], shape: tuple[int, int]) -> Weight:
    """Rows that were quantized apart, as one weight."""
    names = ("codes", *(name for name in pieces[0].parts if name != "global_scale"))
    arrays: dict[str, Any] = {name: jnp.concatenate([getattr(piece, name) for piece in pieces]) for name in names}
    return replace(pieces[0], **arrays, shape=shape)


@jax.jit
def _stacked(experts: list[Weight]) -> Weight:
    """Weights of one shape and format as a stack."""
    return jax.tree.map(
        lambda *arrays: from_bits(jnp.stack([as_bits(array) for array in arrays]), arrays[0].dtype), *experts
    )

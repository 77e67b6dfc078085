"""A stored weight in another storage format, some rows at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from bombus.kernels.program import program
from bombus.kernels.quantize import global_scale_of, quantize
from bombus.kernels.weight import Weight, as_bits, dequantize, from_bits
from bombus.policies.formats import Format

_VALUES_AT_A_TIME = 2**24
_BYTES_AT_A_TIME = 4 * _VALUES_AT_A_TIME  # which they take in float32


def requantize(weight: Weight, format: Format) -> Weight:
    """A stored weight in another format, by way of float32. Where only the type of its scales differs they are cast.

    A stack goes expert by expert, a large weight some rows at a time where all of its float32 values would be there.
    """
    if weight.scale_inv is not None and weight.format.same_codes(format):
        scale_inv = weight.scale_inv.astype(format.scale_type)
        return replace(weight, scale_inv=scale_inv, format=format.canonical)
    if weight.experts is not None:
        each = (requantize(weight.expert(index), format) for index in range(weight.experts))
        return _stacked(None, [jax.block_until_ready(expert) for expert in each])
    outputs, inputs = weight.shape
    tiles = (weight.format.tile[0], format.tile[0]) if weight.format.is_low else (format.tile[0],)
    step = max(1, _VALUES_AT_A_TIME // max(inputs, 1)) // math.lcm(*tiles) * math.lcm(*tiles) if all(tiles) else 0
    if not 0 < step < outputs or _requantize.temporary_bytes(format, weight) <= _BYTES_AT_A_TIME:
        return _requantize(format, weight)
    bounds = [(first, min(first + step, outputs)) for first in range(0, outputs, step)]
    shared = None
    if format.kind.global_scale:
        shared = global_scale_of(jnp.stack([_largest_of(None, weight.rows(*some)) for some in bounds]).max())
    # Waiting for each piece bounds the memory.
    pieces = [jax.block_until_ready(_requantize(format, weight.rows(*some), shared)) for some in bounds]
    return _joined(pieces, weight.shape)


@program
def _requantize(format: Format, weight: Weight, global_scale: jax.Array | None = None) -> Weight:
    return quantize(dequantize(weight, jnp.dtype(jnp.float32)), format, global_scale)


@program
def _largest_of(_: None, weight: Weight) -> jax.Array:
    return jnp.abs(dequantize(weight, jnp.dtype(jnp.float32))).max()


def _joined(pieces: list[Weight], shape: tuple[int, int]) -> Weight:
    """Rows that were quantized apart, as one weight."""
    names = ("codes", *(name for name in pieces[0].parts if name != "global_scale"))
    arrays: dict[str, Any] = {name: _concatenated(None, [getattr(piece, name) for piece in pieces]) for name in names}
    return replace(pieces[0], **arrays, shape=shape)


@program
def _concatenated(_: None, pieces: list[jax.Array]) -> jax.Array:
    return jnp.concatenate(pieces)


@program
def _stacked(_: None, experts: list[Weight]) -> Weight:
    """Weights of one shape and format as a stack."""
    return jax.tree.map(
        lambda *arrays: from_bits(jnp.stack([as_bits(array) for array in arrays]), arrays[0].dtype), *experts
    )

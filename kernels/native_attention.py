"""Attention by the C++ kernels, on keys and values as a cache stores them.

Shapes: B batch, T tokens, N query heads, X = B times key/value heads, S slots, H and V sizes of a key and of a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from bombus.kernels import native

_PLAIN = ("float32", "bfloat16", "float16")
_CODES = ("float8_e4m3fn", "int8", "uint8")


class Vectors(NamedTuple):
    """Keys or values: plain, or codes that stand for code * scale + zero.

    codes: (X, S, H), or two four-bit codes a byte, of dimension h in the low half and h + H / 2 in the high one.
    scale: (X, S) or (X,). zero: (X, S).
    """

    codes: jax.Array
    scale: jax.Array | None
    zero: jax.Array | None

    @property
    def size(self) -> int:
        """H."""
        return self.codes.shape[2] * (2 if self.codes.dtype == jnp.uint8 else 1)


class ReadVectors(NamedTuple):
    """Keys and values, and which slots each token sees, (B, T, S)."""

    keys: Vectors
    values: Vectors
    mask: jax.Array


def attention_runs(q_BTNH: jax.Array, sources: Sequence[ReadVectors]) -> bool:
    """Whether the kernels take these on CPU: types that they know, and no empty array."""
    known = all(
        side.codes.dtype.name in (_PLAIN if side.scale is None else _CODES)
        for source in sources
        for side in (source.keys, source.values)
    )
    return q_BTNH.size > 0 and known and q_BTNH.dtype.name in _PLAIN and native.library().loaded is not None


def attention(
    q_BTNH: jax.Array,
    sources: Sequence[ReadVectors],
    sinks_N: jax.Array | None,
    *,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """softmax(softcap * tanh(q k * scale / softcap)) v over all sources, (B, T, N, V) in the type of q. CPU only.

    sinks_N: one more score of each head, whose weight goes nowhere. A query that sees nothing gets zeros.
    """
    out_type = q_BTNH.dtype if q_BTNH.dtype == jnp.bfloat16 else jnp.dtype(jnp.float32)

    def call(q_BTNH: jax.Array, sources: Sequence[ReadVectors], sinks_N: jax.Array | None) -> jax.Array:
        arrays, shapes = [] if sinks_N is None else [sinks_N.astype(jnp.float32)], []
        for source in sources:
            arrays.append(source.mask)
            for side in (source.keys, source.values):
                arrays += [part for part in side if part is not None]
                shapes += [0 if side.scale is None else 3 - side.scale.ndim, int(side.zero is not None)]
        made = jax.ShapeDtypeStruct((*q_BTNH.shape[:3], sources[0].values.size), out_type)
        run = jax.ffi.ffi_call("bombus_attention", made)
        numbers = {"scale": np.float32(scale), "softcap": np.float32(0.0 if softcap is None else softcap)}
        result = run(q_BTNH, *arrays, shapes=np.array(shapes, np.int64), sinks=sinks_N is not None, **numbers)
        return native.varying_as(result, q_BTNH, *arrays)

    batching = custom_vmap(call)

    @batching.def_vmap
    def batched(size: int, moving: Any, q: jax.Array, sources: Any, sinks: jax.Array | None) -> tuple[jax.Array, bool]:
        arrays, tree = jax.tree.flatten((q, sources, sinks))
        moves = jax.tree.leaves(tuple(moving))

        def one(index: jax.Array) -> jax.Array:
            taken = [array[index] if moves else array for array, moves in zip(arrays, moves, strict=True)]
            return batching(*jax.tree.unflatten(tree, taken))

        if moving[2]:
            return jax.lax.map(one, jnp.arange(size)), True
        # Everything that does not move is there once for each: they become rows of the batch.
        whole = [
            (array if moves else jnp.broadcast_to(array, (size, *array.shape)))
            for array, moves in zip(arrays, moves, strict=True)
        ]
        q, sources, _ = jax.tree.unflatten(tree, [array.reshape(-1, *array.shape[2:]) for array in whole])
        made = batching(q, sources, sinks)
        return made.reshape(size, -1, *made.shape[1:]), True

    return batching(q_BTNH, list(sources), sinks_N).astype(q_BTNH.dtype)

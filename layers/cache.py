"""KV cache of static length.

Shapes: B batch, T new tokens, S cached tokens, K key/value heads, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bombus.policies.formats import DType


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of every layer, (B*K, S, H) each and NOT repeated for the query heads; see CacheShape.

    Row and head are one axis, because that is the form of the product that reads them: with a reshape in between
    XLA:CPU fuses the write twice and copies the whole cache three times per step (benchmarks/README.md).
    `mask` (B, S) marks the slots that hold real tokens, `length` () counts the slots used, padding included,
    and `positions` (B,) is the position that each row's next token has.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    mask: jax.Array
    length: jax.Array
    positions: jax.Array

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return self.mask.shape[1]


class CacheShape(NamedTuple):
    """What a layer caches of a token: a key of `key_dim` and a value of `value_dim` for each of its heads."""

    num_kv_heads: int
    key_dim: int
    value_dim: int


def empty_cache(num_layers: int, batch: int, capacity: int, *, shape: CacheShape, dtype: DType) -> Cache:
    """A cache with `capacity` free slots per row."""
    slots = (batch * shape.num_kv_heads, capacity)
    return Cache(
        keys=tuple(jnp.zeros((*slots, shape.key_dim), dtype) for _ in range(num_layers)),
        values=tuple(jnp.zeros((*slots, shape.value_dim), dtype) for _ in range(num_layers)),
        mask=jnp.zeros((batch, capacity), jnp.bool_),
        length=jnp.zeros((), jnp.int32),
        positions=jnp.zeros((batch,), jnp.int32),
    )


def heads_first(new_BTKH: jax.Array) -> jax.Array:
    """Keys or values in the layout of the cache, (B*K, T, H)."""
    batch, tokens, heads, head_dim = new_BTKH.shape
    return new_BTKH.transpose(0, 2, 1, 3).reshape(batch * heads, tokens, head_dim)


def write(cached_XSH: jax.Array, new_XTH: jax.Array, length: jax.Array) -> jax.Array:
    """The cached keys or values (X = B*K) with the new ones at slot `length` and after."""
    return lax.dynamic_update_slice(cached_XSH, new_XTH.astype(cached_XSH.dtype), (0, length, 0))

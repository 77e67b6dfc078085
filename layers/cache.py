"""KV cache of static length.

Shapes: B batch, S cached tokens, K key/value heads, H head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from bombus.policies.formats import DType
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of every layer, (B, K, S, H) each and NOT repeated for the query heads.

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


def empty_cache(num_layers: int, batch: int, capacity: int, *, num_kv_heads: int, head_dim: int, dtype: DType) -> Cache:
    """A cache with `capacity` free slots per row."""
    shape = (batch, num_kv_heads, capacity, head_dim)
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in range(num_layers)),
        values=tuple(jnp.zeros(shape, dtype) for _ in range(num_layers)),
        mask=jnp.zeros((batch, capacity), jnp.bool_),
        length=jnp.zeros((), jnp.int32),
        positions=jnp.zeros((batch,), jnp.int32),
    )


def write(cached_BKSH: jax.Array, new_BTKH: jax.Array, length: jax.Array) -> jax.Array:
    """The cached keys or values with the new ones at slot `length` and after."""
    new_BKTH = new_BTKH.transpose(0, 2, 1, 3).astype(cached_BKSH.dtype)
    return lax.dynamic_update_slice(cached_BKSH, new_BKTH, (0, 0, length, 0))

"""Grouped-query attention (Ainslie et al. 2023) with rotary positions and an optional KV cache.

Shapes: B batch, T query tokens, S key tokens, D hidden, N query heads, K key/value heads, G = N/K, H head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from bombus.layers.cache import write
from bombus.layers.dense import Dense
from bombus.layers.norm import RMSNorm
from bombus.layers.rotary import rotate
from flax import nnx


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What all layers of one call share: rotary tables, the (B, T, S) mask, and the first free slot of the cache."""

    rotary: tuple[jax.Array, jax.Array]
    mask_BTS: jax.Array
    length: jax.Array | None = None


class Attention(nnx.Module):
    """x (B, T, D) -> (B, T, D), and the layer's updated (keys, values).

    `head_norm_epsilon` switches on an RMSNorm over each head of query and key (Qwen3).
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        output_bias: bool = False,
        head_norm_epsilon: float | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.query = Dense(hidden_size, num_heads * head_dim, bias=bias, rngs=rngs)
        self.key = Dense(hidden_size, num_kv_heads * head_dim, bias=bias, rngs=rngs)
        self.value = Dense(hidden_size, num_kv_heads * head_dim, bias=bias, rngs=rngs)
        self.output = Dense(num_heads * head_dim, hidden_size, bias=output_bias, rngs=rngs)
        self.query_norm = None if head_norm_epsilon is None else RMSNorm(head_dim, epsilon=head_norm_epsilon)
        self.key_norm = None if head_norm_epsilon is None else RMSNorm(head_dim, epsilon=head_norm_epsilon)

    def __call__(
        self, x: jax.Array, context: AttentionContext, cached: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        heads = (*x.shape[:2], -1, self.head_dim)
        q_BTNH, k_BTKH, v_BTKH = (layer(x).reshape(heads) for layer in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        q_BTNH, k_BTKH = rotate(q_BTNH, context.rotary), rotate(k_BTKH, context.rotary)
        if cached is not None and context.length is not None:
            cached = (write(cached[0], k_BTKH, context.length), write(cached[1], v_BTKH, context.length))
            k_BKSH, v_BKSH = cached
        else:
            k_BKSH, v_BKSH = k_BTKH.transpose(0, 2, 1, 3), v_BTKH.transpose(0, 2, 1, 3)
        mixed = attend(q_BTNH, k_BKSH, v_BKSH, context.mask_BTS)
        return self.output(mixed.reshape(*x.shape[:2], -1)), cached


def attend(q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(H)) v as (B, T, N, H): softmax in float32, key/value heads shared, never repeated.

    A query whose mask is empty (padding) gets a finite, meaningless result.
    """
    batch, tokens, num_heads, head_dim = q_BTNH.shape
    num_kv_heads = k_BKSH.shape[1]
    groups = num_heads // num_kv_heads
    # Group and token become one axis of rows: a batched matrix product in the layout of the cache.
    q = q_BTNH.transpose(0, 2, 1, 3).reshape(batch, num_kv_heads, groups * tokens, head_dim)
    scores = jnp.einsum("bkrh,bksh->bkrs", q.astype(k_BKSH.dtype), k_BKSH, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, num_kv_heads, groups, tokens, -1) / math.sqrt(head_dim)
    scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).reshape(batch, num_kv_heads, groups * tokens, -1)
    mixed = jnp.einsum("bkrs,bksh->bkrh", weights.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32)
    mixed = mixed.reshape(batch, num_heads, tokens, head_dim).transpose(0, 2, 1, 3)
    return mixed.astype(q_BTNH.dtype)

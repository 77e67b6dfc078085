"""Grouped-query attention (Ainslie et al. 2023) with rotary positions and an optional KV cache.

Shapes: B batch, T query tokens, S key tokens, D hidden, N query heads, K key/value heads, H head size, X = B*K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.layers.cache import heads_first, write
from bombus.layers.dense import Dense
from bombus.layers.norm import RMSNorm
from bombus.layers.rotary import rotate


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
    ) -> None:
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.query = Dense(hidden_size, num_heads * head_dim, bias=bias)
        self.key = Dense(hidden_size, num_kv_heads * head_dim, bias=bias)
        self.value = Dense(hidden_size, num_kv_heads * head_dim, bias=bias)
        self.output = Dense(num_heads * head_dim, hidden_size, bias=output_bias)
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
        k_XSH, v_XSH = heads_first(k_BTKH), heads_first(v_BTKH)
        if cached is not None and context.length is not None:
            cached = (write(cached[0], k_XSH, context.length), write(cached[1], v_XSH, context.length))
            k_XSH, v_XSH = cached
        mixed = attend(q_BTNH, k_XSH, v_XSH, context.mask_BTS)
        return self.output(mixed.reshape(*x.shape[:2], -1)), cached


def attend(q_BTNH: jax.Array, k_XSH: jax.Array, v_XSH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(H)) v as (B, T, N, H): softmax in float32, key/value heads shared, never repeated.

    A query whose mask is empty (padding) gets a finite, meaningless result.
    """
    batch, tokens, num_heads, head_dim = q_BTNH.shape
    merged, slots, _ = k_XSH.shape
    # The query heads that share a key/value head, and their tokens, become the rows R of one batched product.
    q_XRH = q_BTNH.transpose(0, 2, 1, 3).reshape(merged, -1, head_dim).astype(k_XSH.dtype)
    scores = jnp.einsum("xrh,xsh->xrs", q_XRH, k_XSH, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    scores = scores.reshape(batch, num_heads, tokens, slots)
    scores = jnp.where(mask_BTS[:, None], scores, jnp.finfo(jnp.float32).min)
    weights_XRS = jax.nn.softmax(scores, axis=-1).reshape(merged, -1, slots).astype(v_XSH.dtype)
    mixed = jnp.einsum("xrs,xsh->xrh", weights_XRS, v_XSH, preferred_element_type=jnp.float32)
    mixed_BTNH = mixed.reshape(batch, num_heads, tokens, head_dim).transpose(0, 2, 1, 3)
    return mixed_BTNH.astype(q_BTNH.dtype)

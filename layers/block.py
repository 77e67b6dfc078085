"""The pre-norm decoder block that Llama introduced and most decoders share.

Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import jax
from flax import nnx

from bombus.layers.attention import Attention, AttentionContext
from bombus.layers.feed_forward import GatedFeedForward
from bombus.layers.norm import RMSNorm


class Block(nnx.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); x (B, T, D) keeps its type."""

    def __init__(
        self, *, self_attention: Attention, ffn: GatedFeedForward, hidden_size: int, norm_epsilon: float
    ) -> None:
        self.self_attention_norm = RMSNorm(hidden_size, epsilon=norm_epsilon)
        self.self_attention = self_attention
        self.output_norm = RMSNorm(hidden_size, epsilon=norm_epsilon)
        self.ffn = ffn

    def __call__(
        self, x: jax.Array, context: AttentionContext, cached: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        mixed, cached = self.self_attention(self.self_attention_norm(x), context, cached)
        x = x + mixed.astype(x.dtype)
        return x + self.ffn(self.output_norm(x)).astype(x.dtype), cached

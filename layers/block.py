"""The decoder block: attention and feed-forward, each added to the stream, with norms before or after them.

Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from bombus.layers.attention import Attention
from bombus.layers.context import AttentionContext
from bombus.layers.latent_attention import LatentAttention
from bombus.layers.layer_cache import LayerCache

Norm = Callable[[jax.Array], jax.Array]


class Block(nnx.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); x (B, T, D) keeps its type.

    self_attention_norm, output_norm: the norms before attention and before the feed-forward (as in Llama).
    self_attention_output_norm, ffn_output_norm: the norms of what these two return (OLMo 2; Gemma 2 has all four).
    parallel: both read the same x and are added at once (GPT-NeoX); without an `output_norm` the feed-forward then
        reads what attention reads (Phi).
    """

    def __init__(
        self,
        *,
        self_attention: Attention | LatentAttention,
        ffn: Callable[[jax.Array], jax.Array],
        self_attention_norm: Norm | None = None,
        self_attention_output_norm: Norm | None = None,
        output_norm: Norm | None = None,
        ffn_output_norm: Norm | None = None,
        parallel: bool = False,
    ) -> None:
        self.self_attention_norm = self_attention_norm
        self.self_attention = self_attention
        self.self_attention_output_norm = self_attention_output_norm
        self.output_norm = output_norm
        self.ffn = ffn
        self.ffn_output_norm = ffn_output_norm
        self.parallel = parallel

    def __call__(
        self, x: jax.Array, context: AttentionContext, cached: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        read = self.attention_input(x)
        mixed, cached = self.self_attention(read, context, cached)
        mixed = _normed(self.self_attention_output_norm, mixed)
        if self.parallel:
            both = mixed + self._feed_forward(read if self.output_norm is None else x).astype(mixed.dtype)
            return x + both.astype(x.dtype), cached
        x = x + mixed.astype(x.dtype)
        return x + self._feed_forward(x).astype(x.dtype), cached

    def attention_input(self, x: jax.Array) -> jax.Array:
        """What attention reads of the stream x."""
        return _normed(self.self_attention_norm, x)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        return _normed(self.ffn_output_norm, self.ffn(_normed(self.output_norm, x)))


def _normed(norm: Norm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)

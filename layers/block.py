"""The decoder block: attention and feed-forward, each added to the stream, with norms before or after them.

Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from typing import Protocol

import jax
from flax import nnx

from bombus.layers.attention import Attention
from bombus.layers.context import AttentionContext
from bombus.layers.latent_attention import LatentAttention
from bombus.layers.layer_cache import LayerCache
from bombus.layers.norm import Norm, normed


class FeedForwardLayer(Protocol):
    """A feed-forward: of norm(x), and added to `residual` where there is one."""

    def __call__(self, x: jax.Array, *, norm: Norm | None = None, residual: jax.Array | None = None) -> jax.Array: ...


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
        ffn: FeedForwardLayer,
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
        if self.parallel:
            read = self.attention_input(x)
            mixed, cached = self.self_attention(read, context, cached)
            mixed = normed(self.self_attention_output_norm, mixed)
            fed = self.ffn(read) if self.output_norm is None else self.ffn(x, norm=self.output_norm)
            both = mixed + normed(self.ffn_output_norm, fed).astype(mixed.dtype)
            return x + both.astype(x.dtype), cached
        # A product adds its result to the stream itself, where no norm comes in between.
        residual = x if self.self_attention_output_norm is None else None
        mixed, cached = self.self_attention(x, context, cached, norm=self.self_attention_norm, residual=residual)
        x = mixed if residual is not None else x + normed(self.self_attention_output_norm, mixed).astype(x.dtype)
        if self.ffn_output_norm is None:
            return self.ffn(x, norm=self.output_norm, residual=x), cached
        return x + self.ffn_output_norm(self.ffn(x, norm=self.output_norm)).astype(x.dtype), cached

    def attention_input(self, x: jax.Array) -> jax.Array:
        """What attention reads of the stream x."""
        return normed(self.self_attention_norm, x)

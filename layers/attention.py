"""Grouped-query attention (Ainslie et al. 2023), with every option that decoders have, and an optional KV cache.

Shapes: B batch, T query tokens, S key tokens, D hidden, N query heads, K key/value heads, H head size, X = B*K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import accumulate
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from bombus.kernels.native_attention import ReadVectors, Vectors, attention, attention_runs
from bombus.kernels.native_rows import rotate_together
from bombus.kernels.native_write import heads_first
from bombus.layers.context import AttentionContext
from bombus.layers.dense import Dense, dense_together
from bombus.layers.layer import Layer, declare
from bombus.layers.layer_cache import LayerCache, Source
from bombus.layers.norm import Norm, RMSNorm
from bombus.layers.rotary import Rotary
from bombus.layers.stored import Stored


class Attention(Layer):
    """x (B, T, D) -> (B, T, D), and the layer's updated cache.

    rotary: how positions turn queries and keys; None where they do not. interleaved: see `rotate`.
    window: how many of the last slots a query sees, its own included; None for all.
    query_norm, key_norm: norms over each head, or with norm_over="all" over all heads before they are split (OLMo 2).
    scale, softcap, sinks: see `attend`. With `sinks` the layer has a parameter of that name, (N,).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        output_bias: bool = False,
        rotary: Rotary | None,
        interleaved: bool = False,
        window: int | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        scale: float | None = None,
        query_norm: Callable[[jax.Array], jax.Array] | None = None,
        key_norm: Callable[[jax.Array], jax.Array] | None = None,
        norm_over: Literal["head", "all"] = "head",
    ) -> None:
        self.head_dim = head_dim
        self.rotary = rotary
        self.interleaved = interleaved
        self.window = window
        self.softcap = softcap
        self.scale = scale
        self.query = Dense(hidden_size, num_heads * head_dim, bias=bias)
        self.key = Dense(hidden_size, num_kv_heads * head_dim, bias=bias)
        self.value = Dense(hidden_size, num_kv_heads * head_dim, bias=bias)
        self.output = Dense(num_heads * head_dim, hidden_size, bias=output_bias)
        self.query_norm = query_norm
        self.key_norm = key_norm
        self.norm_over = norm_over
        self.sinks = declare((num_heads,), jnp.dtype(jnp.float32)) if sinks else None

    def __call__(
        self,
        x: jax.Array,
        context: AttentionContext,
        cached: LayerCache | None = None,
        *,
        norm: Norm | None = None,
        residual: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Of norm(x), and added to `residual` where there is one."""
        query, key, value = dense_together(x, (self.query, self.key, self.value), norm=norm)
        q_BTNH, k_BTKH = self._turned(query, key, context)
        v_BTKH = self._heads(value, None)
        if cached is not None and context.length is not None:
            cached, sources = cached.updated(k_BTKH, v_BTKH, context, self.window)
        else:
            keys, values = (Stored(codes=heads_first(new_BTKH)) for new_BTKH in (k_BTKH, v_BTKH))
            sources = [Source(keys, values, context.mask(self.window))]
        mixed = attend_to(q_BTNH, sources, scale=self.scale, softcap=self.softcap, sinks_N=self._sinks())
        return self.output(mixed.reshape(*x.shape[:2], -1), residual=residual), cached

    def keys(self, x: jax.Array) -> jax.Array:
        """The keys of x before they are normed and turned: their type is what a cache holds."""
        return self.key(x)

    def _turned(self, query: jax.Array, key: jax.Array, context: AttentionContext) -> tuple[jax.Array, ...]:
        """The heads of queries and keys, normed and turned: at once, where the norms are RMS norms of heads."""
        both = ((query, self.query_norm), (key, self.key_norm))
        of_heads = [
            norm
            for x, norm in both
            if isinstance(norm, RMSNorm)
            and self.norm_over == "head"
            and norm.output_type_of("scale", x.dtype) == x.dtype
        ]
        together = self.rotary is not None and len(of_heads) == 2
        heads = tuple(self._heads(x, None if together else norm) for x, norm in both)
        if self.rotary is None:
            return heads
        return rotate_together(
            heads,
            context.tables(self.rotary, self.head_dim),
            tuple(norm.scale.get_value() for norm in of_heads) if together else (None, None),
            norms=tuple(norm.numbers for norm in of_heads) if together else (None, None),
            interleaved=self.interleaved,
        )

    def _heads(self, projected: jax.Array, norm: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
        if norm is not None and self.norm_over == "all":
            projected = norm(projected)
        heads = projected.reshape(*projected.shape[:2], -1, self.head_dim)
        return norm(heads) if norm is not None and self.norm_over == "head" else heads

    def _sinks(self) -> jax.Array | None:
        if self.sinks is None:
            return None
        sinks = self.sinks.get_value()
        return sinks.astype(self.compute_type("sinks", sinks.dtype))


def attend(
    q_BTNH: jax.Array,
    k_XSH: jax.Array,
    v_XSH: jax.Array,
    mask_BTS: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k * scale) v as (B, T, N, H): softmax in float32, key/value heads shared, never repeated.

    scale: 1 / sqrt(H) unless given. softcap: c * tanh(score / c) of the scaled scores (Gemma 2).
    sinks_N: one more score of each head, whose weight goes nowhere (gpt-oss). Values may have a head size of their own.
    A query whose mask is empty (padding) gets a finite, meaningless result.
    """
    source = Source(Stored(codes=k_XSH), Stored(codes=v_XSH), mask_BTS)
    return attend_to(q_BTNH, [source], scale=scale, softcap=softcap, sinks_N=sinks_N)


def attend_to(
    q_BTNH: jax.Array,
    sources: Sequence[Source],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """As `attend`, with one softmax over the keys of all sources."""
    scale = 1 / math.sqrt(q_BTNH.shape[-1]) if scale is None else scale
    if not attention_runs(q_BTNH, _arrays(sources)):
        return _with_xla(scale, softcap, q_BTNH, sources, sinks_N)
    native, xla = (partial(run, scale, softcap) for run in (_native, _with_xla))
    return lax.platform_dependent(q_BTNH, list(sources), sinks_N, cpu=native, default=xla)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _native(
    scale: float, softcap: float | None, q_BTNH: jax.Array, sources: Sequence[Source], sinks_N: jax.Array | None
) -> jax.Array:
    return attention(q_BTNH, _arrays(sources), sinks_N, scale=scale, softcap=softcap)


@_native.defjvp
def _native_jvp(scale: float, softcap: float | None, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_with_xla, scale, softcap), primals, tangents)


def _arrays(sources: Sequence[Source]) -> list[ReadVectors]:
    def of(stored: Stored) -> Vectors:
        return Vectors(stored.codes, stored.scale, stored.zero)

    return [ReadVectors(of(source.keys), of(source.values), source.mask) for source in sources]


def _with_xla(
    scale: float, softcap: float | None, q_BTNH: jax.Array, sources: Sequence[Source], sinks_N: jax.Array | None
) -> jax.Array:
    batch, tokens, num_heads, head_dim = q_BTNH.shape
    merged = sources[0].keys.codes.shape[0]
    # The query heads that share a key/value head, and their tokens, become the rows R of one batched product.
    q_XRH = q_BTNH.transpose(0, 2, 1, 3).reshape(merged, -1, head_dim)
    scores = _joined([source.keys.scores(q_XRH) for source in sources])
    scores = scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores.reshape(batch, num_heads, tokens, -1)
    mask_BTS = _joined([source.mask for source in sources])
    scores = jnp.where(mask_BTS[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1) if sinks_N is None else _softmax_with_sinks(scores, sinks_N)
    weights_XRS = weights.reshape(merged, -1, weights.shape[-1])
    ends = list(accumulate(source.values.slots for source in sources))
    parts = [weights_XRS] if len(sources) == 1 else jnp.split(weights_XRS, ends[:-1], axis=-1)
    mixed = reduce(
        jnp.add, (source.values.mixed(part, q_BTNH.dtype) for source, part in zip(sources, parts, strict=True))
    )
    mixed_BTNH = mixed.reshape(batch, num_heads, tokens, -1).transpose(0, 2, 1, 3)
    return mixed_BTNH.astype(q_BTNH.dtype)


def _joined(parts: list[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _softmax_with_sinks(scores_BNTS: jax.Array, sinks_N: jax.Array) -> jax.Array:
    """The softmax over the scores and the sink of each head, without the sink's weight."""
    sinks = sinks_N.astype(jnp.float32)[None, :, None, None]
    largest = jnp.maximum(jnp.max(scores_BNTS, axis=-1, keepdims=True), sinks)
    shares = jnp.exp(scores_BNTS - largest)
    return shares / (jnp.sum(shares, axis=-1, keepdims=True) + jnp.exp(sinks - largest))

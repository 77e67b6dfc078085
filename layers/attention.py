"""Grouped-query attention (Ainslie et al. 2023), with every option that decoders have, and an optional KV cache.

Shapes: B batch, T query tokens, S key tokens, D hidden, N query heads, K key/value heads, H head size, X = B*K.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bombus.layers.cache import heads_first, write
from bombus.layers.dense import Dense
from bombus.layers.layer import Layer, declare
from bombus.layers.rotary import Rotary, rotate

Cached = tuple[jax.Array, jax.Array]


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What all layers of one call share.

    positions_BT: the position of every query. keys_BS: which slots hold real tokens, these queries' own included.
    length: the slot of the first query in the cache; None without a cache. What layers ask for is made once.
    """

    positions_BT: jax.Array
    keys_BS: jax.Array
    length: jax.Array | None = None
    _made: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def tables(self, rotary: Rotary, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """The rotary tables of the positions, for heads of this size."""
        return self._once((rotary, head_dim), lambda: rotary.tables(self.positions_BT, head_dim))

    def mask(self, window: int | None = None) -> jax.Array:
        """Which keys each query sees, (B, T, S): real tokens up to itself, and only the last `window` of the slots."""
        return self._once(window, lambda: self._mask(window))

    def _mask(self, window: int | None) -> jax.Array:
        slots_S = jnp.arange(self.keys_BS.shape[1], dtype=jnp.int32)
        first = jnp.int32(0) if self.length is None else self.length
        queries_T1 = first + jnp.arange(self.positions_BT.shape[1], dtype=jnp.int32)[:, None]
        seen_TS = slots_S[None, :] <= queries_T1
        if window is not None:
            seen_TS = seen_TS & (slots_S[None, :] > queries_T1 - window)
        return self.keys_BS[:, None, :] & seen_TS[None]

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Attention(Layer):
    """x (B, T, D) -> (B, T, D), and the layer's updated (keys, values).

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
        self, x: jax.Array, context: AttentionContext, cached: Cached | None = None
    ) -> tuple[jax.Array, Cached | None]:
        q_BTNH, k_BTKH = self._heads(self.query, self.query_norm, x), self._heads(self.key, self.key_norm, x)
        v_BTKH = self._heads(self.value, None, x)
        if self.rotary is not None:
            tables = context.tables(self.rotary, self.head_dim)
            q_BTNH, k_BTKH = (rotate(heads, tables, interleaved=self.interleaved) for heads in (q_BTNH, k_BTKH))
        k_XSH, v_XSH = heads_first(k_BTKH), heads_first(v_BTKH)
        if cached is not None and context.length is not None:
            cached = (write(cached[0], k_XSH, context.length), write(cached[1], v_XSH, context.length))
            k_XSH, v_XSH = cached
        mixed = attend(
            q_BTNH,
            k_XSH,
            v_XSH,
            context.mask(self.window),
            scale=self.scale,
            softcap=self.softcap,
            sinks_N=self._sinks(),
        )
        return self.output(mixed.reshape(*x.shape[:2], -1)), cached

    def keys(self, x: jax.Array) -> jax.Array:
        """The keys of x before they are normed and turned: their type is what a cache holds."""
        return self.key(x)

    def _heads(self, layer: Dense, norm: Callable[[jax.Array], jax.Array] | None, x: jax.Array) -> jax.Array:
        projected = layer(x)
        if norm is not None and self.norm_over == "all":
            projected = norm(projected)
        heads = projected.reshape(*x.shape[:2], -1, self.head_dim)
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
    batch, tokens, num_heads, head_dim = q_BTNH.shape
    merged, slots, value_dim = v_XSH.shape
    # The query heads that share a key/value head, and their tokens, become the rows R of one batched product.
    q_XRH = q_BTNH.transpose(0, 2, 1, 3).reshape(merged, -1, head_dim).astype(k_XSH.dtype)
    scores = jnp.einsum("xrh,xsh->xrs", q_XRH, k_XSH, preferred_element_type=jnp.float32)
    scores = scores * (1 / math.sqrt(head_dim) if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores.reshape(batch, num_heads, tokens, slots)
    scores = jnp.where(mask_BTS[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1) if sinks_N is None else _softmax_with_sinks(scores, sinks_N)
    weights_XRS = weights.reshape(merged, -1, slots).astype(v_XSH.dtype)
    mixed = jnp.einsum("xrs,xsh->xrh", weights_XRS, v_XSH, preferred_element_type=jnp.float32)
    mixed_BTNH = mixed.reshape(batch, num_heads, tokens, value_dim).transpose(0, 2, 1, 3)
    return mixed_BTNH.astype(q_BTNH.dtype)


def _softmax_with_sinks(scores_BNTS: jax.Array, sinks_N: jax.Array) -> jax.Array:
    """The softmax over the scores and the sink of each head, without the sink's weight."""
    sinks = sinks_N.astype(jnp.float32)[None, :, None, None]
    largest = jnp.maximum(jnp.max(scores_BNTS, axis=-1, keepdims=True), sinks)
    shares = jnp.exp(scores_BNTS - largest)
    return shares / (jnp.sum(shares, axis=-1, keepdims=True) + jnp.exp(sinks - largest))

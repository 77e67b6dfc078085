"""Latent attention of DeepSeek-V2 and V3 (DeepSeek-AI 2024): keys and values are read from one small latent vector.

Shapes: B batch, T query tokens, S key tokens, D hidden, N heads, C latent (key_value_rank), P the part of a head
without position, R its part with rotary position, V values, L = C + R.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.kernels import with_values
from bombus.kernels.native_rows import rotate
from bombus.kernels.native_write import heads_first
from bombus.layers.attention import attend_to
from bombus.layers.context import AttentionContext
from bombus.layers.dense import Dense
from bombus.layers.layer_cache import LayerCache, Source
from bombus.layers.norm import Norm, RMSNorm, normed
from bombus.layers.rotary import Rotary
from bombus.layers.stored import Stored


class LatentAttention(nnx.Module):
    """x (B, T, D) -> (B, T, D), and the layer's updated cache.

    A slot of the cache is the normalised latent and the rotated key that all heads share: one key head of C + R,
    and no values. Attention runs on it as it is: the rows of `key_value_up` (N, P + V; C) for keys take the queries
    into the latent space, and those for values take what was mixed back out of it.
    query_rank: the size through which queries go, normalised; None for queries straight from x.
    scale: of the scores, (P + R)^-1/2 unless given. bias: of `query_down`, `key_value_down` and `output`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        query_rank: int | None,
        key_value_rank: int,
        nope_dim: int,
        rope_dim: int,
        value_dim: int,
        rotary: Rotary,
        norm_epsilon: float,
        interleaved: bool = True,
        bias: bool = False,
        scale: float | None = None,
    ) -> None:
        self.num_heads = num_heads
        self.nope_dim = nope_dim
        self.rope_dim = rope_dim
        self.rotary = rotary
        self.interleaved = interleaved
        self.scale = (nope_dim + rope_dim) ** -0.5 if scale is None else scale
        queries = num_heads * (nope_dim + rope_dim)
        if query_rank is None:
            self.query = Dense(hidden_size, queries)
        else:
            self.query_down = Dense(hidden_size, query_rank, bias=bias)
            self.query_norm = RMSNorm(query_rank, epsilon=norm_epsilon)
            self.query_up = Dense(query_rank, queries)
        self.compressed = query_rank is not None
        self.key_value_down = Dense(hidden_size, key_value_rank + rope_dim, bias=bias)
        self.key_value_norm = RMSNorm(key_value_rank, epsilon=norm_epsilon)
        self.key_value_up = Dense(key_value_rank, num_heads * (nope_dim + value_dim))
        self.output = Dense(num_heads * value_dim, hidden_size, bias=bias)

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
        x = normed(norm, x)
        tables = context.tables(self.rotary, self.rope_dim)
        latent_BTC, k_BTR = self._latent_and_key(x)
        k_BT1R = rotate(k_BTR[:, :, None], tables, interleaved=self.interleaved).astype(latent_BTC.dtype)
        slots_BT1L = jnp.concatenate((latent_BTC[:, :, None], k_BT1R), axis=-1)
        if cached is not None and context.length is not None:
            cached, sources = cached.updated(slots_BT1L, None, context)
        else:
            slots = Stored(codes=heads_first(slots_BT1L))
            sources = [Source(slots, slots, context.mask())]
        q_BTNH = self._queries(x).reshape(*x.shape[:2], self.num_heads, -1)
        q_BTNP, q_BTNR = q_BTNH[..., : self.nope_dim], q_BTNH[..., self.nope_dim :]
        q_BTNC = self._through_up("nrp,npc->nrc", q_BTNP, slice(None, self.nope_dim))
        q_BTNR = rotate(q_BTNR, tables, interleaved=self.interleaved).astype(q_BTNC.dtype)
        # The latents are the values as well; the key's part of what is mixed is cut off, which is cheaper than to
        # copy the latents out of the cache.
        q_BTNL = jnp.concatenate((q_BTNC, q_BTNR), axis=-1)
        mixed_BTNL = attend_to(q_BTNL, sources, scale=self.scale)
        mixed_BTNC = mixed_BTNL[..., : latent_BTC.shape[-1]]
        mixed_BTNV = self._through_up("nrc,nvc->nrv", mixed_BTNC, slice(self.nope_dim, None))
        return self.output(mixed_BTNV.reshape(*x.shape[:2], -1), residual=residual), cached

    def keys(self, x: jax.Array) -> jax.Array:
        """The latents of x: their type is what a cache holds."""
        return self._latent_and_key(x)[0]

    def _latent_and_key(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = self.key_value_down(x)
        rank = both.shape[-1] - self.rope_dim
        return self.key_value_norm(both[..., :rank]), both[..., rank:]

    def _queries(self, x: jax.Array) -> jax.Array:
        return self.query_up(self.query_norm(self.query_down(x))) if self.compressed else self.query(x)

    def _through_up(self, equation: str, x: jax.Array, rows: slice) -> jax.Array:
        """x times these rows of every head of `key_value_up`, in the type that this layer returns."""

        def multiply(x: jax.Array, kernel_OC: jax.Array) -> jax.Array:
            kernel_NHC = kernel_OC.reshape(self.num_heads, -1, kernel_OC.shape[1])
            # Heads first: XLA:CPU has no product of bfloat16 for the other order, and fails when it runs.
            x_NRI = x.reshape(-1, *x.shape[-2:]).swapaxes(0, 1)
            y_NRO = jnp.einsum(equation, x_NRI, kernel_NHC[:, rows], preferred_element_type=jnp.float32)
            return y_NRO.swapaxes(0, 1).reshape(*x.shape[:-1], -1)

        up = self.key_value_up
        compute_type = up.compute_type("kernel", x.dtype)
        return with_values(multiply, x, up.weight, compute_type=compute_type).astype(
            up.output_type_of("kernel", x.dtype)
        )

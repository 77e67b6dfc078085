"""The next token of each row: greedy, or temperature, top-k and top-p; all of it traced data.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How each row is sampled, (B,) each: temperature 0 is greedy, top_k 0 and top_p 1 filter nothing."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    seed: jax.Array


def sample(logits_BV: jax.Array, sampling: Sampling, step: jax.Array) -> jax.Array:
    """Token ids (B,) for float32 logits (B, V). A row's sample depends on its own seed and `step` only."""
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    def draw(_: None) -> jax.Array:
        sampled_B = _categorical(_filtered(logits_BV, sampling), sampling.seed, step)
        return jnp.where(sampling.temperature > 0, sampled_B, greedy_B)

    # Greedy batches skip the work, without another program.
    return lax.cond(jnp.any(sampling.temperature > 0), draw, lambda _: greedy_B, None)


def _filtered(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits at the row's temperature, -inf outside its top-k and, of what that leaves, its top-p."""
    temperature = jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)[:, None]
    logits_BV = logits_BV / temperature
    keys_BV = _sortable(logits_BV)
    ones_BV = jnp.ones_like(logits_BV)
    kth_B = _threshold(keys_BV, ones_BV, sampling.top_k.astype(jnp.float32))
    in_top_k_BV = (sampling.top_k <= 0)[:, None] | (keys_BV >= kth_B[:, None])
    probabilities_BV = jax.nn.softmax(jnp.where(in_top_k_BV, logits_BV, -jnp.inf), axis=-1)
    # At least the most probable token stays, also for top_p 0.
    wanted_B = jnp.maximum(sampling.top_p, jnp.finfo(jnp.float32).tiny)
    edge_B = _threshold(keys_BV, probabilities_BV, wanted_B)
    in_top_p_BV = (sampling.top_p >= 1)[:, None] | (keys_BV >= edge_B[:, None])
    return jnp.where(in_top_k_BV & in_top_p_BV, logits_BV, -jnp.inf)


def _sortable(values: jax.Array) -> jax.Array:
    """uint32 keys in the order of the float32 values."""
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    negative = (bits >> 31).astype(jnp.bool_)
    return jnp.where(negative, ~bits, bits | jnp.uint32(0x80000000))


def _threshold(keys_BV: jax.Array, weights_BV: jax.Array, wanted_B: jax.Array) -> jax.Array:
    """The largest key t whose row has weights of at least `wanted` at keys >= t; 0 when there is none.

    Found bit by bit in 32 passes: a sort of 150,000 logits takes several times longer, and k stays traced.
    """

    def step(index: jax.Array, found_B: jax.Array) -> jax.Array:
        candidate_B = found_B | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        enough_B = jnp.where(keys_BV >= candidate_B[:, None], weights_BV, 0.0).sum(axis=-1) >= wanted_B
        return jnp.where(enough_B, candidate_B, found_B)

    return lax.fori_loop(0, 32, step, jnp.zeros(keys_BV.shape[:1], jnp.uint32))


def _categorical(logits_BV: jax.Array, seed_B: jax.Array, step: jax.Array) -> jax.Array:
    def draw(logits_V: jax.Array, seed: jax.Array) -> jax.Array:
        # The generator is named, so that a seed means the same on every machine and configuration.
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
        return jax.random.categorical(key, logits_V)

    return jax.vmap(draw)(logits_BV, seed_B).astype(jnp.int32)

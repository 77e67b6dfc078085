"""The tokens that sampling leaves to be drawn: top-k, top-p, min-p, typical-p, epsilon and eta cutoff.

Each filter takes logits and a number per row, and gives the logits with -inf at what it removes; the ones after it see
what it left. It leaves at least one token, and tokens of equal logits share their fate. Numbers are traced; a filter
that no row wants is not computed.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_FEW = 64  # best tokens, which are found several times faster than a threshold


def keep_top_k(logits_BV: jax.Array, top_k_B: jax.Array) -> jax.Array:
    """The `top_k` best tokens and those that equal the last of them; 0 keeps all."""

    few = min(_FEW, logits_BV.shape[1])

    def last_of_few(logits_BV: jax.Array) -> jax.Array:
        best_BK, _ = lax.top_k(logits_BV, few)
        return logits_BV >= best_BK[jnp.arange(len(best_BK)), jnp.clip(top_k_B - 1, 0, few - 1)][:, None]

    def last_of_many(logits_BV: jax.Array) -> jax.Array:
        keys_BV = _sortable(logits_BV)
        return keys_BV >= _threshold(keys_BV, jnp.ones_like(logits_BV), top_k_B.astype(jnp.float32))[:, None]

    def keep(logits_BV: jax.Array) -> jax.Array:
        return lax.cond(jnp.all(top_k_B <= few), last_of_few, last_of_many, logits_BV)

    return _filtered(logits_BV, top_k_B > 0, keep)


def keep_top_p(logits_BV: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """The shortest head of the most probable tokens whose mass reaches `top_p`; 1 keeps all (Holtzman et al. 2020)."""

    def keep(logits_BV: jax.Array) -> jax.Array:
        keys_BV = _sortable(logits_BV)
        # No mass at all is reached by no token: the best one stays.
        wanted_B = jnp.maximum(top_p_B, jnp.finfo(jnp.float32).tiny)
        return keys_BV >= _threshold(keys_BV, jax.nn.softmax(logits_BV, axis=-1), wanted_B)[:, None]

    return _filtered(logits_BV, top_p_B < 1, keep)


def keep_min_p(logits_BV: jax.Array, min_p_B: jax.Array) -> jax.Array:
    """The tokens at least `min_p` times as probable as the best one; 0 keeps all (Nguyen et al. 2024)."""

    def keep(logits_BV: jax.Array) -> jax.Array:
        probabilities_BV = jax.nn.softmax(logits_BV, axis=-1)
        return probabilities_BV >= min_p_B[:, None] * probabilities_BV.max(axis=-1, keepdims=True)

    return _filtered(logits_BV, min_p_B > 0, keep)


def keep_typical_p(logits_BV: jax.Array, typical_p_B: jax.Array) -> jax.Array:
    """The tokens of surprise nearest to the entropy, until their mass reaches `typical_p`; 1 keeps all.

    Locally typical sampling, Meister et al. 2022. It alone may remove the best token.
    """

    def keep(logits_BV: jax.Array) -> jax.Array:
        log_BV = jax.nn.log_softmax(logits_BV, axis=-1)
        probabilities_BV = jnp.exp(log_BV)
        # Turned around, because the nearest come first.
        keys_BV = _sortable(-jnp.abs(log_BV + _entropy(log_BV)[:, None]))
        return keys_BV >= _threshold(keys_BV, probabilities_BV, typical_p_B)[:, None]

    return _filtered(logits_BV, typical_p_B < 1, keep)


def cut_epsilon(logits_BV: jax.Array, epsilon_B: jax.Array) -> jax.Array:
    """The tokens of probability `epsilon` and more; 0 keeps all (Hewitt et al. 2022)."""

    def keep(logits_BV: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits_BV, axis=-1) >= epsilon_B[:, None]

    return _filtered(logits_BV, epsilon_B > 0, keep)


def cut_eta(logits_BV: jax.Array, epsilon_B: jax.Array) -> jax.Array:
    """The tokens of probability min(epsilon, sqrt(epsilon) exp(-entropy)) and more; 0 keeps all (same source)."""

    def keep(logits_BV: jax.Array) -> jax.Array:
        log_BV = jax.nn.log_softmax(logits_BV, axis=-1)
        eta_B = jnp.minimum(epsilon_B, jnp.sqrt(epsilon_B) * jnp.exp(-_entropy(log_BV)))
        return jnp.exp(log_BV) >= eta_B[:, None]

    return _filtered(logits_BV, epsilon_B > 0, keep)


def _filtered(logits_BV: jax.Array, wanted_B: jax.Array, keep: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """-inf outside `keep` in the rows that want it; where that leaves nothing, the best token stays."""

    def apply(logits_BV: jax.Array) -> jax.Array:
        kept_BV = keep(logits_BV)
        best_BV = (logits_BV == logits_BV.max(axis=-1, keepdims=True)) & ~kept_BV.any(axis=-1, keepdims=True)
        return jnp.where(kept_BV | best_BV | ~wanted_B[:, None], logits_BV, -jnp.inf)

    return lax.cond(jnp.any(wanted_B), apply, lambda logits_BV: logits_BV, logits_BV)


def _entropy(log_BV: jax.Array) -> jax.Array:
    probabilities_BV = jnp.exp(log_BV)
    # 0 log 0 is 0, and 0 times -inf is not.
    return -jnp.where(probabilities_BV > 0, probabilities_BV * log_BV, 0.0).sum(axis=-1)


def _sortable(values: jax.Array) -> jax.Array:
    """uint32 keys in the order of the float32 values; the two zeros are one."""
    bits = lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.uint32)
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

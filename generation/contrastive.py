"""Contrastive search: a probable token that is unlike what is there already.

Su et al. 2022, A Contrastive Framework for Neural Text Generation. Of the `top_k` most probable tokens v, the one of
the greatest (1 - alpha) p(v) - alpha max_j cos(h_v, h_j), where h_v is the model's last hidden state (after its last
norm) when v is read, and h_j those of all tokens before it, without padding. p is the distribution that the
processors leave; what they forbid is no candidate.

The pass that reads the candidates of a step also gives the next step's logits. It takes the memory of a cache of
top_k times the rows while it runs.

Shapes: B batch, L slots, D hidden, V vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from bombus.generation.loop import read_prompt
from bombus.generation.state import Call, Plan, State, Strategy, empty_state, processed, record
from bombus.models import Model, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step needs of the ones before it: hidden states of length 1 at every slot, and the next logits."""

    directions_BLD: jax.Array
    logits_BV: jax.Array


def contrastive_search(top_k: int) -> Strategy:
    """The strategy with so many candidates a step. Call.numbers: `alpha` (), from 0 to 1."""
    return Strategy(name="contrastive search", begin=_begin, advance=_advance, size=top_k)


def _begin(
    model: Model, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array, done_B: jax.Array, call: Call, plan: Plan
) -> State:
    logits_BV, cache, hidden_BTD = read_prompt(model, params, tokens_BT, mask_BT, plan, keep_hidden=True)
    assert hidden_BTD is not None
    room = ((0, 0), (0, plan.new_tokens), (0, 0))
    context = Context(directions_BLD=jnp.pad(_direction(hidden_BTD), room), logits_BV=logits_BV)
    return replace(empty_state(model, tokens_BT, mask_BT, done_B, cache, plan), extra=context)


def _advance(model: Model, params: Params, state: State, call: Call, plan: Plan) -> State:
    context: Context = state.extra
    batch, vocab_size = context.logits_BV.shape
    processed_BV, memories = processed(state, context.logits_BV, call, plan)
    count = min(plan.strategy.size, vocab_size)
    probabilities_BK, tokens_BK = lax.top_k(jax.nn.softmax(processed_BV, axis=-1), count)
    rows_BK = jnp.arange(batch * count, dtype=jnp.int32).reshape(batch, count)
    # Every candidate reads its row's cache.
    cache = state.cache.take_rows((rows_BK // count).reshape(-1))
    output = model.apply(params, tokens_BK.reshape(-1, 1), cache=cache, last_only=True)
    assert output.logits is not None
    assert output.cache is not None
    directions_BKD = _direction(output.hidden_state).reshape(batch, count, -1)
    alike_BKL = jnp.einsum("bkd,bld->bkl", directions_BKD, context.directions_BLD, precision=lax.Precision.HIGHEST)
    most_BK = jnp.where(state.history.real_BL[:, None], alike_BKL, -1.0).max(axis=-1)
    alpha = call.numbers["alpha"]
    scores_BK = (1 - alpha) * probabilities_BK - alpha * most_BK
    allowed_BK = jnp.take_along_axis(processed_BV, tokens_BK, axis=1) > -jnp.inf
    best_B1 = jnp.argmax(jnp.where(allowed_BK, scores_BK, -jnp.inf), axis=1, keepdims=True)
    chosen_B1 = jnp.take_along_axis(tokens_BK, best_B1, axis=1)
    rows_B = jnp.take_along_axis(rows_BK, best_B1, axis=1)[:, 0]
    direction_B1D = jnp.take_along_axis(directions_BKD, best_B1[..., None], axis=1)
    at = (jnp.int32(0), state.history.length, jnp.int32(0))
    following = Context(
        directions_BLD=lax.dynamic_update_slice(context.directions_BLD, direction_B1D, at),
        logits_BV=output.logits[rows_B, 0],
    )
    state = replace(state, processors=memories, cache=output.cache.take_rows(rows_B), extra=following)
    return record(state, chosen_B1, context.logits_BV[:, None], jnp.int32(1), call)


def _direction(hidden: jax.Array) -> jax.Array:
    """Hidden states of length 1, in float32."""
    hidden = hidden.astype(jnp.float32)
    return hidden / jnp.maximum(jnp.linalg.norm(hidden, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)

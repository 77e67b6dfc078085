"""Prompt lookup: several tokens of one pass, drafted by copying what followed the last words earlier on.

Saxena 2023, Prompt Lookup Decoding; the acceptance is that of speculative decoding (Leviathan et al. 2023) with the
choice itself in place of probabilities. A draft counts where it is the token that would have been chosen there, by
the settings' processors, the user's and the row's seed: the text is the same as without drafts, greedy or sampled.
Only rounding may tell them apart: a product of several tokens at once sums in another order than one of a single
token, and tokens whose logits are equal but for that may change places.

The rows of a batch go on together, so a pass gives as many tokens as its unluckiest row accepts.

Shapes: B batch, L slots, D drafts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from bombus.generation.history import History
from bombus.generation.loop import read_prompt
from bombus.generation.state import Call, Plan, State, Strategy, append, empty_state
from bombus.models import Model, Params


def prompt_lookup(drafts: int) -> Strategy:
    """The strategy with so many drafts in a pass. Call.numbers: `ngram` (), the longest run that is looked for."""
    return Strategy(name="prompt lookup", begin=_begin, advance=_advance, size=drafts, lookback=drafts)


def draft(history: History, ngram: jax.Array, drafts: int) -> jax.Array:
    """What may come next, (B, D): what followed the latest of the longest matches of a row's end, up to `ngram` tokens.

    A match that reaches the end is taken as a period and goes on; without a match the last token is.
    """
    tokens_BL, last = history.tokens_BL, history.length - 1
    slots_L = jnp.arange(tokens_BL.shape[1])

    def lengthen(back: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """One more token of every match that ends at a slot, and which matches go on."""
        lengths_BL, matches_BL = found
        end_B1 = lax.dynamic_slice_in_dim(tokens_BL, last - back, 1, axis=1)
        exists_B1 = lax.dynamic_slice_in_dim(history.real_BL, last - back, 1, axis=1) & (last >= back)
        same_BL = (tokens_BL == end_B1) & history.real_BL & exists_B1
        matches_BL = matches_BL & jnp.roll(same_BL, back, axis=1) & (slots_L >= back)
        return lengths_BL + matches_BL.astype(jnp.int32), matches_BL

    nothing_BL = jnp.zeros(tokens_BL.shape, jnp.int32)
    earlier_BL = jnp.broadcast_to(slots_L < last, tokens_BL.shape)
    lengths_BL, _ = lax.fori_loop(0, jnp.minimum(ngram, len(slots_L)), lengthen, (nothing_BL, earlier_BL))
    longest_BL = (lengths_BL == lengths_BL.max(axis=1, keepdims=True)) & earlier_BL
    start_B1 = jnp.where(longest_BL, slots_L, -1).max(axis=1, keepdims=True) + 1
    copied_BD = start_B1 + jnp.arange(drafts) % (history.length - start_B1)
    return jnp.take_along_axis(tokens_BL, copied_BD, axis=1)


def _begin(
    model: Model, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array, done_B: jax.Array, call: Call, plan: Plan
) -> State:
    logits_BV, cache, _ = read_prompt(model, params, tokens_BT, mask_BT, plan)
    return append(empty_state(model, tokens_BT, mask_BT, done_B, cache, plan), logits_BV, call, plan)


def _advance(model: Model, params: Params, state: State, call: Call, plan: Plan) -> State:
    drafts = plan.strategy.size
    last_B1 = lax.dynamic_slice_in_dim(state.history.tokens_BL, state.history.length - 1, 1, axis=1)
    drafts_BD = draft(state.history, call.numbers["ngram"], drafts)
    output = model.apply(params, jnp.concatenate([last_B1, drafts_BD], axis=1), cache=state.cache)
    assert output.logits is not None
    assert output.cache is not None
    logits_BJV = output.logits  # before each draft and after the last

    def agrees(carry: tuple[jax.Array, jax.Array, State]) -> jax.Array:
        return carry[1]

    def choose(carry: tuple[jax.Array, jax.Array, State]) -> tuple[jax.Array, jax.Array, State]:
        """One more token. The next logits hold when it is what they were computed for, in every row still going."""
        index, _, state = carry
        state = append(state, lax.dynamic_index_in_dim(logits_BJV, index, axis=1, keepdims=False), call, plan)
        chosen_B1 = lax.dynamic_slice_in_dim(state.history.tokens_BL, state.history.length - 1, 1, axis=1)
        drafted_B1 = lax.dynamic_slice_in_dim(drafts_BD, jnp.minimum(index, drafts - 1), 1, axis=1)
        right = jnp.all((chosen_B1 == drafted_B1)[:, 0] | state.done) & ~jnp.all(state.done)
        return index + 1, right & (index < drafts), state

    state = replace(state, cache=output.cache)
    _, _, state = lax.while_loop(agrees, choose, (jnp.int32(0), jnp.asarray(True), state))
    # Of the last token nothing has been read yet.
    return replace(state, cache=state.cache.rewound(state.cache.length - state.history.length + 1))

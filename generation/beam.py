"""Beam search: the continuations of the greatest sum of log-probabilities, several held at a time.

With the results of transformers: processors work on log-probabilities; a continuation that ends scores its sum over
its length, the stop id included, to the power of length_penalty; the best `num_beams` of those are kept, and a prompt
is done when none still going could be better, as early_stopping judges it. Every prompt ends by itself.

Shapes: B prompts, M beams of each, X = B*M rows, L slots, N new tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from bombus.generation.loop import read_last, read_prompt
from bombus.generation.state import Call, Plan, State, Strategy, empty_state, processed
from bombus.models import Model, Params

NEVER = -1e9  # the sum of what cannot be, but finite: it still orders what has nothing else to choose from

WHEN_NOTHING_BETTER, WHEN_FULL, WHEN_SURE = range(3)  # early_stopping: False, True, "never"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Beams:
    """sums_BM: of those still going. The rest: of those that ended, the best first.

    A length of 0 is a place that none has taken.
    """

    sums_BM: jax.Array
    tokens_BMN: jax.Array
    lengths_BM: jax.Array
    scores_BM: jax.Array


def beam_search(num_beams: int) -> Strategy:
    """The strategy with so many beams. State.extra is Beams; its rows are beams, but for `done`, one of each prompt.

    Call.numbers: `length_penalty` (); `early_stopping` (), one of this file's three; `limits` (B,), the most new tokens
    of each prompt.
    """
    return Strategy(name="beam search", begin=_begin, advance=_advance, beams=num_beams)


def _begin(
    model: Model, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array, done_B: jax.Array, call: Call, plan: Plan
) -> State:
    num_beams, batch = plan.strategy.beams, len(tokens_BT)
    logits_BV, cache, _ = read_prompt(model, params, tokens_BT, mask_BT, plan)
    rows_X = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), num_beams)
    state = empty_state(model, tokens_BT[rows_X], mask_BT[rows_X], done_B, cache.take_rows(rows_X), plan)
    # All beams are the same prompt: one of them makes the first candidates.
    first_M = jnp.where(jnp.arange(num_beams) == 0, 0.0, NEVER)
    beams = Beams(
        sums_BM=jnp.broadcast_to(first_M, (batch, num_beams)),
        tokens_BMN=jnp.zeros((batch, num_beams, plan.new_tokens), jnp.int32),
        lengths_BM=jnp.zeros((batch, num_beams), jnp.int32),
        scores_BM=jnp.full((batch, num_beams), NEVER, jnp.float32),
    )
    return _extend(replace(state, extra=beams), logits_BV[rows_X], call, plan)


def _advance(model: Model, params: Params, state: State, call: Call, plan: Plan) -> State:
    logits_XV, cache = read_last(model, params, state)
    return _extend(replace(state, cache=cache), logits_XV, call, plan)


def _extend(state: State, logits_XV: jax.Array, call: Call, plan: Plan) -> State:
    """The state with every beam one token longer, chosen from the model's logits (X, V)."""
    history, beams = state.history, state.extra
    batch, num_beams = beams.sums_BM.shape
    vocab_size = logits_XV.shape[1]
    # Without a memory: what a beam remembers would have to follow it.
    log_XV, memories = processed(state, jax.nn.log_softmax(logits_XV.astype(jnp.float32), axis=-1), call, plan)
    sums_BC = (log_XV.reshape(batch, num_beams, vocab_size) + beams.sums_BM[:, :, None]).reshape(batch, -1)
    stop = call.sampling.stop
    stops_V = jnp.zeros(vocab_size, jnp.bool_).at[jnp.where(stop < 0, vocab_size, stop)].set(True, mode="drop")

    # The best of all candidates: those that end are compared with the ones that ended before.
    best_BM, at_BM = lax.top_k(sums_BC, num_beams)
    parents_BM, tokens_BM = at_BM // vocab_size, at_BM % vocab_size
    length = (history.step + 1).astype(jnp.float32)
    penalty, limits_B = call.numbers["length_penalty"], call.numbers["limits"]
    last_B = history.step + 1 >= limits_B
    ends_BM = (stops_V[tokens_BM] | last_B[:, None]) & ~state.done[:, None]
    texts_BMN = _new_tokens(state, parents_BM, tokens_BM)
    ended = _best(
        beams,
        jnp.where(ends_BM, best_BM / length**penalty, NEVER),
        texts_BMN,
        ends_BM.astype(jnp.int32) * (history.step + 1),
    )

    # The best that do not end go on.
    sums_BM, at_BM = lax.top_k(sums_BC + jnp.tile(jnp.where(stops_V, NEVER, 0.0), num_beams), num_beams)
    parents_BM, tokens_BM = at_BM // vocab_size, at_BM % vocab_size
    rows_X = (parents_BM + jnp.arange(batch)[:, None] * num_beams).reshape(-1)
    history = replace(
        history,
        tokens_BL=history.tokens_BL[rows_X].at[:, history.length].set(tokens_BM.reshape(-1)),
        real_BL=history.real_BL[rows_X].at[:, history.length].set(True),
        length=history.length + 1,
    )

    # What the best one could still come to, against the worst that ended. At any other length than now, which is
    # what False and True suppose, a penalty above 0 makes the most of the greatest one, which "never" supposes.
    early = call.numbers["early_stopping"]
    longest_B = jnp.where((early == WHEN_SURE) & (penalty > 0), limits_B.astype(jnp.float32), length)
    full_B = jnp.all(ended.lengths_BM > 0, axis=1)
    beaten_B = full_B & (sums_BM[:, 0] / longest_B**penalty <= ended.scores_BM[:, -1])
    done_B = state.done | last_B | beaten_B | (full_B & (early == WHEN_FULL))
    return replace(
        state,
        history=history,
        done=done_B,
        cache=state.cache.take_rows(rows_X),
        processors=memories,
        extra=replace(ended, sums_BM=sums_BM),
    )


def _new_tokens(state: State, parents_BM: jax.Array, tokens_BM: jax.Array) -> jax.Array:
    """The new tokens of these beams and then these ones, (B, M, N)."""
    history, batch = state.history, len(parents_BM)
    new_BMN = history.tokens_BL[:, history.prompt_slots :].reshape(batch, parents_BM.shape[1], -1)
    new_BMN = jnp.take_along_axis(new_BMN, parents_BM[..., None], axis=1)
    return new_BMN.at[:, :, history.step].set(tokens_BM)


def _best(beams: Beams, scores_BM: jax.Array, tokens_BMN: jax.Array, lengths_BM: jax.Array) -> Beams:
    """The beams with the best of what had ended and what ends now."""
    num_beams = scores_BM.shape[1]
    best_BM, at_BM = lax.top_k(jnp.concatenate([beams.scores_BM, scores_BM], axis=1), num_beams)
    tokens_BMN = jnp.concatenate([beams.tokens_BMN, tokens_BMN], axis=1)
    return replace(
        beams,
        tokens_BMN=jnp.take_along_axis(tokens_BMN, at_BM[..., None], axis=1),
        lengths_BM=jnp.take_along_axis(jnp.concatenate([beams.lengths_BM, lengths_BM], axis=1), at_BM, axis=1),
        scores_BM=best_BM,
    )

"""Where a generation is, what its programs are compiled for, and how a token joins it.

Shapes: B batch, T prompt bucket, N new tokens, L slots (T and N), J tokens at once, V vocabulary, K most probable
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bombus.generation.history import History
from bombus.generation.next_token import next_token
from bombus.generation.processors import LogitsProcessor, process, run_processors
from bombus.generation.sampling import Sampling, log_probabilities
from bombus.layers import Cache, CacheFormat
from bombus.models import Model

TOP_LOGPROBS = 20


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Call:
    """What differs between the calls of one program.

    wants_logprobs (): whether they are computed. numbers: what the strategy takes, by name.
    """

    sampling: Sampling
    wants_logprobs: jax.Array
    numbers: dict[str, jax.Array] = field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """Log-probabilities of the new tokens, (B, N), and of the most probable ones with their ids, (B, N, K)."""

    chosen: jax.Array
    top_ids: jax.Array
    top: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Where a generation is.

    done (B,): rows that have met a stop id. passes (): how often the state was advanced. extra: what a strategy keeps
    for itself.
    """

    history: History
    done: jax.Array
    cache: Cache
    processors: tuple[Any, ...]
    logprobs: Logprobs
    passes: jax.Array
    extra: Any = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a program is compiled for, besides shapes.

    new_tokens: the room for them, of which a call may use less. chunk: how many prompt tokens are read at a time;
    it divides the bucket. strategy: how the state goes on.
    """

    new_tokens: int
    chunk: int
    strategy: Strategy
    cache_format: CacheFormat | None = None
    processors: tuple[LogitsProcessor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How tokens are found. `begin` makes the state after the prompt or the first one; `advance` finds one or more.

    begin(model, params, tokens_BT, mask_BT, done_B, call, plan); advance(model, params, state, call, plan).
    size: a number of the strategy that a program is compiled for. lookback: how many slots it may take back.
    beams: how many rows of the state stand for one prompt; if several, what comes out is known at the end only.
    """

    name: str
    begin: Callable[..., State] = field(repr=False)
    advance: Callable[..., State] = field(repr=False)
    size: int = 0
    lookback: int = 0
    beams: int = 1


def empty_state(
    model: Model, tokens_BT: jax.Array, mask_BT: jax.Array, done_B: jax.Array, cache: Cache, plan: Plan
) -> State:
    """The state before the first new token."""
    batch, bucket = tokens_BT.shape
    room = ((0, 0), (0, plan.new_tokens + plan.strategy.lookback))
    steps = (batch, plan.new_tokens + plan.strategy.lookback)
    top = min(TOP_LOGPROBS, model.spec.vocab_size)
    return State(
        history=History(
            tokens_BL=jnp.pad(tokens_BT, room),
            real_BL=jnp.pad(mask_BT, room),
            length=jnp.asarray(bucket, jnp.int32),
            prompt_slots=bucket,
        ),
        done=done_B,
        cache=cache,
        processors=tuple(processor.init(batch, model.spec.vocab_size) for processor in plan.processors),
        logprobs=Logprobs(
            chosen=jnp.zeros(steps, jnp.float32),
            top_ids=jnp.zeros((*steps, top), jnp.int32),
            top=jnp.zeros((*steps, top), jnp.float32),
        ),
        passes=jnp.zeros((), jnp.int32),
    )


def processed(state: State, logits_BV: jax.Array, call: Call, plan: Plan) -> tuple[jax.Array, tuple[Any, ...]]:
    """The logits after the settings' processors and the user's, and what the user's remember then."""
    return run_processors(
        plan.processors, state.processors, process(logits_BV, state.history, call.sampling), state.history
    )


def append(state: State, logits_BV: jax.Array, call: Call, plan: Plan) -> State:
    """The state with one more token, chosen from the model's logits."""
    history, sampling = state.history, call.sampling
    if plan.processors:
        processed_BV, memories = processed(state, logits_BV, call, plan)
        state = replace(state, processors=memories)
        chosen_B = next_token(processed_BV, sampling, history.step)
    else:
        chosen_B = next_token(logits_BV, sampling, history.step, history)
    return record(state, chosen_B[:, None], logits_BV[:, None], jnp.int32(1), call)


def record(state: State, tokens_BJ: jax.Array, logits_BJV: jax.Array, count: jax.Array, call: Call) -> State:
    """The state with the first `count` () of these tokens appended, which were chosen from these logits.

    Those of rows that are done are zeros; the rest of the J are overwritten by the next ones.
    """
    history = state.history
    at = (jnp.int32(0), history.length)
    real_BJ = (jnp.arange(tokens_BJ.shape[1]) < count) & ~state.done[:, None]
    tokens_BJ = jnp.where(real_BJ, tokens_BJ, 0)
    stops_BJ = (tokens_BJ[..., None] == call.sampling.stop).any(axis=-1) & real_BJ
    logprobs = state.logprobs
    step = history.step
    for index in range(tokens_BJ.shape[1]):
        chosen_B, ids_BK, top_BK = log_probabilities(
            logits_BJV[:, index], tokens_BJ[:, index], call.wants_logprobs, logprobs.top.shape[-1]
        )
        logprobs = Logprobs(
            chosen=lax.dynamic_update_slice(logprobs.chosen, chosen_B[:, None], (0, step + index)),
            top_ids=lax.dynamic_update_slice(logprobs.top_ids, ids_BK[:, None], (0, step + index, 0)),
            top=lax.dynamic_update_slice(logprobs.top, top_BK[:, None], (0, step + index, 0)),
        )
    return replace(
        state,
        history=replace(
            history,
            tokens_BL=lax.dynamic_update_slice(history.tokens_BL, tokens_BJ, at),
            real_BL=lax.dynamic_update_slice(history.real_BL, real_BJ, at),
            length=history.length + count,
        ),
        done=state.done | stops_BJ.any(axis=1),
        logprobs=logprobs,
    )

"""The compiled programs of generation: prefill of a bucket of prompt tokens, and a loop of decode steps.

Two programs and not one, so that a prompt of another bucket does not compile the loop again, and a stream can
stop the loop every few tokens. What may differ between calls (sampling, stop ids, how far to go) is traced data.

Shapes: B batch, T prompt bucket, N new tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from bombus.generation.sampling import Sampling, sample
from bombus.layers import Cache
from bombus.models import Model, Params

STOP_SLOTS = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Where a generation is: tokens (B, N), of which `count` () are made; done (B,) rows have met a stop id."""

    tokens: jax.Array
    count: jax.Array
    done: jax.Array
    cache: Cache


@partial(jax.jit, static_argnames=("model", "new_tokens"))
def prefill(
    model: Model,
    params: Params,
    tokens_BT: jax.Array,
    mask_BT: jax.Array,
    sampling: Sampling,
    stop: jax.Array,
    *,
    new_tokens: int,
) -> State:
    """The state after the first new token, for prompts that are padded on the left. The cache is made here."""
    batch, bucket = tokens_BT.shape
    cache = model.init_cache(batch, bucket + new_tokens)
    output = model.apply(params, tokens_BT, mask=mask_BT, cache=cache, last_only=True)
    assert output.cache is not None
    state = State(
        tokens=jnp.zeros((batch, new_tokens), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        done=jnp.zeros((batch,), jnp.bool_),
        cache=output.cache,
    )
    return _append(state, output.logits, sampling, stop)


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def decode(model: Model, params: Params, state: State, sampling: Sampling, stop: jax.Array, until: jax.Array) -> State:
    """The state after `until` new tokens in all, or earlier when every row is done."""

    def step(state: State) -> State:
        last_B1 = lax.dynamic_slice_in_dim(state.tokens, state.count - 1, 1, axis=1)
        output = model.apply(params, last_B1, cache=state.cache, last_only=True)
        assert output.cache is not None
        return _append(replace(state, cache=output.cache), output.logits, sampling, stop)

    return lax.while_loop(lambda state: (state.count < until) & ~jnp.all(state.done), step, state)


def _append(state: State, logits_B1V: jax.Array | None, sampling: Sampling, stop: jax.Array) -> State:
    assert logits_B1V is not None
    next_B = sample(logits_B1V[:, 0].astype(jnp.float32), sampling, state.count)
    return replace(
        state,
        tokens=lax.dynamic_update_slice_in_dim(state.tokens, next_B[:, None], state.count, axis=1),
        count=state.count + 1,
        done=state.done | jnp.any(next_B[:, None] == stop[None, :], axis=1),
    )

"""The compiled programs of generation: prefill of a bucket of prompt tokens, and a loop of decode steps.

Two programs and not one: a stream can stop the loop every few tokens, and both compile at the same time, each on
a core. What may differ between calls (sampling, stop ids, how far to go) is traced data.

Shapes: B batch, T prompt bucket, N new tokens, V vocabulary.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The two programs, compiled for one number of rows, prompt bucket and number of new tokens."""

    prefill: jax.stages.Compiled
    decode: jax.stages.Compiled


def compile_programs(
    model: Model, params: Params, tokens_BT: Any, mask_BT: Any, sampling: Sampling, stop: Any, *, new_tokens: int
) -> Programs:
    """The programs for arguments of these shapes; compiled at the first call, kept for the next ones.

    Call `prefill(params, tokens, mask, sampling, stop)` and `decode(params, state, sampling, stop, until)`. Arrays
    may be given as jax.ShapeDtypeStruct.
    """
    leaves, tree = jax.tree.flatten((params, tokens_BT, mask_BT, sampling, stop))
    arguments = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)) for leaf in leaves
    )
    return _compiled(model, tree, arguments, new_tokens)


@lru_cache(maxsize=32)
def _compiled(model: Model, tree: Any, arguments: tuple[jax.ShapeDtypeStruct, ...], new_tokens: int) -> Programs:
    params, tokens, mask, sampling, stop = jax.tree.unflatten(tree, arguments)
    first = prefill.trace(model, params, tokens, mask, sampling, stop, new_tokens=new_tokens)
    until = jax.ShapeDtypeStruct((), jnp.int32)
    loop = decode.trace(model, params, first.out_info, sampling, stop, until)
    with ThreadPoolExecutor() as pool:
        compiled = pool.map(lambda program: program.lower().compile(), (first, loop))
        return Programs(**dict(zip(("prefill", "decode"), compiled, strict=True)))

"""The compiled programs of generation: reading a bucket of prompt tokens, and a loop of decode steps.

Two programs and not one: a stream can stop the loop every few tokens, and both compile at the same time, each on
a core. The first token comes from the first program, while the loop may still be compiled. What may differ between
calls (sampling, stop ids, how far to go) is traced data.

Shapes: B batch, T prompt bucket, C chunk of it, N new tokens, L = T + N, V vocabulary, K most probable tokens.
"""

from __future__ import annotations

import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from inspect import unwrap
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bombus.generation.kept import keep_program, program_key, read_program
from bombus.generation.memory import give_back
from bombus.generation.state import Call, Plan, State, Strategy, append, empty_state
from bombus.layers import Cache
from bombus.models import Model, Params


def read_prompt(
    model: Model, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array, plan: Plan, *, keep_hidden: bool = False
) -> tuple[jax.Array, Cache, jax.Array | None]:
    """The logits after the prompts, (B, V), which are padded on the left, and a cache with room for new tokens.

    With keep_hidden also the last hidden states of all their tokens, (B, T, D).
    """
    batch, bucket = tokens_BT.shape
    room = bucket + plan.new_tokens + plan.strategy.lookback
    cache = model.init_cache(batch, room, format=plan.cache_format, lookback=plan.strategy.lookback)
    if plan.chunk == bucket:
        output = model.apply(params, tokens_BT, mask=mask_BT, cache=cache, last_only=True)
        assert output.logits is not None
        assert output.cache is not None
        return output.logits[:, 0], output.cache, output.hidden_state if keep_hidden else None

    def read(
        carry: tuple[jax.Array, Cache], chunk: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, Cache], jax.Array | None]:
        output = model.apply(params, chunk[0], mask=chunk[1], cache=carry[1], last_only=True)
        assert output.logits is not None
        assert output.cache is not None
        return (output.logits[:, 0], output.cache), output.hidden_state if keep_hidden else None

    chunks = [values.reshape(batch, -1, plan.chunk).swapaxes(0, 1) for values in (tokens_BT, mask_BT)]
    nothing = jnp.zeros((batch, model.spec.vocab_size), jnp.float32)
    (logits_BV, cache), hidden_CBTD = lax.scan(read, (nothing, cache), tuple(chunks))
    if hidden_CBTD is not None:
        return logits_BV, cache, hidden_CBTD.swapaxes(0, 1).reshape(batch, bucket, -1)
    return logits_BV, cache, None


def _begin(
    model: Model, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array, done_B: jax.Array, call: Call, plan: Plan
) -> State:
    logits_BV, cache, _ = read_prompt(model, params, tokens_BT, mask_BT, plan)
    return append(empty_state(model, tokens_BT, mask_BT, done_B, cache, plan), logits_BV, call, plan)


def read_last(model: Model, params: Params, state: State) -> tuple[jax.Array, Cache]:
    """The logits after the last token of every row, (B, V), and the cache with it."""
    last_B1 = lax.dynamic_slice_in_dim(state.history.tokens_BL, state.history.length - 1, 1, axis=1)
    output = model.apply(params, last_B1, cache=state.cache, last_only=True)
    assert output.logits is not None
    assert output.cache is not None
    return output.logits[:, 0], output.cache


def _advance(model: Model, params: Params, state: State, call: Call, plan: Plan) -> State:
    logits_BV, cache = read_last(model, params, state)
    return append(replace(state, cache=cache), logits_BV, call, plan)


NEXT_TOKEN = Strategy(name="next token", begin=_begin, advance=_advance)


@partial(jax.jit, static_argnames=("model", "plan"))
def prefill(
    model: Model, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array, done_B: jax.Array, call: Call, *, plan: Plan
) -> State:
    """The state after the prompts, which are padded on the left, and mostly a first token. The cache is made here."""
    state = plan.strategy.begin(model, params, tokens_BT, mask_BT, done_B, call, plan)
    return replace(state, passes=state.history.step)


@partial(jax.jit, static_argnames=("model", "plan"), donate_argnames="state")
def decode(
    model: Model, params: Params, state: State, done_B: jax.Array, call: Call, until: jax.Array, *, plan: Plan
) -> State:
    """The state after at least `until` new tokens in all, or earlier when every row is done.

    done_B: rows that are done for a reason that the programs do not know, a stop string.
    """

    def unfinished(state: State) -> jax.Array:
        return (state.history.step < until) & ~jnp.all(state.done)

    def advance(state: State) -> State:
        return replace(plan.strategy.advance(model, params, state, call, plan), passes=state.passes + 1)

    return lax.while_loop(unfinished, advance, replace(state, done=state.done | done_B))


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The two programs, compiled for one number of rows, prompt bucket and plan.

    Call `prefill(params, tokens, mask, done, call)` and `decode(params, state, done, call, until)`. The second may
    still be on its way, while the first reads a prompt: who asks for it waits. `kept` is done when both are in the
    folder of use_compilation_cache.
    """

    prefill: jax.stages.Compiled
    loop: Future[jax.stages.Compiled]
    kept: Future[None]

    @property
    def decode(self) -> jax.stages.Compiled:
        """The loop, when it is there."""
        return self.loop.result()


def compile_programs(model: Model, params: Params, batch: int, bucket: int, call: Call, plan: Plan) -> Programs:
    """The programs for that many rows and prompt tokens; compiled at the first call, kept for the next ones.

    Arrays may be given as jax.ShapeDtypeStruct.
    """
    programs = start_programs(model, params, batch, bucket, call, plan)
    programs.loop.result()
    programs.kept.result()
    return programs


def start_programs(model: Model, params: Params, batch: int, bucket: int, call: Call, plan: Plan) -> Programs:
    """Those of compile_programs as soon as the first is there."""
    leaves, tree = jax.tree.flatten((params, call))
    arguments = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)) for leaf in leaves
    )
    return _compiled(model, tree, arguments, batch, bucket, plan)


@lru_cache(maxsize=32)
def _compiled(
    model: Model, tree: Any, arguments: tuple[jax.ShapeDtypeStruct, ...], batch: int, bucket: int, plan: Plan
) -> Programs:
    params, call = jax.tree.unflatten(tree, arguments)
    tokens = jax.ShapeDtypeStruct((batch, bucket), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch, bucket), jnp.bool_)
    done = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    until = jax.ShapeDtypeStruct((), jnp.int32)
    key = program_key(model, plan, (params, call, tokens))
    pool = ThreadPoolExecutor()
    reading = pool.submit(read_program, key, "decode")
    known, read = read_program(key, "prefill"), reading.result()
    if known and read:
        pool.shutdown()
        give_back()
        return Programs(prefill=known, loop=_done(read), kept=_done(None))
    # A name that no other program has: JAX would find the same one in its own cache, and XLA:CPU writes one that was
    # read without the functions of its kernels.
    suffix = "" if key is None else f"_{secrets.token_hex(8)}"

    def jit(function: Any, **options: Any) -> Any:
        # Unwrapped: what the functions of this module have traced stays in JAX's caches.
        bound: Any = partial(unwrap(function), model, plan=plan)
        bound.__name__ = function.__name__ + suffix
        return jax.jit(bound, **options)

    # The first compiles while the second is traced, and the second while the first runs.
    first = jit(prefill).trace(params, tokens, mask, done, call)
    compiled = pool.submit(_compile, first)
    # The state is given away.
    loop = pool.submit(_compile, jit(decode, donate_argnums=1).trace(params, first.out_info, done, call, until))

    def keep() -> None:
        keep_program(key, "prefill", compiled.result())
        keep_program(key, "decode", loop.result())

    kept = pool.submit(keep)
    pool.shutdown(wait=False)
    return Programs(prefill=compiled.result(), loop=loop, kept=kept)


def _compile(traced: jax.stages.Traced) -> jax.stages.Compiled:
    compiled = traced.lower().compile()
    give_back()
    return compiled


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future

"""The pieces of the compiled programs, with a count in place of a model: chunks, what is recorded, when the loop ends.

Shapes: B rows, T prompt tokens, D hidden, J tokens at a time, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.generation.loop import NEXT_TOKEN, decode, read_prompt
from bombus.generation.request import make_request
from bombus.generation.sampling import choose
from bombus.generation.state import Plan, State, Strategy, append, empty_state, record


class Counting:
    """In place of a model: its cache is a number per row, whose last digits are the first tokens of what was read."""

    spec = SimpleNamespace(vocab_size=5)

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def init_cache(self, batch: int, length: int, **options: Any) -> jax.Array:
        self.asked.append((batch, length, options))
        return jnp.zeros((batch,), jnp.int32)

    def apply(
        self, params: Any, tokens_BT: jax.Array, *, mask: jax.Array, cache: jax.Array, last_only: bool
    ) -> SimpleNamespace:
        assert last_only
        logits_B1V = jax.nn.one_hot(tokens_BT[:, -1:], 5) * mask[:, -1:, None].astype(jnp.float32)
        hidden = tokens_BT[..., None].astype(jnp.float32)
        return SimpleNamespace(logits=logits_B1V, cache=cache * 10 + tokens_BT[:, 0], hidden_state=hidden)


TOKENS = np.array([[0, 0, 0, 1, 2, 4], [1, 4, 2, 3, 3, 2]], np.int32)
MASK = np.array([[0, 0, 0, 1, 1, 1], [1] * 6], np.bool_)


@pytest.mark.parametrize(("chunk", "digits"), [(6, [0, 1]), (3, [1, 13]), (2, [2, 123])])
def test_chunks_are_read_in_order(chunk: int, digits: list[int]) -> None:
    """Each with its own mask; the logits are those after the last, the hidden states those of all."""
    model, strategy = Counting(), replace(NEXT_TOKEN, lookback=3)
    plan = Plan(new_tokens=7, chunk=chunk, strategy=strategy, cache_format=bombus.CacheFormat(keys="int8"))
    logits_BV, cache, hidden_BTD = read_prompt(model, None, TOKENS, MASK, plan, keep_hidden=True)
    assert model.asked == [(2, 6 + 7 + 3, {"format": plan.cache_format, "lookback": 3})]
    assert cache.tolist() == digits
    assert logits_BV.argmax(axis=1).tolist() == [4, 2]
    assert hidden_BTD[..., 0].tolist() == TOKENS.tolist()
    assert read_prompt(model, None, TOKENS, MASK, plan)[2] is None
    state = empty_state(model, TOKENS, MASK, np.array([False, True]), cache, plan)
    assert state.history.tokens_BL.tolist() == np.pad(TOKENS, ((0, 0), (0, 10))).tolist()
    assert state.history.real_BL.tolist() == np.pad(MASK, ((0, 0), (0, 10))).tolist()
    assert (int(state.history.length), int(state.history.step), state.history.prompt_slots) == (6, 0, 6)
    assert [leaf.shape for leaf in vars(state.logprobs).values()] == [(2, 10), (2, 10, 5), (2, 10, 5)]


def test_what_is_recorded(loaded: bombus.LoadedModel) -> None:
    """The first two of three tokens a row: where they go, which rows are done, log-probabilities at their steps."""
    call = make_request(loaded, [[1]] * 4, {"stop_token_ids": [3, 4, 0], "logprobs": True}, has_text=False).call
    plan = Plan(new_tokens=8, chunk=2, strategy=NEXT_TOKEN)
    prompts = jnp.ones((4, 2), jnp.int32)
    state = empty_state(Counting(), prompts, prompts > 0, jnp.array([False, False, True, False]), None, plan)
    logits_BJV = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32))
    tokens_BJ = jnp.array([[1, 2, 3], [1, 4, 0], [1, 3, 1], [3, 1, 1]], jnp.int32)
    put = jax.jit(record)
    one = put(state, tokens_BJ, logits_BJV, jnp.int32(1), call)
    assert one.done.tolist() == [False, False, True, True]
    two = put(one, tokens_BJ, logits_BJV, jnp.int32(2), call)
    assert two.done.tolist() == [False, True, True, True]
    assert int(two.history.step) == 3
    assert two.history.tokens_BL[:, 2:5].tolist() == [[1, 1, 2], [1, 1, 4], [0, 0, 0], [3, 0, 0]]
    assert two.history.real_BL[:, :6].tolist() == [
        [True] * 5 + [False],
        [True] * 5 + [False],
        [True] * 2 + [False] * 4,
        [True] * 3 + [False] * 3,
    ]
    expected = np.asarray(jax.nn.log_softmax(logits_BJV))
    np.testing.assert_allclose(
        two.logprobs.chosen[0, :3], [expected[0, 0, 1], expected[0, 0, 1], expected[0, 1, 2]], rtol=1e-5
    )
    assert two.logprobs.top_ids[1, 2].tolist() == np.argsort(-expected[1, 1]).tolist()
    np.testing.assert_allclose(two.logprobs.top[1, 2], -np.sort(-expected[1, 1]), rtol=1e-5)


def test_every_step_has_its_own_draw(loaded: bombus.LoadedModel) -> None:
    """From the same logits: that of the row's seed and of the step."""
    call = make_request(loaded, [[1]] * 4, {"temperature": 1.0, "top_k": 0}, has_text=False).call
    plan = Plan(new_tokens=4, chunk=2, strategy=NEXT_TOKEN)
    prompts, logits_BV = jnp.ones((4, 2), jnp.int32), jnp.zeros((4, loaded.spec.vocab_size), jnp.float32)
    state = empty_state(loaded.model, prompts, prompts > 0, jnp.zeros((4,), jnp.bool_), None, plan)
    put = jax.jit(partial(append, plan=plan))
    for _ in range(3):
        state = put(state, logits_BV, call)
    draws = [choose(logits_BV, call.sampling, jnp.int32(step)).tolist() for step in range(3)]
    assert state.history.tokens_BL[:, 2:5].T.tolist() == draws
    assert len(set(map(tuple, draws))) == 3


def _begin(model: Any, params: Any, tokens_BT: Any, mask_BT: Any, done_B: Any, call: Any, plan: Plan) -> State:
    return empty_state(model, tokens_BT, mask_BT, done_B, None, plan)


def _advance(stop_at: int, model: Any, params: Any, state: State, call: Any, plan: Plan) -> State:
    """One more slot; the first row is done after so many."""
    history = replace(state.history, length=state.history.length + 1)
    done = state.done | ((jnp.arange(2) == 0) & (history.step >= stop_at))
    return replace(state, history=history, done=done)


def test_the_loop_ends_at_its_aim_or_when_all_rows_are_done() -> None:
    """Rows that are done for a reason of ours count; nothing runs when there is nothing to do."""
    plan = Plan(new_tokens=8, chunk=6, strategy=Strategy(name="s", begin=_begin, advance=partial(_advance, 6)))
    model = Counting()

    def run(until: int, done: list[bool]) -> tuple[int, int, list[bool]]:
        state = empty_state(model, jnp.asarray(TOKENS), jnp.asarray(MASK), jnp.array([False, False]), None, plan)
        state = decode(model, None, state, jnp.array(done), None, jnp.int32(until), plan=plan)
        return int(state.history.step), int(state.passes), state.done.tolist()

    assert run(3, [False, False]) == (3, 3, [False, False])
    assert run(8, [False, False]) == (8, 8, [True, False])
    assert run(8, [False, True]) == (6, 6, [True, True])
    assert run(8, [True, True]) == (0, 0, [True, True])

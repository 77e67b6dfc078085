"""The user's own processors: objects with a memory, plain functions, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.generation.history import History
from bombus.generation.processors import LogitsProcessor, as_processor, run_processors

HISTORY = History(
    tokens_BL=np.zeros((2, 4), np.int32), real_BL=np.ones((2, 4), np.bool_), length=np.int32(2), prompt_slots=1
)


class Countdown:
    """A user's processor with a memory: less and less of a bias on token 0."""

    def init(self, batch: int, vocab_size: int) -> jax.Array:
        return jnp.full((batch,), vocab_size, jnp.float32)

    def __call__(self, state: jax.Array, logits_BV: jax.Array, history: History) -> tuple[jax.Array, jax.Array]:
        return logits_BV.at[:, 0].add(state), state - 1


def no_zero(logits_BV: jax.Array, history: History) -> jax.Array:
    """A user's plain function."""
    return logits_BV.at[:, 0].set(-jnp.inf)


def test_a_users_processor_keeps_its_memory_in_a_compiled_loop() -> None:
    processor = Countdown()
    assert as_processor(processor) is processor
    assert isinstance(processor, LogitsProcessor)

    def body(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        return processor(carry[1], carry[0], HISTORY), None

    start = jnp.zeros((2, 5)), processor.init(2, 5)
    (logits, state), _ = jax.lax.scan(body, start, None, length=3)
    np.testing.assert_array_equal(logits, [[5 + 4 + 3, 0, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(state, [2, 2])


def test_a_plain_function_is_a_processor_without_memory() -> None:
    """The same function is the same processor, so its program is found again."""
    processor = as_processor(no_zero)
    assert processor == as_processor(no_zero)
    assert hash(processor) == hash(as_processor(no_zero))
    assert processor != as_processor(lambda logits, history: logits)
    logits, state = processor(processor.init(1, 3), jnp.zeros((1, 3)), HISTORY)
    np.testing.assert_array_equal(logits, [[-np.inf, 0, 0]])
    assert state is None


def test_processors_run_in_order() -> None:
    """Each sees what the one before it gave; the states stay in order; without any, nothing changes."""
    chain = [as_processor(no_zero), Countdown(), as_processor(lambda logits, history: logits * 2 + 1)]
    states = [processor.init(2, 5) for processor in chain]
    logits, after = run_processors(chain[1:], states[1:], jnp.ones((2, 5)), HISTORY)
    np.testing.assert_array_equal(logits, [[13, 3, 3, 3, 3]] * 2)
    logits, after = run_processors(chain, states, jnp.ones((2, 5)), HISTORY)
    np.testing.assert_array_equal(logits, [[-np.inf, 3, 3, 3, 3]] * 2)
    assert (after[0], after[2]) == (None, None)
    np.testing.assert_array_equal(after[1], [4, 4])
    logits, after = run_processors([], [], jnp.ones((2, 5)), HISTORY)
    assert after == ()
    np.testing.assert_array_equal(logits, np.ones((2, 5)))


class Forgetful(Countdown):
    """Gives back its logits alone."""

    def __call__(self, state: jax.Array, logits_BV: jax.Array, history: History) -> Any:
        return logits_BV


@pytest.mark.parametrize(
    ("processor", "state", "name", "expected", "found"),
    [
        (Forgetful(), np.zeros(2, np.float32), "Forgetful", "(float32[2,5], float32[2])", "float32[2,5]"),
        (Countdown(), 3, "Countdown", "(float32[2,5], int32[])", "(float32[2,5], int32[])"),
        (lambda logits, history: logits[:, 1:], None, "<lambda>", "(float32[2,5], None)", "(float32[2,4], None)"),
        (lambda logits, history: None, None, "<lambda>", "(float32[2,5], None)", "(None, None)"),
        (lambda logits, history: "no", None, "<lambda>", "(float32[2,5], None)", "(str, None)"),
    ],
)
def test_what_a_processor_gives_back_is_checked(
    processor: Any, state: Any, name: str, expected: str, found: str
) -> None:
    """Except that a Python number may become an array."""
    chain, logits = [as_processor(processor)], jnp.zeros((2, 5))
    if expected == found:
        run_processors(chain, [state], logits, HISTORY)
        return
    with pytest.raises(bombus.GenerationError) as raised:
        run_processors(chain, [state], logits, HISTORY)
    assert str(raised.value) == (
        f"processor {name}: must give back logits and state of the shapes and types that it was given "
        f"(expected {expected}, found {found})"
    )


def test_what_is_no_processor_is_refused() -> None:
    with pytest.raises(bombus.GenerationError) as raised:
        as_processor("top_k")  # type: ignore[arg-type]
    assert str(raised.value) == (
        "processors: must be functions (logits, history) -> logits, or objects with init and __call__ (found 'top_k')"
    )

    @dataclass
    class Unhashable(Countdown):
        value: int = 0

    with pytest.raises(bombus.GenerationError) as raised:
        as_processor(Unhashable())
    assert str(raised.value) == (
        "processors: Unhashable cannot be hashed, so its program could not be found again. "
        "Make it a dataclass with frozen=True or eq=False"
    )

"""What changes the logits before a token is chosen: biases, penalties, bans, forced tokens, and the user's own.

Functions of float32 logits (B, V) and the history, in transformers' order and with its results, but that padding is
never a token: a row does not depend on the rows beside it. One that no row wants is not computed.

Shapes: B batch, L slots, V vocabulary, N new tokens, W sequences of at most M tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bombus.generation.history import History
from bombus.generation.sampling import Sampling
from bombus.policies.errors import GenerationError, Problem


@runtime_checkable
class LogitsProcessor(Protocol):
    """A change of the logits with a memory: part of the compiled program, which is found again by the object's hash.

    It runs after the settings' own processors and before a token is chosen.
    """

    def init(self, batch: int, vocab_size: int) -> Any:
        """The memory before the first new token: a pytree of arrays."""

    def __call__(self, state: Any, logits_BV: jax.Array, history: History) -> tuple[jax.Array, Any]:
        """The logits and the memory for the next token. It is traced: no Python value may depend on an array."""


@dataclass(frozen=True)
class _Function:
    """A plain function as a processor that remembers nothing; equal for the same function."""

    function: Callable[[jax.Array, History], jax.Array]

    def init(self, batch: int, vocab_size: int) -> None:
        return None

    def __call__(self, state: None, logits_BV: jax.Array, history: History) -> tuple[jax.Array, None]:
        return self.function(logits_BV, history), None


def as_processor(processor: LogitsProcessor | Callable[[jax.Array, History], jax.Array]) -> LogitsProcessor:
    """The processor itself, or a plain function (logits_BV, history) -> logits_BV as one.

    Raises GenerationError for anything else, and for what cannot be hashed.
    """
    problem = None
    if not callable(processor):
        problem = Problem(
            subject="processors",
            message="must be functions (logits, history) -> logits, or objects with init and __call__",
            found=f"{processor!r:.80}",
        )
    elif type(processor).__hash__ is None:
        problem = Problem(
            subject="processors",
            message=f"{type(processor).__name__} cannot be hashed, so its program could not be found again",
            remedy="make it a dataclass with frozen=True or eq=False",
        )
    if problem is not None:
        raise GenerationError(problem)
    return processor if isinstance(processor, LogitsProcessor) else _Function(processor)


def run_processors(
    processors: Sequence[LogitsProcessor], states: Sequence[Any], logits_BV: jax.Array, history: History
) -> tuple[jax.Array, tuple[Any, ...]]:
    """The logits after the user's processors, in order, and what these remember then.

    Raises GenerationError, while a program is traced, for one whose result the next token could not use.
    """
    remembered = []
    for processor, state in zip(processors, states, strict=True):
        given = _types((logits_BV, state))
        result = processor(state, logits_BV, history)
        if _types(result) != given:
            name = processor.function if isinstance(processor, _Function) else type(processor)
            raise GenerationError(
                Problem(
                    subject=f"processor {getattr(name, '__name__', name)}",
                    message="must give back logits and state of the shapes and types that it was given",
                    expected=given,
                    found=_types(result),
                )
            )
        logits_BV, state = result
        remembered.append(state)
    return logits_BV, tuple(remembered)


def _types(tree: Any) -> str:
    def name(leaf: Any) -> str:
        # A Python number becomes a weakly typed array, which is as good as another.
        known = isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)
        return str(jax.typeof(leaf)).removeprefix("~") if known else type(leaf).__name__

    return str(jax.tree.map(name, tree)).replace("'", "")


def process(logits_BV: jax.Array, history: History, sampling: Sampling) -> jax.Array:
    """Float32 logits (B, V) after all processors of the settings."""
    logits_BV = bias_tokens(logits_BV.astype(jnp.float32), sampling.bias_V, sampling.biased)
    logits_BV = bias_sequences(logits_BV, history, sampling.sequences_WM, sampling.sequence_bias_W)
    logits_BV = penalize_repetition(logits_BV, history, sampling.repetition_penalty)
    logits_BV = penalize_new_tokens(logits_BV, history, sampling.presence_penalty, sampling.frequency_penalty)
    logits_BV = ban_repeated_ngrams(logits_BV, history, sampling.no_repeat_ngram)
    logits_BV = put_off_stop(logits_BV, history, sampling.stop, sampling.min_new_tokens, sampling.min_length)
    logits_BV = bias_first(logits_BV, history, sampling.first_bias_V, sampling.forced_bos)
    return force(logits_BV, history, sampling.forced_N, sampling.forced_bos)


def bias_tokens(logits_BV: jax.Array, bias_V: jax.Array, biased: jax.Array) -> jax.Array:
    """With the bias of every token, where any has one; -inf bans it."""
    return lax.cond(biased, lambda logits_BV: logits_BV + bias_V, lambda logits_BV: logits_BV, logits_BV)


def bias_sequences(logits_BV: jax.Array, history: History, sequences_WM: jax.Array, bias_W: jax.Array) -> jax.Array:
    """With the bias of every sequence on its last token, where a row ends in the tokens before that; -inf bans it.

    Sequences are right-aligned after -1. Prompt and new tokens count alike.
    """

    def apply(logits_BV: jax.Array) -> jax.Array:
        slots_M = history.length - sequences_WM.shape[1] + 1 + jnp.arange(sequences_WM.shape[1] - 1)
        real_BM = jnp.where(slots_M >= 0, history.real_BL[:, slots_M], False)
        end_BM = jnp.where(real_BM, history.tokens_BL[:, slots_M], -2)
        before_WM = sequences_WM[:, :-1]
        matches_BW = ((before_WM == end_BM[:, None]) | (before_WM < 0)).all(axis=-1)
        bias_BW = jnp.where(matches_BW, bias_W, 0.0)
        return logits_BV.at[:, _inside(sequences_WM[:, -1], logits_BV)].add(bias_BW, mode="drop")

    return lax.cond(jnp.any(sequences_WM[:, -1] >= 0), apply, lambda logits_BV: logits_BV, logits_BV)


def penalize_repetition(logits_BV: jax.Array, history: History, penalty_B: jax.Array) -> jax.Array:
    """Positive logits of the tokens of prompt and text over the penalty, negative ones times it; 1 changes nothing.

    Keskar et al. 2019, CTRL.
    """

    def apply(logits_BV: jax.Array) -> jax.Array:
        seen_BV = _counts(logits_BV, history.tokens_BL, history.real_BL) > 0
        penalty_B1 = penalty_B[:, None]
        penalized_BV = jnp.where(logits_BV < 0, logits_BV * penalty_B1, logits_BV / penalty_B1)
        return jnp.where(seen_BV, penalized_BV, logits_BV)

    return lax.cond(jnp.any(penalty_B != 1), apply, lambda logits_BV: logits_BV, logits_BV)


def penalize_new_tokens(
    logits_BV: jax.Array, history: History, presence_B: jax.Array, frequency_B: jax.Array
) -> jax.Array:
    """Logits less `presence` where a token is among the new ones, and less `frequency` for every time; 0 is off.

    As OpenAI's and vLLM's: the prompt does not count.
    """

    def apply(logits_BV: jax.Array) -> jax.Array:
        counts_BV = _counts(logits_BV, history.tokens_BL, history.new_BL)
        present_BV = (counts_BV > 0).astype(jnp.float32)
        return logits_BV - frequency_B[:, None] * counts_BV - presence_B[:, None] * present_BV

    return lax.cond(jnp.any((presence_B != 0) | (frequency_B != 0)), apply, lambda logits_BV: logits_BV, logits_BV)


def ban_repeated_ngrams(logits_BV: jax.Array, history: History, size_B: jax.Array) -> jax.Array:
    """-inf where a token would end a run of `size` tokens that prompt and text already hold; 0 is off."""
    tokens_BL, real_BL = history.tokens_BL, history.real_BL
    slots = tokens_BL.shape[1]

    def apply(logits_BV: jax.Array) -> jax.Array:
        def compare(back: jax.Array, ends_BL: jax.Array) -> jax.Array:
            """Keeps the slots whose `back`-th token before is the row's `back`-th last."""
            last = history.length - back
            last_B1 = lax.dynamic_slice_in_dim(tokens_BL, last, 1, axis=1)
            exists_B1 = lax.dynamic_slice_in_dim(real_BL, last, 1, axis=1) & (last >= 0)
            same_BL = (tokens_BL == last_B1) & real_BL & exists_B1
            same_BL = jnp.roll(same_BL, back, axis=1) & (jnp.arange(slots) >= back)
            return ends_BL & (same_BL | (size_B[:, None] <= back))

        # One more than the slots would find nothing either.
        passes = jnp.minimum(jnp.max(size_B), slots + 1)
        ends_BL = lax.fori_loop(1, passes, compare, real_BL & (size_B[:, None] > 0))
        return jnp.where(_counts(logits_BV, tokens_BL, ends_BL) > 0, -jnp.inf, logits_BV)

    return lax.cond(jnp.any(size_B > 0), apply, lambda logits_BV: logits_BV, logits_BV)


def put_off_stop(
    logits_BV: jax.Array, history: History, stop: jax.Array, min_new_tokens_B: jax.Array, min_length_B: jax.Array
) -> jax.Array:
    """-inf at the stop ids while a row has fewer new tokens than one number, or tokens in all than the other."""
    early_B = (history.step < min_new_tokens_B) | (history.prompt_length_B + history.step < min_length_B)

    def apply(logits_BV: jax.Array) -> jax.Array:
        stopped_BV = logits_BV.at[:, _inside(stop, logits_BV)].set(-jnp.inf, mode="drop")
        return jnp.where(early_B[:, None], stopped_BV, logits_BV)

    return lax.cond(jnp.any(early_B), apply, lambda logits_BV: logits_BV, logits_BV)


def bias_first(logits_BV: jax.Array, history: History, first_bias_V: jax.Array, forced_bos: jax.Array) -> jax.Array:
    """With a bias on the first new token, or on the second one where the first is a forced bos."""
    first_B = jnp.where((forced_bos >= 0) & (history.prompt_length_B == 1), 1, 0)

    def apply(logits_BV: jax.Array) -> jax.Array:
        return jnp.where((history.step == first_B)[:, None], logits_BV + first_bias_V, logits_BV)

    return lax.cond(history.step <= 1, apply, lambda logits_BV: logits_BV, logits_BV)


def force(logits_BV: jax.Array, history: History, forced_N: jax.Array, forced_bos: jax.Array) -> jax.Array:
    """0 at the token of this step and -inf at all others, whatever was suppressed; -1 forces nothing.

    forced_bos () comes first in a row whose prompt is a single token.
    """
    step, room = history.step, len(forced_N)
    planned = jnp.where(step < room, forced_N[jnp.minimum(step, room - 1)], -1)
    bos_B = jnp.where((step == 0) & (history.prompt_length_B == 1), forced_bos, -1)
    forced_B1 = jnp.where(planned >= 0, planned, bos_B)[:, None]

    def apply(logits_BV: jax.Array) -> jax.Array:
        only_BV = jnp.where(jnp.arange(logits_BV.shape[1]) == forced_B1, 0.0, -jnp.inf)
        return jnp.where(forced_B1 >= 0, only_BV, logits_BV)

    return lax.cond(jnp.any(forced_B1 >= 0), apply, lambda logits_BV: logits_BV, logits_BV)


def _counts(logits_BV: jax.Array, tokens_BL: jax.Array, counted_BL: jax.Array) -> jax.Array:
    """How often each token stands in the counted slots, (B, V) float32."""
    rows_B1 = jnp.arange(len(tokens_BL))[:, None]
    return jnp.zeros_like(logits_BV).at[rows_B1, tokens_BL].add(counted_BL.astype(jnp.float32), mode="drop")


def _inside(ids: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """The ids with -1, which would be the last token, moved past the vocabulary, where it is dropped."""
    return jnp.where(ids < 0, logits_BV.shape[1], ids)

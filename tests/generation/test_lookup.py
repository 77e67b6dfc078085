"""Prompt lookup: what is drafted, and that the text is the one without drafts, in fewer passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.generation.history import History
from bombus.generation.lookup import draft
from bombus.generation.request import make_request
from bombus.generation.sizes import size_bucket

# Texts of few tokens, in which many drafts are right and many are right at first.
FEW = (0, 5, 9, 11, 140, 186)
OTHERS = tuple(token for token in range(320) if token not in FEW)
PROMPTS = [[5, 9, 11] * 6, [9, 5, 5, 11, 140, 9, 5, 186, 0, 0, 5, 11, 140, 11, 9, 186, 9, 9, 140, 5, 5]]
_draft = jax.jit(draft, static_argnames="drafts")


@dataclass(frozen=True)
class Counting:
    """A processor with a memory: every eighth token of a row is one of the few, in turn."""

    def init(self, batch: int, vocab_size: int) -> jax.Array:
        return jnp.zeros((batch,), jnp.int32)

    def __call__(self, state: jax.Array, logits_BV: jax.Array, history: History) -> tuple[jax.Array, jax.Array]:
        turn_B1 = jnp.asarray(FEW)[state // 8 % len(FEW)][:, None]
        turn_BV = (jnp.arange(logits_BV.shape[1]) == turn_B1) & (state[:, None] % 8 == 7)
        return jnp.where(turn_BV, logits_BV + 100, logits_BV), state + 1


@pytest.fixture(scope="module")
def loaded(tiny: Callable[..., Path]) -> bombus.LoadedModel:
    """A tiny Mistral whose cache is a ring of 8 slots."""
    return bombus.load_model(tiny("mistral", "f32", sliding_window=8))


@pytest.fixture(scope="module")
def both(loaded: bombus.LoadedModel) -> Callable[..., list[list[bombus.Generated]]]:
    """The rows without drafts and with them."""

    def run(prompts: list[list[int]] = PROMPTS, **options: Any) -> list[list[bombus.Generated]]:
        defaults = {"max_new_tokens": 60, "stop_token_ids": (), "temperature": 0, "suppress_tokens": OTHERS}
        options = defaults | {"processors": [Counting()]} | options
        return [
            bombus.generate_tokens(loaded, prompts, **options, prompt_lookup_num_tokens=drafts) for drafts in (0, 6)
        ]

    return run


def drafts_by_hand(row: list[int], ngram: int, count: int) -> list[int]:
    """What follows the latest of the longest matches with the row's end, again and again."""

    def matching(end: int) -> int:
        return next((n for n in range(min(ngram, end), 0, -1) if row[end - n : end] == row[-n:]), 0)

    start = max(range(1, len(row)), key=lambda end: (matching(end), end))
    following = row[start:]
    return [following[index % len(following)] for index in range(count)]


def history(rows: list[list[int]], length: int, slots: int) -> History:
    tokens, real = np.zeros((2, len(rows), slots), np.int32)
    for index, row in enumerate(rows):
        tokens[index, length - len(row) : length] = row
        real[index, length - len(row) : length] = 1
    # What a rewound pass has left behind.
    tokens[:, length:] = 2
    return History(
        tokens_BL=jnp.asarray(tokens),
        real_BL=jnp.asarray(real.astype(bool)),
        length=jnp.asarray(length, jnp.int32),
        prompt_slots=4,
    )


def test_drafts_follow_the_latest_longest_match() -> None:
    """Rows of few distinct tokens, 0 among them, which padding looks like; every longest run, in one program."""
    random = np.random.default_rng(0)
    for length in (7, 20, 24):
        rows = [random.integers(0, 3, size).tolist() for size in (2, 5, length - 1, length)]
        for ngram in (1, 2, 3, 2**31 - 1):
            found = _draft(history(rows, length, 24), jnp.asarray(ngram, jnp.int32), drafts=5)
            assert found.tolist() == [drafts_by_hand(row, ngram, 5) for row in rows]
    assert _draft._cache_size() == 1


def test_drafts_of_a_period_and_of_nothing() -> None:
    rows = [[8, 3, 4, 5, 3, 4, 5, 3], [1, 2, 3, 4, 5, 6, 7, 8], [0] * 8, [9]]
    found = _draft(history(rows, 8, 24), jnp.asarray(2, jnp.int32), drafts=5)
    assert found.tolist()[:3] == [[4, 5, 3, 4, 5], [8, 8, 8, 8, 8], [0, 0, 0, 0, 0]]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_matching_ngram_size": 1},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.4, "presence_penalty": -0.3},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 20, "stop_token_ids": (186, 140)},
    {"stop_token_ids": (11,)},
    {"stop_token_ids": (140,)},
    {"suppress_tokens": (*OTHERS, 186, 140), "bad_words_ids": [[9, 11], [0, 0, 0]], "forced_eos_token_id": 9},
    {"forced_tokens": {3: 11, 17: 0, 18: 5}, "max_new_tokens": 53},
    {"temperature": 0.7, "top_k": 5, "seed": [3, 1], "logprobs": True, "top_logprobs": 2},
]


def test_the_text_is_the_same_under_every_setting(
    both: Callable[..., list[list[bombus.Generated]]], compilations: list[str]
) -> None:
    """Tokens, reasons and log-probabilities; nothing is compiled after the first call."""
    both()
    compiled = len(compilations)
    for settings in SETTINGS:
        plain, looked_up = both(**settings)
        for expected, row in zip(plain, looked_up, strict=True):
            assert (row.tokens, row.finish_reason) == (expected.tokens, expected.finish_reason), settings
            assert [*(row.logprobs or [])] == pytest.approx([*(expected.logprobs or [])], abs=1e-4)
            assert list(map(set, row.top_logprobs or [])) == list(map(set, expected.top_logprobs or []))
    assert len(compilations) == compiled


def test_passes_are_saved_and_the_batch_takes_those_of_its_slowest_row(
    both: Callable[..., list[list[bombus.Generated]]],
) -> None:
    passes = []
    for prompts in ([PROMPTS[0]] * 2, [PROMPTS[1]] * 2, PROMPTS):
        plain, looked_up = ([row.timings for row in rows] for rows in both(prompts))
        assert {(timings.passes, timings.decode_tokens) for timings in plain} == {(60, 59)}
        assert {timings.decode_tokens for timings in looked_up} == {59}
        passes.append(looked_up[0].passes)
    assert max(passes[:2]) <= passes[2] < 45
    # With drafts that are always right: a token before any, and then seven in a pass.
    _, ones = both([[5] * 20] * 2, suppress_tokens=tuple(token for token in range(320) if token != 5))
    assert ones[0].tokens == [5] * 60
    assert ones[0].timings.passes == 1 + 9


def test_drafts_longer_than_the_text_do_not_make_it_longer(loaded: bombus.LoadedModel) -> None:
    """They take no more room than the new tokens."""
    options = {"max_new_tokens": 5, "do_sample": False, "prompt_lookup_num_tokens": 10**9}
    request = make_request(loaded, [[3] * 9], options, has_text=False)
    assert request.plan.strategy.size == request.plan.strategy.lookback == size_bucket(5)


def test_two_searches_at_once_are_refused(loaded: bombus.LoadedModel) -> None:
    with pytest.raises(bombus.GenerationError) as raised:
        bombus.generate_tokens(
            loaded, PROMPTS, prompt_lookup_num_tokens=4, penalty_alpha=0.5, num_beams=2, do_sample=False
        )
    assert str(raised.value) == (
        "generate: num_beams and penalty_alpha and prompt_lookup_num_tokens: ask for different searches "
        "(expected one of them, found num_beams=2, penalty_alpha=0.5, prompt_lookup_num_tokens=4)"
    )

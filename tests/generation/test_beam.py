"""Beam search against a plain one in Python: full passes, lists, float64, one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.generation.beam import Beams, _extend, beam_search
from bombus.generation.sampling import make_sampling
from bombus.generation.state import Call, Plan, empty_state
from bombus.generation.strategies import strategy_numbers

PROMPTS = [[5, 9, 11], [7, 1, 2, 3, 4, 5, 6, 250]]
BEAMS, SLOTS = 3, 24

Found = list[list[tuple[list[int], float]]]  # of every prompt, texts with their stop id, and scores


def discourage(logits_BV: jax.Array, history: bombus.History) -> jax.Array:
    """A processor of a user: no token likes to follow itself."""
    last_B1 = jax.lax.dynamic_slice_in_dim(history.tokens_BL, history.length - 1, 1, axis=1)
    return jnp.where(jnp.arange(logits_BV.shape[1]) == last_B1, logits_BV - 0.5, logits_BV)


@pytest.fixture(scope="module")
def loaded(tiny: Callable[..., Path]) -> bombus.LoadedModel:
    """A tiny Qwen3 in float32."""
    return bombus.load_model(tiny("qwen3", "f32"))


@pytest.fixture(scope="module")
def log_probabilities(loaded: bombus.LoadedModel) -> Callable[[list[list[int]]], np.ndarray]:
    """Of the next token of texts of one length, (M, V)."""
    apply = jax.jit(loaded.model.apply)

    def run(texts: list[list[int]]) -> np.ndarray:
        length = len(texts[0])
        padded = np.zeros((BEAMS, SLOTS), np.int32)
        padded[: len(texts), :length] = texts
        mask = np.arange(SLOTS)[None].repeat(BEAMS, 0) < length
        logits = np.asarray(apply(loaded.params, padded, mask=mask).logits, np.float64)[: len(texts), length - 1]
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    return run


@pytest.fixture(scope="module")
def by_hand(log_probabilities: Callable[[list[list[int]]], np.ndarray]) -> Callable[..., Found]:
    """The search as transformers defines it. change(log-probabilities, text, step): a processor."""

    def search(
        prompt: list[int],
        limit: int,
        stop: tuple[int, ...],
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        change: Callable[[np.ndarray, list[int], int], None] = lambda values, text, step: None,
    ) -> list[tuple[list[int], float]]:
        running: list[tuple[float, list[int]]] = [(0.0, [])]
        ended: list[tuple[float, list[int]]] = []
        for length in range(1, limit + 1):
            values = log_probabilities([prompt + text for _, text in running])
            for row, (_, text) in zip(values, running, strict=True):
                change(row, prompt + text, length - 1)
                row[(prompt + text)[-1]] -= 0.5
            candidates = [
                (total + row[token], [*text, token])
                for (total, text), row in zip(running, values.tolist(), strict=True)
                for token in range(len(row))
            ]
            candidates.sort(key=lambda candidate: -candidate[0])
            for total, text in candidates[:BEAMS]:
                if text[-1] in stop or length == limit:
                    ended.append((total / length**length_penalty, text))
            ended = sorted(ended, key=lambda candidate: -candidate[0])[:BEAMS]
            running = [candidate for candidate in candidates if candidate[1][-1] not in stop][:BEAMS]
            longest = limit if early_stopping == "never" and length_penalty > 0 else length
            full = len(ended) == BEAMS
            if full and (early_stopping is True or running[0][0] / longest**length_penalty <= ended[-1][0]):
                break
        return [(text, score) for score, text in ended]

    return lambda prompts, *args, **kwargs: [search(prompt, *args, **kwargs) for prompt in prompts]


@pytest.fixture(scope="module")
def beams(loaded: bombus.LoadedModel) -> Callable[..., Found]:
    """All that ended, with the stop id that a result leaves out where there is only one that it can be."""

    def run(prompts: list[list[int]], limit: int, stop: tuple[int, ...], **options: Any) -> Found:
        defaults = {"do_sample": False, "num_beams": BEAMS, "num_return_sequences": BEAMS, "stop_token_ids": stop}
        defaults |= {"max_new_tokens": limit, "processors": [discourage]}
        rows = bombus.generate_tokens(loaded, prompts, **(defaults | options))
        assert [row.prompt_tokens for row in rows] == [len(prompt) for prompt in prompts for _ in range(BEAMS)]
        return [
            [(row.tokens + [-1] * (row.finish_reason == "stop"), row.score) for row in rows[first : first + BEAMS]]
            for first in range(0, len(rows), BEAMS)
        ]

    return run


def assert_same(found: Found, expected: Found, stop: tuple[int, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert [text for text, _ in ours] == [[*text[:-1], -1] if text[-1] in stop else text for text, _ in theirs], (
            expected
        )
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], rel=1e-4)


@pytest.fixture(scope="module")
def stops(by_hand: Callable[..., Found]) -> tuple[int, ...]:
    """Tokens that the search comes to, early and late."""
    texts = [text for prompt in by_hand(PROMPTS, 10, ()) for text, _ in prompt]
    return (texts[1][9], texts[4][9], texts[0][7])


def test_texts_and_scores_of_every_way_to_end(
    beams: Callable[..., Found], by_hand: Callable[..., Found], stops: tuple[int, ...], compilations: list[str]
) -> None:
    """length_penalty, early_stopping, stop ids and the limit differ between calls of one program."""
    assert_same(beams(PROMPTS, 12, ()), by_hand(PROMPTS, 12, ()), ())
    compiled = len(compilations)
    reasons, different = set(), set()
    for early_stopping in (False, True, "never"):
        for length_penalty in (1.0, 0.0, -1.5, 4.0):
            settings = {"early_stopping": early_stopping, "length_penalty": length_penalty}
            found = beams(PROMPTS, 12, stops, **settings)
            assert_same(found, by_hand(PROMPTS, 12, stops, **settings), stops)
            reasons |= {text[-1] == -1 for prompt in found for text, _ in prompt}
            different.add(str([[text for text, _ in prompt] for prompt in found]))
    for limit in (1, 2, 7):
        assert_same(beams(PROMPTS, limit, stops), by_hand(PROMPTS, limit, stops), stops)
    assert len(compilations) == compiled
    # Else the test would say less than it seems to.
    assert reasons == {True, False}
    assert len(different) >= 4


def test_when_a_prompt_is_done() -> None:
    """Each early_stopping by its rule, where all places are taken and what goes on has a worse sum for its length."""
    plan = Plan(new_tokens=4, chunk=1, strategy=beam_search(2))
    model: Any = SimpleNamespace(spec=SimpleNamespace(vocab_size=4))
    cache: Any = SimpleNamespace(take_rows=lambda rows_X: None)
    state = empty_state(model, jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), bool), jnp.zeros(1, bool), cache, plan)

    @jax.jit
    def run(call: Call, score: jax.Array) -> jax.Array:
        beams = Beams(
            sums_BM=jnp.asarray([[-2.0, -3.0]]),  # log(4) less with the next token: -3.39
            tokens_BMN=jnp.zeros((1, 2, 4), jnp.int32),
            lengths_BM=jnp.ones((1, 2), jnp.int32),
            scores_BM=jnp.stack([jnp.float32(-0.1), score])[None],
        )
        return _extend(replace(state, extra=beams), jnp.zeros((2, 4)), call, plan).done[0]

    def is_done(early_stopping: bool | str, length_penalty: float, score: float) -> bool:
        config = bombus.GenerationConfig(num_beams=2, length_penalty=length_penalty, early_stopping=early_stopping)
        sampling = make_sampling(config, batch=2, vocab_size=4, steps=4, max_new_tokens=4, stop_ids=(), seeds=(0, 0))
        call = Call(sampling=sampling, wants_logprobs=jnp.asarray(False), numbers=strategy_numbers(config, (4,)))
        return bool(run(call, jnp.float32(score)))

    # -3.39 at a length of 1 now, -0.85 at 4, the limit.
    for score, expected in ((-0.5, (True, True, True)), (-2.0, (True, True, False)), (-5.0, (False, True, False))):
        assert tuple(is_done(early, 1.0, score) for early in (False, True, "never")) == expected
    # Where length makes nothing better, "never" is as False.
    assert [is_done("never", penalty, -5.0) for penalty in (0.0, -1.0)] == [False, False]


def test_processors_change_log_probabilities(
    beams: Callable[..., Found], by_hand: Callable[..., Found], stops: tuple[int, ...]
) -> None:
    """Each beam by its own text: a penalty, no second pair, no early end, a forced last token."""

    def penalize(values: np.ndarray, text: list[int], step: int) -> None:
        values[list(set(text))] *= 1.5

    def ban_pairs(values: np.ndarray, text: list[int], step: int) -> None:
        values[[after for token, after in pairwise(text) if token == text[-1]]] = -np.inf

    def wait(values: np.ndarray, text: list[int], step: int) -> None:
        if step < 6:
            values[list(stops)] = -np.inf

    def end(values: np.ndarray, text: list[int], step: int) -> None:
        if step == 7:
            values[:] = np.where(np.arange(len(values)) == stops[0], 0.0, -np.inf)

    for settings, change in (
        ({"repetition_penalty": 1.5}, penalize),
        ({"no_repeat_ngram_size": 2}, ban_pairs),
        ({"min_new_tokens": 6}, wait),
        ({"forced_eos_token_id": stops[0]}, end),
    ):
        assert_same(beams(PROMPTS, 8, stops, **settings), by_hand(PROMPTS, 8, stops, change=change), stops)


def test_alone_a_prompt_gets_the_same_and_a_limit_of_its_own(
    beams: Callable[..., Found], by_hand: Callable[..., Found], stops: tuple[int, ...]
) -> None:
    """max_length leaves the shorter prompt more tokens."""
    found = beams(PROMPTS, None, stops, max_length=14, early_stopping="never")
    expected = [by_hand([prompt], 14 - len(prompt), stops, early_stopping="never")[0] for prompt in PROMPTS]
    assert_same(found, expected, stops)


def test_the_best_texts_come_first_and_as_text(loaded: bombus.LoadedModel, tiny: Callable[..., Path]) -> None:
    """A text for one sequence of one prompt, a list for several; the sum of log-probabilities where length is free."""
    tokenizer = bombus.load_tokenizer(tiny("qwen3", "f32"))
    options = {"num_beams": BEAMS, "max_new_tokens": 6, "do_sample": False, "length_penalty": 0.0}
    options["processors"] = [discourage]
    rows = bombus.generate_tokens(loaded, PROMPTS, **options, num_return_sequences=2)
    assert [row.prompt_tokens for row in rows] == [3, 3, 8, 8]
    assert rows[0].score > rows[1].score
    texts = bombus.generate(loaded, tokenizer, PROMPTS, **options, num_return_sequences=2)
    assert texts == [tokenizer.decode(row.tokens) for row in rows]
    assert bombus.generate(loaded, tokenizer, PROMPTS, **options) == texts[::2]


class Remembering:
    """A processor with a memory."""

    def init(self, batch: int, vocab_size: int) -> jax.Array:
        return jnp.zeros((batch, vocab_size))

    def __call__(self, state: jax.Array, logits_BV: jax.Array, history: bombus.History) -> tuple[jax.Array, jax.Array]:
        return logits_BV, state


def test_what_does_not_go_with_beams_is_refused_together(loaded: bombus.LoadedModel, tiny: Callable[..., Path]) -> None:
    tokenizer = bombus.load_tokenizer(tiny("qwen3", "f32"))
    with pytest.raises(bombus.GenerationError) as raised:
        bombus.generate(
            loaded,
            tokenizer,
            "a",
            num_beams=2,
            do_sample=True,
            stop_strings=["b"],
            logprobs=True,
            processors=[Remembering()],
        )
    assert str(raised.value) == (
        "generate: 4 problems\n"
        "  - do_sample: does not go with beams (found num_beams=2). Pass do_sample=False, or num_beams=1\n"
        "  - stop_strings: are not looked for in beams (found num_beams=2). Pass stop_token_ids\n"
        "  - logprobs: are not kept for beams (found num_beams=2). Use Generated.score, the score of the whole text\n"
        "  - processors: with a memory cannot follow beams (found num_beams=2). Give functions of logits and history"
    )
    with pytest.raises(bombus.GenerationError) as raised:
        bombus.generate(loaded, tokenizer, "a", num_beams=2, do_sample=False, stream=True)
    assert str(raised.value) == (
        "generate: stream: is not for beams, which are known at the end only (found num_beams=2)"
    )

"""Contrastive search against its formula in float64, with a full pass for every candidate and no cache."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.generation.contrastive import Context, contrastive_search
from bombus.generation.request import make_request
from bombus.generation.sampling import make_sampling
from bombus.generation.state import Call, Plan, empty_state

PROMPTS = [list(range(3, 24)), [7, 1, 2, 3, 4, 5, 6, 250]]
CANDIDATES, NEW_TOKENS, SLOTS = 4, 14, 48


@pytest.fixture(scope="module")
def loaded(tiny: Callable[..., Path]) -> bombus.LoadedModel:
    """A tiny Llama in float32."""
    return bombus.load_model(tiny("llama", "f32"))


@pytest.fixture(scope="module")
def by_hand(loaded: bombus.LoadedModel) -> Callable[..., list[int]]:
    """The new tokens by the formula, equation 5 of Su et al. 2022."""
    apply = jax.jit(loaded.model.apply)

    def read(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the next token, (K, V), and directions of the hidden states, (K, T, D)."""
        length = len(texts[0])
        padded = np.zeros((CANDIDATES, SLOTS), np.int32)
        padded[: len(texts), :length] = texts
        output = apply(loaded.params, padded, mask=np.arange(SLOTS)[None].repeat(CANDIDATES, 0) < length)
        logits = np.asarray(output.logits, np.float64)[: len(texts), length - 1]
        hidden = np.asarray(output.hidden_state, np.float64)[: len(texts), :length]
        exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponents, hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)

    def run(prompt: list[int], alpha: float, forbidden: Collection[int] = ()) -> list[int]:
        text = list(prompt)
        for _ in range(NEW_TOKENS):
            weights = read([text])[0][0]
            weights[list(forbidden)] = 0
            probabilities = weights / weights.sum()
            candidates = [int(token) for token in np.argsort(-probabilities)[:CANDIDATES]]
            _, directions = read([[*text, token] for token in candidates])
            scores = [
                (1 - alpha) * probabilities[token] - alpha * (states[:-1] @ states[-1]).max()
                for token, states in zip(candidates, directions, strict=True)
            ]
            text.append(candidates[int(np.argmax(scores))])
        return text[len(prompt) :]

    return run


@pytest.fixture(scope="module")
def search(loaded: bombus.LoadedModel) -> Callable[..., list[list[int]]]:
    def run(prompts: list[list[int]] = PROMPTS, **options: Any) -> list[list[int]]:
        defaults = {"max_new_tokens": NEW_TOKENS, "stop_token_ids": (), "do_sample": False, "top_k": CANDIDATES}
        # The longer prompt takes two chunks, and with it the shorter one.
        rows = bombus.generate_tokens(loaded, prompts, **(defaults | {"prefill_chunk": 16} | options))
        return [row.tokens for row in rows]

    return run


def test_tokens_are_those_of_the_formula(
    search: Callable[..., list[list[int]]], by_hand: Callable[..., list[int]], compilations: list[str]
) -> None:
    """For prompts of two lengths in chunks; another alpha compiles nothing."""
    found = search(penalty_alpha=0.6)
    compiled = len(compilations)
    others = [search(penalty_alpha=alpha) for alpha in (0.05, 1.0)]
    assert len(compilations) == compiled
    expected = [[by_hand(prompt, alpha) for prompt in PROMPTS] for alpha in (0.6, 0.05, 1.0)]
    assert [found, *others] == expected
    # The test says nothing where alpha does not matter.
    assert expected[0] != expected[1] != expected[2]


def test_padding_is_nothing_to_be_unlike() -> None:
    """A token whose state is that of padding, or of a free slot, is new; the other one's is that of the prompt."""
    plan = Plan(new_tokens=1, chunk=2, strategy=contrastive_search(2))
    states_VD = jnp.asarray([[1.0, 0.0], [-1.0, 0.1]])

    def apply(params: Any, tokens: jax.Array, **_: Any) -> Any:
        return SimpleNamespace(hidden_state=states_VD[tokens], logits=jnp.zeros((2, 1, 2)), cache=cache)

    model: Any = SimpleNamespace(spec=SimpleNamespace(vocab_size=2), apply=apply)
    cache: Any = SimpleNamespace(take_rows=lambda rows: cache)
    config = bombus.GenerationConfig(penalty_alpha=0.5, top_k=2)
    sampling = make_sampling(config, batch=1, vocab_size=2, steps=1, max_new_tokens=1, stop_ids=(), seeds=(0,))
    call = Call(sampling=sampling, wants_logprobs=jnp.asarray(False), numbers={"alpha": jnp.float32(0.5)})
    state = empty_state(model, jnp.asarray([[0, 1]]), jnp.asarray([[False, True]]), jnp.zeros(1, bool), cache, plan)
    slots_LD = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])  # padding, the prompt, the free slot
    # The prompt's token is the more probable one.
    context = Context(directions_BLD=slots_LD[None], logits_BV=jnp.asarray([[0.0, 0.5]]))
    tokens_BL = jax.jit(
        lambda call: plan.strategy.advance(model, {}, replace(state, extra=context), call, plan).history.tokens_BL
    )(call)
    assert tokens_BL.tolist() == [[0, 1, 0]]


def test_what_is_forbidden_is_no_candidate(
    search: Callable[..., list[list[int]]], by_hand: Callable[..., list[int]]
) -> None:
    """Where fewer tokens than candidates are allowed, the others are as unlike the text as can be, and improbable."""
    usual = {token for row in search(penalty_alpha=0.6) for token in row}
    allowed = search(penalty_alpha=0.6, suppress_tokens=tuple(usual))
    assert allowed == [by_hand(prompt, 0.6, usual) for prompt in PROMPTS]
    few = (5, 9, 11)
    rows = search(penalty_alpha=1.0, suppress_tokens=[token for token in range(320) if token not in few])
    assert {token for row in rows for token in row} <= set(few)
    forced = search(penalty_alpha=1.0, forced_tokens={0: 200, 3: 5}, forced_eos_token_id=9)
    assert [(row[0], row[3], row[-1]) for row in forced] == [(200, 5, 9)] * 2


def test_a_row_ends_at_its_stop_id_and_the_others_go_on(search: Callable[..., list[list[int]]]) -> None:
    rows = search(penalty_alpha=0.6)
    stop = next(token for token in rows[0] if token not in rows[1])
    assert search(penalty_alpha=0.6, stop_token_ids=(stop,)) == [rows[0][: rows[0].index(stop)], rows[1]]


def test_alone_and_in_one_pass_over_the_prompt_a_row_gets_the_same(search: Callable[..., list[list[int]]]) -> None:
    assert search(PROMPTS[:1], penalty_alpha=0.6, prefill_chunk=None) == search(penalty_alpha=0.6)[:1]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "contrastive search"),
        ({"top_k": 1}, "next token"),
        ({"penalty_alpha": 0.0}, "next token"),
        ({"do_sample": True}, "next token"),
    ],
)
def test_when_it_is_contrastive(loaded: bombus.LoadedModel, settings: dict[str, Any], name: str) -> None:
    """With penalty_alpha and more than one candidate, not sampling, as in transformers."""
    options = {"penalty_alpha": 0.6, "top_k": 4, "do_sample": False, **settings}
    assert make_request(loaded, PROMPTS, options, has_text=False).plan.strategy.name == name

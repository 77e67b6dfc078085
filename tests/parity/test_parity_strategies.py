"""Beam search against transformers' tokens and scores; prompt lookup against its greedy tokens and its own lookup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bombus

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NEW_TOKENS, BEAMS = 64, 3
SEARCHES: list[dict[str, Any]] = [
    {},
    {"length_penalty": 0.0, "early_stopping": "never"},
    {"length_penalty": 2.0, "early_stopping": "never"},
    {"length_penalty": -1.0, "early_stopping": True},
    {"repetition_penalty": 1.2, "early_stopping": True},
    {"no_repeat_ngram_size": 3, "min_new_tokens": 30},
    {"forced_eos_token_id": 3, "suppress_tokens": [5, 9], "bad_words_ids": [[4, 7], [11]]},
]


def theirs(model: Any, prompts: Sequence[Sequence[int]], stop: Sequence[int], **settings: Any) -> Any:
    """What transformers' generate returns, and where the new tokens begin."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=list(stop) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    with torch.no_grad():
        return model.generate(tokens, attention_mask=mask), longest


def until_stop(tokens: list[int], stop: Sequence[int]) -> list[int]:
    """Without the stop id, and what transformers fills the row up with."""
    return tokens[: next((index for index, token in enumerate(tokens) if token in stop), len(tokens))]


@pytest.fixture(scope="module", params=["stories", "tiny"])
def case(request: pytest.FixtureRequest, comparison: Any, tiny: Callable[..., Path]) -> tuple[Any, Any, Any]:
    """A trained model, and a random one: of transformers, of ours, and two prompts."""
    if request.param == "stories":
        folder = request.getfixturevalue("data") / "stories260K-hf"
        tokenizer = bombus.load_tokenizer(folder)
        prompts = [tokenizer.encode(text) for text in ("Once upon a time, there was a big cat. The big", "Lily")]
    else:
        folder = tiny("qwen3", "f32", seed=1)
        random = np.random.default_rng(0)
        prompts = [random.integers(1, 256, size).tolist() for size in (12, 5)]
    return comparison.read_transformers(folder), bombus.load_model(folder), prompts


@pytest.mark.parametrize("settings", SEARCHES, ids=lambda settings: "-".join(settings) or "default")
def test_beam_search_finds_the_same(case: tuple[Any, Any, Any], settings: dict[str, Any]) -> None:
    """All beams' tokens and scores, without stop ids and with two that the first beam comes to."""
    model, loaded, prompts = case
    stop: list[int] = []
    for _ in range(2):
        shared = {"num_beams": BEAMS, "num_return_sequences": BEAMS, **settings}
        expected, start = theirs(model, prompts, stop, **shared)
        found = bombus.generate_tokens(
            loaded, prompts, max_new_tokens=NEW_TOKENS, do_sample=False, stop_token_ids=stop, **shared
        )
        texts = [until_stop(tokens, stop) for tokens in expected.sequences[:, start:].tolist()]
        assert [row.tokens for row in found] == texts
        assert [row.score for row in found] == pytest.approx(expected.sequences_scores.tolist(), rel=1e-4, abs=1e-5)
        stop = stop or [texts[0][NEW_TOKENS // 3], texts[-1][NEW_TOKENS // 2]]


@pytest.mark.parametrize(
    "settings",
    [{}, {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 4}, {"max_matching_ngram_size": 3}],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_prompt_lookup_writes_the_same(case: tuple[Any, Any, Any], settings: dict[str, Any]) -> None:
    """Greedy tokens, in fewer passes; and those of transformers' lookup, which takes one prompt."""
    model, loaded, prompts = case
    greedy, start = theirs(model, prompts, (), **{k: v for k, v in settings.items() if k != "max_matching_ngram_size"})
    found = bombus.generate_tokens(
        loaded,
        prompts,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        stop_token_ids=(),
        prompt_lookup_num_tokens=5,
        **settings,
    )
    assert [row.tokens for row in found] == greedy.sequences[:, start:].tolist()
    for row, prompt in zip(found, prompts, strict=True):
        looked_up, start = theirs(model, [prompt], (), prompt_lookup_num_tokens=5, **settings)
        assert row.tokens == looked_up.sequences[0, start:].tolist()
    if not settings:
        assert found[0].timings.passes < NEW_TOKENS

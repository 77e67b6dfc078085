"""Our processors and filters against transformers' classes: each alone, and all in transformers' own order.

Shapes: B rows, L slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import bombus
from bombus.generation.history import History
from bombus.generation.processors import process
from bombus.generation.sampling import filtered, make_sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

ROWS, PROMPT_SLOTS, NEW_SLOTS, VOCAB = 4, 7, 9, 300
LETTERS = 5  # rows are written in so few tokens that runs repeat
MAX_NEW_TOKENS = 6
STOP = (2, 150)

compute = jax.jit(lambda logits_BV, history, sampling: filtered(process(logits_BV, history, sampling), sampling))


def ours(tokens_BL: np.ndarray, real_BL: np.ndarray, logits_BV: np.ndarray, prompt: int, **settings: Any) -> np.ndarray:
    """The logits that a token is drawn from, with none of our settings on but those that are given."""
    room = ((0, 0), (0, PROMPT_SLOTS + NEW_SLOTS - tokens_BL.shape[1]))
    history = History(
        tokens_BL=np.pad(tokens_BL, room, constant_values=1),
        real_BL=np.pad(real_BL, room),
        length=np.int32(tokens_BL.shape[1]),
        prompt_slots=prompt,
    )
    sampling = make_sampling(
        bombus.GenerationConfig(**{"do_sample": True, "top_k": 0} | settings),
        batch=ROWS,
        vocab_size=VOCAB,
        steps=NEW_SLOTS,
        max_new_tokens=MAX_NEW_TOKENS,
        stop_ids=STOP,
        seeds=range(ROWS),
    )
    return np.asarray(compute(logits_BV, history, sampling))


def theirs(processors: list[Any], tokens_BL: np.ndarray, logits_BV: np.ndarray) -> np.ndarray:
    tokens, logits = torch.tensor(tokens_BL, dtype=torch.long), torch.tensor(logits_BV)
    for processor in processors:
        logits = processor(tokens, logits)
    return logits.numpy()


def random_batches(prompt: int, count: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens of every number of steps, and logits from flat to steep."""
    random = np.random.default_rng(prompt)
    return [
        (
            random.integers(0, LETTERS, (ROWS, prompt + index % NEW_SLOTS)).astype(np.int32),
            random.normal(0, 0.5 + index % 5, (ROWS, VOCAB)).astype(np.float32),
        )
        for index in range(count)
    ]


BIASES = (((1,), 1.5), ((150,), -0.5), ((3, 1), 2.0), ((0, 4, 2), -3.0), ((1, 2), 0.75))
WORDS = ((3,), (1, 2), (4, 4), (0, 1, 2), (150,), (1, 2, 3, 0, 4, 0, 2, 3))

CASES: list[tuple[dict[str, Any], Callable[[Any, int], list[Any]]]] = [
    *(
        ({"repetition_penalty": value}, lambda t, prompt, value=value: [t.RepetitionPenaltyLogitsProcessor(value)])
        for value in (0.6, 1.3)
    ),
    *(
        ({"no_repeat_ngram_size": value}, lambda t, prompt, value=value: [t.NoRepeatNGramLogitsProcessor(value)])
        for value in (1, 2, 3, 4, 20)
    ),
    (
        {"sequence_bias": BIASES},
        lambda t, prompt: [t.SequenceBiasLogitsProcessor([[list(word), bias] for word, bias in BIASES])],
    ),
    (
        {"bad_words_ids": WORDS},
        lambda t, prompt: [t.NoBadWordsLogitsProcessor([list(word) for word in WORDS], eos_token_id=list(STOP))],
    ),
    ({"min_length": 9}, lambda t, prompt: [t.MinLengthLogitsProcessor(9, list(STOP))]),
    ({"min_new_tokens": 3}, lambda t, prompt: [t.MinNewTokensLengthLogitsProcessor(prompt, 3, list(STOP))]),
    ({"forced_bos_token_id": 9}, lambda t, prompt: [t.ForcedBOSTokenLogitsProcessor(9)]),
    (
        {"forced_eos_token_id": 150},
        lambda t, prompt: [t.ForcedEOSTokenLogitsProcessor(prompt + MAX_NEW_TOKENS, 150)],
    ),
    ({"suppress_tokens": (1, 3, 299)}, lambda t, prompt: [t.SuppressTokensLogitsProcessor([1, 3, 299])]),
    (
        {"begin_suppress_tokens": (1, 299)},
        lambda t, prompt: [t.SuppressTokensAtBeginLogitsProcessor([1, 299], prompt)],
    ),
    ({"temperature": 0.6}, lambda t, prompt: [t.TemperatureLogitsWarper(0.6)]),
    *(({"top_k": value}, lambda t, prompt, value=value: [t.TopKLogitsWarper(value)]) for value in (1, 40, 100, 10_000)),
    *(({"top_p": value}, lambda t, prompt, value=value: [t.TopPLogitsWarper(value)]) for value in (0.0, 0.5, 0.95)),
    *(({"min_p": value}, lambda t, prompt, value=value: [t.MinPLogitsWarper(value)]) for value in (0.01, 0.3, 1.0)),
    *(
        ({"typical_p": value}, lambda t, prompt, value=value: [t.TypicalLogitsWarper(value)])
        for value in (0.05, 0.5, 0.95)
    ),
    *(
        ({"epsilon_cutoff": value}, lambda t, prompt, value=value: [t.EpsilonLogitsWarper(value)])
        for value in (0.001, 0.02, 0.999)
    ),
    *(
        ({"eta_cutoff": value}, lambda t, prompt, value=value: [t.EtaLogitsWarper(value)])
        for value in (0.0005, 0.05, 0.9)
    ),
]


@pytest.mark.parametrize(("settings", "build"), CASES, ids=[str(settings)[:60] for settings, _ in CASES])
def test_each_is_transformers(settings: dict[str, Any], build: Callable[[Any, int], list[Any]]) -> None:
    """The same tokens are left, with the same logits to float32 rounding, after short and long prompts."""
    changed = False
    for prompt in (1, PROMPT_SLOTS):
        for tokens_BL, logits_BV in random_batches(prompt):
            expected = theirs(build(transformers.generation.logits_process, prompt), tokens_BL, logits_BV)
            found = ours(tokens_BL, np.ones(tokens_BL.shape, np.bool_), logits_BV, prompt, **settings)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
            changed |= not np.array_equal(expected, logits_BV)
    # A run longer than the text and a head longer than the vocabulary change nothing.
    assert changed == (settings not in ({"no_repeat_ngram_size": 20}, {"top_k": 10_000}))


def test_padding_is_not_repeated() -> None:
    """As in transformers' generate, which tells the penalty where each prompt begins."""
    for tokens_BL, logits_BV in random_batches(PROMPT_SLOTS):
        padding = np.array([0, 3, 6, 1])
        real_BL = np.arange(tokens_BL.shape[1]) >= padding[:, None]
        processor = transformers.generation.logits_process.RepetitionPenaltyLogitsProcessor(
            1.4, prompt_ignore_length=torch.tensor(padding)
        )
        expected = theirs([processor], tokens_BL, logits_BV)
        found = ours(tokens_BL, real_BL, logits_BV, PROMPT_SLOTS, repetition_penalty=1.4)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


SETTINGS: dict[str, Any] = {
    "repetition_penalty": 1.2,
    "no_repeat_ngram_size": 3,
    "sequence_bias": BIASES,
    "bad_words_ids": WORDS,
    "min_new_tokens": 3,
    "min_length": 5,
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 150,
    "suppress_tokens": (7, 299),
    "begin_suppress_tokens": (1, 20),
    "temperature": 0.8,
    "top_k": 90,
    "top_p": 0.95,
    "min_p": 0.002,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.002,
    "eta_cutoff": 0.01,
}
LISTS = {
    "sequence_bias": [[list(word), bias] for word, bias in BIASES],
    "bad_words_ids": [list(word) for word in WORDS],
    "suppress_tokens": [7, 299],
    "begin_suppress_tokens": [1, 20],
}


@pytest.mark.parametrize("prompt", [1, PROMPT_SLOTS])
def test_all_together_are_in_transformers_order(prompt: int) -> None:
    """The list that transformers' generate would make of the same settings."""

    class Bare(transformers.GenerationMixin):  # type: ignore[misc, name-defined]
        config = SimpleNamespace(is_encoder_decoder=False)

    config = transformers.GenerationConfig(**{"do_sample": True} | SETTINGS | LISTS, eos_token_id=list(STOP))
    config._eos_token_tensor = torch.tensor(STOP)
    config.max_length = prompt + MAX_NEW_TOKENS
    for tokens_BL, logits_BV in random_batches(prompt):
        real_BL = np.ones(tokens_BL.shape, np.bool_)
        processors = Bare()._get_logits_processor(config, input_ids_seq_length=prompt)
        assert len(processors) == len(SETTINGS)
        expected = theirs(list(processors), tokens_BL, logits_BV)
        found = ours(tokens_BL, real_BL, logits_BV, prompt, **SETTINGS)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

"""Our greedy tokens against those of transformers' `generate`: 200 of them, plain and with each setting switched on.

No near-tie is tolerated: the models and prompts are chosen so that at every step the best token leads by CLEAR at
least, which the tests hold, where both compute logits to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bombus

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NEW_TOKENS = 200
CLEAR = 2e-5
PAD = 0
TEXTS = ("Once upon a time, there was a little", "Tom and his dog")
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"seed": 1}),
    "llama": ("llama", {"seed": 3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model of both, prompts of different lengths, the last of a single token, and what follows them, greedy."""

    theirs: Any
    ours: bombus.LoadedModel
    prompts: list[list[int]]
    plain: list[list[int]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    """Threads cost such small models more than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["stories260K", *MODELS])
def case(request: pytest.FixtureRequest, comparison: Any, tiny: Callable[..., Path]) -> Case:
    if request.param == "stories260K":
        folder = request.getfixturevalue("data") / "stories260K-hf"
        reader, tokenizer = transformers.AutoTokenizer.from_pretrained(folder), bombus.load_tokenizer(folder)
        prompts = [tokenizer.encode(text) for text in TEXTS] + [[1]]
        assert prompts[:2] == [reader(text)["input_ids"] for text in TEXTS]
    else:
        architecture, options = MODELS[request.param]
        folder = tiny(architecture, "f32", **options)
        random = np.random.default_rng(0)
        prompts = [random.integers(1, 256, size).tolist() for size in (13, 6, 1)]
    model = comparison.read_transformers(folder)
    return Case(theirs=model, ours=bombus.load_model(folder), prompts=prompts, plain=with_transformers(model, prompts))


def with_transformers(
    model: Any, prompts: Sequence[Sequence[int]], stop: Sequence[int] = (), *, alone: bool = False, **settings: Any
) -> list[list[int]]:
    """The new tokens of every prompt, without what comes after a stop id, which is kept.

    alone: one prompt at a time, for settings to which transformers' padding is a token like any other.
    """
    if alone:
        return [row for prompt in prompts for row in with_transformers(model, [prompt], stop, **settings)]
    longest = max(map(len, prompts))
    tokens = torch.tensor([[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    # In place of the repository's: what is None in an argument would be taken from there.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=list(stop) or None,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    with torch.no_grad():
        found = model.generate(tokens, attention_mask=mask)
    rows = [until_stop(row, stop) for row in found.sequences[:, longest:].tolist()]
    best = torch.stack(found.scores).topk(2, dim=-1).values.numpy()
    leads = [best[: len(row), index, 0] - best[: len(row), index, 1] for index, row in enumerate(rows)]
    assert min(lead.min() for lead in leads) > CLEAR, "a near-tie: another seed or prompt would decide"
    return rows


def until_stop(row: list[int], stop: Sequence[int]) -> list[int]:
    end = next((index for index, token in enumerate(row) if token in stop), len(row))
    return row[: end + 1]


def with_bombus(
    case: Case, prompts: Sequence[Sequence[int]], stop: Sequence[int] = (), **settings: Any
) -> list[list[int]]:
    """The same of ours, in one batch; the stop id is put back."""
    rows = bombus.generate_tokens(
        case.ours, prompts, max_new_tokens=NEW_TOKENS, do_sample=False, stop_token_ids=stop, **settings
    )
    assert all(len(row.tokens) == NEW_TOKENS for row in rows if row.finish_reason == "length")
    return [row.tokens + [None] * (row.finish_reason == "stop") for row in rows]


def assert_equal(case: Case, stop: Sequence[int] = (), *, alone: bool = False, **settings: Any) -> list[list[int]]:
    """What both write, for all prompts."""
    expected = with_transformers(case.theirs, case.prompts, stop, alone=alone, **settings)
    ended = [[*row[:-1], None] if row[-1] in stop else row for row in expected]
    found = with_bombus(case, case.prompts, stop, **settings)
    for index, (row, wanted) in enumerate(zip(found, ended, strict=True)):
        step = next((step for step, pair in enumerate(zip(row, wanted, strict=False)) if len(set(pair)) > 1), None)
        assert row == wanted, f"prompt {index} differs from step {step} on"
    return expected


def common(rows: Sequence[Sequence[int]], count: int) -> list[int]:
    """The most frequent tokens, of every row its own."""
    best = [max(sorted(set(row)), key=row.count) for row in rows]
    rest = sorted({token for row in rows for token in row}, key=lambda token: -sum(row.count(token) for row in rows))
    return list(dict.fromkeys([*best, *rest]))[: max(count, len(set(best)))]


def pairs(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Two tokens that follow each other in the middle of a row, of each row."""
    return [row[50:52] for row in rows]


# What each setting is, after what the model writes without: it has to change every text. Alone: see with_transformers.
SETTINGS: dict[str, tuple[bool, Callable[[list[list[int]]], dict[str, Any]]]] = {
    "repetition_penalty": (True, lambda plain: {"repetition_penalty": 1.3}),
    "no_repeat_ngram_size": (True, lambda plain: {"no_repeat_ngram_size": 3}),
    "suppress_tokens": (False, lambda plain: {"suppress_tokens": common(plain, 5)}),
    "begin_suppress_tokens": (False, lambda plain: {"begin_suppress_tokens": [row[0] for row in plain]}),
    "forced_eos_token_id": (False, lambda plain: {"forced_eos_token_id": 3}),
    "bad_words_ids of one token": (False, lambda plain: {"bad_words_ids": [[token] for token in common(plain, 3)]}),
    "bad_words_ids of several": (False, lambda plain: {"bad_words_ids": [*pairs(plain), plain[0][9:12], [7, 7, 7]]}),
    "sequence_bias": (
        False,
        lambda plain: {
            "sequence_bias": [
                *([pair, -4.0] for pair in pairs(plain)),
                *([[token], -1.5] for token in common(plain, 2)),
                [[11], 0.5],
            ]
        },
    ),
    "several": (
        True,
        lambda plain: {
            "repetition_penalty": 1.15,
            "no_repeat_ngram_size": 4,
            "suppress_tokens": common(plain, 2),
            "begin_suppress_tokens": [5, 6],
            "bad_words_ids": [plain[0][20:22], [9]],
            "sequence_bias": [[[12], -0.5], [plain[1][30:33], 2.0]],
            "forced_bos_token_id": 21,
            "forced_eos_token_id": 3,
        },
    ),
}


def test_plain_and_at_a_stop_id(case: Case) -> None:
    """All tokens; and with two stop ids that transformers wrote in the middle of the first row and the second."""
    assert with_bombus(case, case.prompts) == case.plain
    assert {len(row) for row in case.plain} == {NEW_TOKENS}
    stop = [case.plain[0][NEW_TOKENS // 2], case.plain[1][NEW_TOKENS // 3]]
    assert len(assert_equal(case, stop)[0]) <= NEW_TOKENS // 2 + 1


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changes_the_text_in_the_same_way(case: Case, name: str) -> None:
    """Every row, to the last token, and each of them becomes another one than without."""
    alone, make = SETTINGS[name]
    found = assert_equal(case, alone=alone, **make(case.plain))
    changed = [row != before for row, before in zip(found, case.plain, strict=True)]
    assert all(changed), "the setting did nothing"


def test_min_new_tokens_puts_off_all_stop_ids(case: Case) -> None:
    """Of a list of them, that would end the text at its beginning, one ends it later or none does."""
    stop = [row[4] for row in case.plain]
    early = [len(until_stop(row, stop)) for row in case.plain]
    found = assert_equal(case, stop, min_new_tokens=60)
    assert max(early) <= 5
    assert min(map(len, found)) > 60


def test_a_forced_first_token(case: Case) -> None:
    """After a prompt of a single token, and no other."""
    forced = next(token for token in range(20, 99) if all(row[0] != token for row in case.plain))
    found = assert_equal(case, alone=True, forced_bos_token_id=forced)
    assert [row[0] == forced for row in found] == [False, False, True]
    assert found[:2] == case.plain[:2]

"""What a generation_config.json may not say: every field by its own text."""

from __future__ import annotations

import math
from typing import Any

import pytest

import bombus
from bombus import GenerationConfig

INF, NAN = math.inf, math.nan
IDS = "must be a token id or a list of them"
WORDS = "must be a list of lists of token ids, none of them empty"
BIAS = "a bias from -1e+30 to 1e+30, or -inf"
SEQUENCE = f"must be pairs of a list of token ids, not empty, and {BIAS}"
LOGIT = f"must be pairs of a token id and {BIAS}"
FORCED = "must be pairs of a new token's index (from 0, in forced_decoder_ids from 1) and a token id"
TEXTS = "must be a text or a list of texts, none of them empty"
# Of a field what may be, and values that may not.
RANGES: dict[str, tuple[str, list[Any]]] = {
    "do_sample": ("true or false", ["false", 1, 0.0, []]),
    "temperature": ("a number from 0.0 to 10000.0", ["hot", True, -0.1, 10001, INF, NAN, [1.0]]),
    "top_k": ("an integer from 0 to 2147483647", [20.5, -1, True, "50", 2**31, NAN, INF]),
    "top_p": ("a number from 0.0 to 1.0", [NAN, 2, -0.1, "1"]),
    "min_p": ("a number from 0.0 to 1.0", [1.1, -0.1, NAN, True]),
    "typical_p": ("a number above 0.0 to 1.0", [0, 1.1, NAN]),
    "epsilon_cutoff": ("a number from 0.0 to below 1.0", [1, -0.1, NAN]),
    "eta_cutoff": ("a number from 0.0 to below 1.0", [1.0, -0.1, NAN]),
    "repetition_penalty": ("a number above 0.0 to 10000.0", [0, -1, INF, NAN]),
    "presence_penalty": ("a number from -2.0 to 2.0", [-2.1, 2.1, NAN]),
    "frequency_penalty": ("a number from -2.0 to 2.0", [-2.1, 2.1, NAN]),
    "no_repeat_ngram_size": ("an integer from 0 to 2147483647", [-1, 0.5]),
    "max_new_tokens": ("an integer from 1", [0, 1.5, INF, NAN, True]),
    "max_length": ("an integer from 1", [0, "20"]),
    "min_new_tokens": ("an integer from 0 to 2147483647", [-1, 2**31]),
    "min_length": ("an integer from 0 to 2147483647", [-1, 2**31]),
    "penalty_alpha": ("a number from 0.0 to 1.0", [-0.1, 1.1]),
    "num_beams": ("an integer from 1 to 2147483647", [0, 1.5]),
    "length_penalty": ("a number from -10000.0 to 10000.0", [INF, -INF, NAN, "1"]),
    "early_stopping": ("true, false or 'never'", ["always", 1, 0.0]),
    "num_return_sequences": ("an integer from 1 to 2147483647", [0]),
    "prompt_lookup_num_tokens": ("an integer from 0 to 2147483647", [-1]),
    "max_matching_ngram_size": ("an integer from 1 to 2147483647", [0]),
}
SHAPES: dict[str, tuple[str, list[Any]]] = {
    "suppress_tokens": (IDS, [[-1], "all", "", [1.0], {"1": 1}, [[1]]]),
    "begin_suppress_tokens": (IDS, [[-1], True]),
    "forced_bos_token_id": ("must be a token id", [-1, "<s>", 1.0, True, [1, 2]]),
    "forced_eos_token_id": ("must be a token id", [-1, "</s>", [True]]),
    "forced_decoder_ids": (FORCED, [[[0, 5]], [[0, None]], [[1]], [[1, 2, 3]], [[1, -1]], 5, [5], [[2**31 + 1, 5]]]),
    "bad_words_ids": (WORDS, [[1, 2], [[]], [[-1]], ["ab"], "ab", {"1": 2}, 3]),
    "sequence_bias": (SEQUENCE, [[[[], 1.0]], [[[1], INF]], [[[1], NAN]], [[1, 1.0]], {"(1, 2)": 1.0}, [[[1], "1"]]]),
    "logit_bias": (
        LOGIT,
        [
            {"a": 1},
            {"-1": 1},
            {"1": INF},
            {"1": NAN},
            {"1": -(10**400)},
            {"1": True},
            {"9" * 11: 1},
            {"\u0663": 1},
            [1, 2],
        ],
    ),
    "eos_token_id": (IDS, ["end", [1, True], 1.0, -1, {"1": 1}]),
    "bos_token_id": ("must be a token id", [-1, "<s>"]),
    "pad_token_id": (IDS, [-1, "<pad>", [0, -1]]),
    "stop_strings": (TEXTS, ["", ["a", ""], 5, [5], {"a": 1}]),
}


@pytest.mark.parametrize("name", [*RANGES, *SHAPES])
def test_a_field_is_refused(name: str) -> None:
    for value in (RANGES if name in RANGES else SHAPES)[name][1]:
        found = repr(value)[:80]
        text = f"is out of range (expected {RANGES[name][0]}, " if name in RANGES else f"{SHAPES[name][0]} ("
        with pytest.raises(bombus.SpecError) as caught:
            GenerationConfig.from_hf({name: value})
        assert str(caught.value) == f"generation_config.json: field {name!r}: {text}found {found})"


def test_the_ends_of_every_range_are_in_it() -> None:
    for low in ({"temperature": 0, "top_k": 0, "top_p": 0, "epsilon_cutoff": 0}, {"presence_penalty": -2.0}):
        assert GenerationConfig.from_hf(low).unsupported == ()
    most = {"temperature": 10000, "top_k": 2**31 - 1, "min_length": 2**31 - 1, "typical_p": 1, "penalty_alpha": 1.0}
    assert GenerationConfig.from_hf(most).top_k == 2**31 - 1


def test_everything_out_of_range_is_listed() -> None:
    """NaN, a probability of 2, and ids that are no ids."""
    with pytest.raises(bombus.SpecError) as caught:
        GenerationConfig.from_hf(
            {"temperature": float("nan"), "top_p": 2, "eos_token_id": "end", "pad_token_id": -1, "do_sample": True}
        )
    assert [str(problem) for problem in caught.value.problems] == [
        "field 'temperature': is out of range (expected a number from 0.0 to 10000.0, found nan)",
        "field 'top_p': is out of range (expected a number from 0.0 to 1.0, found 2)",
        "field 'eos_token_id': must be a token id or a list of them (found 'end')",
        "field 'pad_token_id': must be a token id or a list of them (found -1)",
    ]


def test_an_end_that_the_model_never_gives() -> None:
    """With the size of the vocabulary: the last id is one, the next is not; padding may have any, as real files do."""
    config = {"eos_token_id": [2, 511], "pad_token_id": 512, "bos_token_id": 513}
    found = GenerationConfig.from_hf(config, vocab_size=512)
    assert (found.eos_token_ids, found.pad_token_id, found.bos_token_id) == ((2, 511), 512, 513)
    for ids in (512, [2, 512]):
        assert GenerationConfig.from_hf({"eos_token_id": ids}).eos_token_ids[-1] == 512
        with pytest.raises(bombus.SpecError) as caught:
            GenerationConfig.from_hf({"eos_token_id": ids}, vocab_size=512)
        assert str(caught.value) == (
            "generation_config.json: field 'eos_token_id': is out of range "
            f"(expected ids below the vocabulary of 512, found {ids})"
        )


@pytest.mark.parametrize(
    ("name", "within", "beyond"),
    [
        ("suppress_tokens", [1, 9], [1, 10]),
        ("begin_suppress_tokens", [9], [10]),
        ("forced_bos_token_id", 9, 10),
        ("forced_eos_token_id", 9, 10),
        ("forced_decoder_ids", [[50, 9]], [[50, 10]]),
        ("bad_words_ids", [[1, 9], [2]], [[10, 1]]),
        ("sequence_bias", [[[9, 1], 99.0]], [[[1, 10], 1.0]]),
        ("logit_bias", {"9": 99.0}, {"10": 1.0}),
        ("eos_token_id", [9, 0], [10, 0]),
    ],
)
def test_ids_outside_the_vocabulary(name: str, within: Any, beyond: Any) -> None:
    """Ids are, numbers beside them are not."""
    GenerationConfig.from_hf({name: within}, vocab_size=10)
    with pytest.raises(bombus.SpecError) as caught:
        GenerationConfig.from_hf({name: beyond}, vocab_size=10)
    text = f"field {name!r}: is out of range (expected ids below the vocabulary of 10, found {beyond!r})"
    assert str(caught.value) == f"generation_config.json: {text}"


def test_of_a_long_list_the_ids_outside_are_shown() -> None:
    with pytest.raises(bombus.SpecError, match=r"found \[600, 601, 602, 603, 604\]\)"):
        GenerationConfig.from_hf({"suppress_tokens": list(range(700))}, vocab_size=600)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"num_return_sequences": 2},
            "field 'num_return_sequences': asks for one greedy text several times (expected 1, found 2). "
            "Set do_sample, or num_beams to as many",
        ),
        (
            {"num_return_sequences": 4, "num_beams": 3, "do_sample": True},
            "field 'num_return_sequences': is more than num_beams (expected at most 3, found 4)",
        ),
        (
            {"suppress_tokens": [1, 2], "forced_bos_token_id": 2},
            "field 'forced_bos_token_id': is in suppress_tokens too (found [2])",
        ),
        (
            {"suppress_tokens": [1, 2], "forced_eos_token_id": 1},
            "field 'forced_eos_token_id': is in suppress_tokens too (found [1])",
        ),
        (
            {"suppress_tokens": [1, 2], "forced_decoder_ids": [[1, 2], [2, 7]]},
            "field 'forced_decoder_ids': is in suppress_tokens too (found [2])",
        ),
    ],
)
def test_fields_that_contradict_each_other(config: dict[str, Any], text: str) -> None:
    with pytest.raises(bombus.SpecError) as caught:
        GenerationConfig.from_hf(config)
    assert str(caught.value) == f"generation_config.json: {text}"


def test_fields_that_only_seem_to() -> None:
    for config in (
        {"num_return_sequences": 2, "do_sample": True},
        {"num_return_sequences": 3, "num_beams": 3},
        {"suppress_tokens": [1], "forced_bos_token_id": 2, "forced_decoder_ids": [[1, 2]]},
    ):
        assert GenerationConfig.from_hf(config).problems() == []

"""What a call sets, over what a file says, over the defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import bombus
from bombus import GenerationConfig
from bombus.loader.generation_settings import Settings

INF = math.inf
# Of every setting of a call: its name in a config, what a file may have set there, what the call gives, what is kept.
CALLS: dict[str, tuple[str, Any, Any, Any]] = {
    "do_sample": ("do_sample", True, False, False),
    "temperature": ("temperature", 0.6, 2, 2.0),
    "top_k": ("top_k", 20, 0, 0),
    "top_p": ("top_p", 0.95, np.float32(0.5), 0.5),
    "min_p": ("min_p", 0.1, 0, 0.0),
    "typical_p": ("typical_p", 0.2, 1, 1.0),
    "epsilon_cutoff": ("epsilon_cutoff", 3e-4, 0.5, 0.5),
    "eta_cutoff": ("eta_cutoff", 3e-4, 0.5, 0.5),
    "repetition_penalty": ("repetition_penalty", 1.05, 1, 1.0),
    "presence_penalty": ("presence_penalty", 1.0, -1, -1.0),
    "frequency_penalty": ("frequency_penalty", 1.0, 0, 0.0),
    "no_repeat_ngram_size": ("no_repeat_ngram_size", 3, 2, 2),
    "max_new_tokens": ("max_new_tokens", 100, np.int64(7), 7),
    "max_length": ("max_length", 4096, 20, 20),
    "min_new_tokens": ("min_new_tokens", 5, 0, 0),
    "min_length": ("min_length", 5, 6, 6),
    "suppress_tokens": ("suppress_tokens", (7, 8), [], ()),
    "begin_suppress_tokens": ("begin_suppress_tokens", (1,), range(3), (0, 1, 2)),
    "forced_bos_token_id": ("forced_bos_token_id", 1, 2, 2),
    "forced_eos_token_id": ("forced_eos_token_id", 1, 0, 0),
    "forced_tokens": ("forced_tokens", ((0, 50),), {2: 3, 0: 1}, ((2, 3), (0, 1))),
    "bad_words_ids": ("bad_words_ids", ((1,),), [[2, 3], (4,)], ((2, 3), (4,))),
    "sequence_bias": ("sequence_bias", (((1,), 2.0),), {(1, 2): -INF, (3,): 1}, (((1, 2), -INF), ((3,), 1.0))),
    "logit_bias": ("logit_bias", ((1, 2.0),), {5: -100, "6": 0.5}, ((5, -100.0), (6, 0.5))),
    "stop_token_ids": ("eos_token_ids", (1, 2), 3, (3,)),
    "bos_token_id": ("bos_token_id", 1, 2, 2),
    "pad_token_id": ("pad_token_id", 1, 0, 0),
    "stop_strings": ("stop_strings", ("a",), ["b", "User:"], ("b", "User:")),
    "penalty_alpha": ("penalty_alpha", 0.6, 0, 0.0),
    "num_beams": ("num_beams", 4, 2, 2),
    "length_penalty": ("length_penalty", 2.0, -1, -1.0),
    "early_stopping": ("early_stopping", "never", True, True),
    "num_return_sequences": ("num_return_sequences", 2, 1, 1),
    "prompt_lookup_num_tokens": ("prompt_lookup_num_tokens", 10, 0, 0),
    "max_matching_ngram_size": ("max_matching_ngram_size", 3, 1, 1),
}
FILE = GenerationConfig(**{name: value for name, value, _, _ in CALLS.values()})


def refused(settings: dict[str, Any], config: GenerationConfig | None = None) -> list[str]:
    """What is said of a call's settings."""
    with pytest.raises(bombus.GenerationError) as caught:
        (config or GenerationConfig()).with_settings(settings)
    assert caught.value.where == "generate"
    return [str(problem) for problem in caught.value.problems]


def test_every_setting_is_in_the_table() -> None:
    """And in the type of a call's settings, and a field of the config by the name that the table says."""
    assert set(CALLS) == set(Settings.__annotations__)
    fields = [field.name for field in dataclasses.fields(GenerationConfig)]
    assert [name for name, *_ in CALLS.values()] == [name for name in fields if name != "unsupported"]


@pytest.mark.parametrize("setting", CALLS)
def test_a_call_goes_before_a_file_before_the_default(setting: str) -> None:
    name, value, given, kept = CALLS[setting]
    # What follows from a temperature is a test of its own.
    follows = {"do_sample": True} if setting == "temperature" else {}
    defaults = GenerationConfig()
    assert value not in (kept, getattr(defaults, name))
    assert FILE.with_settings({}) == FILE.with_settings({setting: None}) == FILE
    assert FILE.with_settings({setting: given}) == dataclasses.replace(FILE, **{name: kept})
    assert defaults.with_settings({setting: given}) == dataclasses.replace(defaults, **{name: kept}, **follows)
    found = getattr(FILE.with_settings({setting: given}), name)
    assert (found, type(found)) == (kept, type(kept))
    assert hash(FILE.with_settings({setting: given})) == hash(dataclasses.replace(FILE, **{name: kept}))


def test_all_settings_together() -> None:
    found = FILE.with_settings({setting: given for setting, (_, _, given, _) in CALLS.items()})
    assert found == GenerationConfig(**{name: kept for name, _, _, kept in CALLS.values()})


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"top_p": 0.5}, None),
        ({"temperature": None}, None),
        ({"do_sample": None, "temperature": None}, None),
        ({"temperature": 0}, False),
        ({"temperature": 0.0, "top_k": 5}, False),
        ({"temperature": 0.7}, True),
        ({"temperature": 1.0}, True),
        ({"temperature": 0.7, "do_sample": None}, True),
        ({"do_sample": True}, True),
        ({"do_sample": False}, False),
        ({"do_sample": False, "temperature": 0.7}, False),
        ({"do_sample": True, "temperature": 0.7}, True),
        ({"do_sample": True, "temperature": 0}, True),
    ],
)
def test_whether_to_sample(file: bool, settings: dict[str, Any], expected: bool | None) -> None:
    """The call's do_sample, else its temperature, else the file."""
    found = GenerationConfig(do_sample=file, temperature=0.6).with_settings(settings)
    assert found.do_sample is (file if expected is None else expected)
    given = settings.get("temperature")
    assert found.temperature == (0.6 if given is None else given)


def test_other_ways_to_write_it() -> None:
    """Pairs for mappings, mappings for pairs, the last of what stands twice, one for a list."""
    for name, ways in {
        "logit_bias": [{1: 2, 3: -1}, [(1, 2), (3, -1)], ((1, 9), [1, 2.0], (3, -1.0)), {"1": 2, "3": -1}],
        "sequence_bias": [{(1, 2): 2, (3,): -1}, [[[1, 2], 2], [[3], -1]], [([1, 2], 0), ((1, 2), 2), ((3,), -1)]],
        "forced_tokens": [{0: 1, 4: 3}, [[0, 1], [4, 3]], ((0, 7), (0, 1), (4, 3))],
        "bad_words_ids": [[[1, 2]], ((1, 2),), np.array([[1, 2]])],
        "stop_token_ids": [3, [3], (3,), {3}, np.array([3]), iter([3])],
        "stop_strings": ["ab", ["ab"], ("ab",)],
    }.items():
        assert len({GenerationConfig().with_settings({name: way}) for way in ways}) == 1, name


def test_a_config_is_frozen_and_hashable_however_it_is_made() -> None:
    config = GenerationConfig(stop_strings=["a"], sequence_bias={(1, 2): 3}, eos_token_ids=[2], logit_bias={1: 1})
    assert config == GenerationConfig(
        stop_strings=("a",), sequence_bias=(((1, 2), 3.0),), eos_token_ids=(2,), logit_bias=((1, 1.0),)
    )
    assert {config: 1}[dataclasses.replace(config)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.top_k = 5


def test_settings_that_are_not_there() -> None:
    assert refused({"temprature": 1, "top-k": 5, "eos_token_id": 2, "forced_decoder_ids": [], "guidance_scale": 2}) == [
        "temprature: is not a setting. The closest are 'temperature'",
        "top-k: is not a setting. The closest are 'top_k', 'top_p'",
        "eos_token_id: is the name in a file. Use stop_token_ids",
        "forced_decoder_ids: is the name in a file. Use forced_tokens",
        "guidance_scale: is not implemented",
    ]
    assert refused({"eos_token_ids": 2}) == ["eos_token_ids: is the name in a file. Use stop_token_ids"]
    assert refused({"unsupported": ()})[0].startswith("unsupported: is not a setting. ")


def test_settings_out_of_range_are_all_listed() -> None:
    """Under the names of a call, with what is not there; and what is wrong with the config itself."""
    settings = {"top_p": 3, "temperature": -1, "min_tokens": 1, "stop_token_ids": [-1], "logit_bias": {1: INF}}
    bias = "must be pairs of a token id and a bias from -1e+30 to 1e+30, or -inf (found {1: inf})"
    assert refused(settings, GenerationConfig(min_length=-2)) == [
        "min_tokens: is not a setting. The closest are 'min_new_tokens', 'max_new_tokens', 'forced_tokens'",
        "temperature: is out of range (expected a number from 0.0 to 10000.0, found -1)",
        "top_p: is out of range (expected a number from 0.0 to 1.0, found 3)",
        "min_length: is out of range (expected an integer from 0 to 2147483647, found -2)",
        f"logit_bias: {bias}",
        "stop_token_ids: must be a token id or a list of them (found [-1])",
    ]


@pytest.mark.parametrize("temperature", ["hot", math.nan, True, np.array([1.0, 2.0])])
def test_a_temperature_that_is_none(temperature: Any) -> None:
    text = f"temperature: is out of range (expected a number from 0.0 to 10000.0, found {temperature!r})"
    assert refused({"temperature": temperature}) == [text]


def test_an_error_of_the_callers_own_is_raised() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        GenerationConfig().with_settings({"suppress_tokens": fails()})


def test_settings_that_contradict_the_file() -> None:
    """Greedy by the call, where the file samples several."""
    file = GenerationConfig(do_sample=True, num_return_sequences=2)
    assert refused({"temperature": 0}, file) == [
        "num_return_sequences: asks for one greedy text several times (expected 1, found 2). "
        "Set do_sample, or num_beams to as many"
    ]
    assert refused({"suppress_tokens": [3], "forced_tokens": {0: 3}}) == [
        "forced_tokens: is in suppress_tokens too (found [3])"
    ]


def test_the_problems_of_a_config() -> None:
    """Of one that nothing has checked, and with a vocabulary."""
    assert GenerationConfig().problems(vocab_size=1) == []
    broken = GenerationConfig(top_k=-1, eos_token_ids=(1, 9), stop_strings="")
    assert [str(problem) for problem in broken.problems(vocab_size=9)] == [
        "top_k: is out of range (expected an integer from 0 to 2147483647, found -1)",
        "stop_token_ids: is out of range (expected ids below the vocabulary of 9, found (1, 9))",
        "stop_strings: must be a text or a list of texts, none of them empty (found '')",
    ]
    changed = GenerationConfig(eos_token_ids=(9,)).with_settings({"logit_bias": {9: 1.0}})
    assert [problem.subject for problem in changed.problems(vocab_size=9)] == ["logit_bias", "stop_token_ids"]

"""How positions are rotated, as config.json says it: both spellings, what is refused, and what is written."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from bombus.layers import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rotary,
    YarnScaling,
)
from bombus.models.rotary import rotary_from_hf, rotary_to_hf

ORIGINAL = "original_max_position_embeddings"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 512}
LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 6]}
# The keys of each type, in a file whose `max_position_embeddings` is 2048, and what they say.
TYPES: dict[str, tuple[dict[str, Any], Any]] = {
    "default": ({}, None),
    "linear": ({"factor": 2}, LinearScaling(factor=2.0)),
    "dynamic": ({"factor": 2.0}, DynamicScaling(factor=2.0, original_max_positions=2048)),
    "llama3": (
        LLAMA3,
        Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=512),
    ),
    "yarn": ({"factor": 4.0, ORIGINAL: 512}, YarnScaling(factor=4.0, original_max_positions=512)),
    "longrope": (
        LONG | {ORIGINAL: 512},
        LongScaling(
            short_factor=(1.0, 1.5),
            long_factor=(2.0, 6.0),
            original_max_positions=512,
            attention_factor=math.sqrt(1 + math.log(4) / math.log(512)),
        ),
    ),
}


def read(config: dict[str, Any], **options: Any) -> tuple[Rotary, list[str]]:
    problems: list[Any] = []
    config = {"max_position_embeddings": 2048} | config
    rotary = rotary_from_hf(config, default_theta=10_000.0, problems=problems, **options)
    return rotary, [str(problem) for problem in problems]


def scaling_of(section: dict[str, Any], **beside: Any) -> Any:
    rotary, problems = read({"rope_scaling": section, **beside})
    assert problems == []
    return rotary.scaling


@pytest.mark.parametrize("kind", TYPES)
def test_both_spellings_say_the_same(kind: str) -> None:
    section, scaling = TYPES[kind]
    expected = Rotary(theta=7e4, scaling=scaling, fraction=0.5)
    for config in (
        {"rope_theta": 7e4, "partial_rotary_factor": 0.5, "rope_scaling": {"type": kind, **section}},
        {"rope_theta": 7e4, "partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": kind, **section}},
        {"rope_parameters": {"rope_type": kind, "rope_theta": 70000, "partial_rotary_factor": 0.5, **section}},
        # What is inside goes before what is beside; null is not given.
        {
            "rope_parameters": {"rope_type": kind, "rope_theta": 7e4, "mscale": None, **section},
            "rope_theta": 5.0,
            "partial_rotary_factor": 0.5,
            "rope_scaling": None,
        },
    ):
        assert read(config) == (expected, [])


def test_nothing_said_is_the_default() -> None:
    assert read({}) == (Rotary(theta=10_000.0), [])
    assert read({"rope_theta": None, "rope_scaling": None, "rope_parameters": None}) == (Rotary(theta=10_000.0), [])
    assert read({}, default_fraction=0.25) == (Rotary(theta=10_000.0, fraction=0.25), [])


def test_the_older_section_goes_first() -> None:
    """As in transformers."""
    config = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}
    assert read(config)[0].scaling == LinearScaling(factor=2.0)


def test_the_names_of_gpt_neox() -> None:
    names = {"theta_keys": ("rotary_emb_base",), "fraction_keys": ("rotary_pct",), "default_fraction": 0.25}
    expected = Rotary(theta=2e4, fraction=0.5)
    assert read({"rotary_emb_base": 20000, "rotary_pct": 0.5}, **names) == (expected, [])
    assert read({"rope_parameters": {"rope_theta": 2e4, "partial_rotary_factor": 0.5}}, **names) == (expected, [])
    written = rotary_to_hf(expected, theta_key="rotary_emb_base", fraction_key="rotary_pct", default_fraction=0.25)
    assert written == {"rotary_emb_base": 2e4, "rotary_pct": 0.5, "rope_scaling": None}
    whole = Rotary(theta=2e4)
    assert rotary_to_hf(whole, fraction_key="rotary_pct", default_fraction=0.25)["rotary_pct"] == 1.0


def test_yarn_reads_all_its_keys() -> None:
    section = {
        "type": "yarn",
        "factor": 40,
        ORIGINAL: 4096,
        "beta_fast": 16,
        "beta_slow": 2,
        "attention_factor": 1.5,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    }
    assert scaling_of(section) == YarnScaling(
        factor=40.0,
        original_max_positions=4096,
        beta_fast=16.0,
        beta_slow=2.0,
        attention_factor=1.5,
        mscale=1.0,
        mscale_all_dim=0.7,
        truncate=False,
    )


def test_where_yarn_finds_its_lengths() -> None:
    yarn = {"type": "yarn", "factor": 4.0}
    assert scaling_of(yarn).original_max_positions == 2048
    assert scaling_of(yarn | {ORIGINAL: 300}, **{ORIGINAL: 200}).original_max_positions == 200
    assert scaling_of({"type": "yarn", "factor": None, ORIGINAL: 512}).factor == 4.0
    zeros = {"beta_fast": 0, "beta_slow": 0, "mscale": 0, "mscale_all_dim": 0.0}
    assert scaling_of(yarn | zeros) == YarnScaling(factor=4.0, original_max_positions=2048)


def test_where_longrope_finds_its_numbers() -> None:
    long = {"type": "longrope", **LONG}
    assert scaling_of({"type": "su", **LONG}, **{ORIGINAL: 512}) == TYPES["longrope"][1]
    assert scaling_of(long | {ORIGINAL: 300}, **{ORIGINAL: 512}) == TYPES["longrope"][1]
    assert scaling_of(long | {"attention_factor": 1.3}).attention_factor == 1.3
    # A factor that is given goes before the ratio of the lengths; no stretch, no magnitude.
    given = scaling_of(long | {"factor": 8.0, ORIGINAL: 512})
    assert given.attention_factor == math.sqrt(1 + math.log(8) / math.log(512))
    assert scaling_of(long | {"factor": 0.5, ORIGINAL: 512}).attention_factor == 1.0
    assert scaling_of(long) == LongScaling(
        short_factor=(1.0, 1.5), long_factor=(2.0, 6.0), original_max_positions=2048, attention_factor=1.0
    )


def test_the_length_of_the_model_may_be_its_default() -> None:
    """`max_positions` counts only where the file does not say it."""
    section = {"type": "dynamic", "factor": 2.0}
    config = {"max_position_embeddings": None, "rope_scaling": section}
    assert read(config, max_positions=99)[0].scaling.original_max_positions == 99
    assert read({"rope_scaling": section}, max_positions=99)[0].scaling.original_max_positions == 2048


KNOWN = "(expected default, linear, dynamic, llama3, yarn or longrope)"


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        ({"rope_scaling": "yarn"}, ["field 'rope_scaling': must be an object (found 'yarn')"]),
        ({"rope_parameters": [1]}, ["field 'rope_parameters': must be an object (found [1])"]),
        ({"rope_theta": 0}, ["field 'rope_theta': must be positive (found 0.0)"]),
        ({"rope_theta": math.inf}, ["field 'rope_theta': must be positive (found inf)"]),
        ({"rope_theta": math.nan}, ["field 'rope_theta': must be positive (found nan)"]),
        (
            {"rope_parameters": {"rope_theta": "1e4"}},
            ["field 'rope_parameters.rope_theta': has the wrong type (expected float, found '1e4')"],
        ),
        (
            {"partial_rotary_factor": 0},
            ["field 'partial_rotary_factor': must be above 0 and at most 1 (found 0.0)"],
        ),
        (
            {"rope_scaling": {"type": "default", "partial_rotary_factor": 1.5}},
            ["field 'rope_scaling.partial_rotary_factor': must be above 0 and at most 1 (found 1.5)"],
        ),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}},
            [f"field 'rope_scaling': asks for rotary type 'mrope', which is not supported {KNOWN}"],
        ),
        (
            {"rope_parameters": {"rope_type": ["yarn"]}},
            [f"field 'rope_parameters': asks for rotary type ['yarn'], which is not supported {KNOWN}"],
        ),
        (
            {"rope_scaling": {"type": "default", "mrope_section": [1, 2], "factor": 2.0}},
            [
                "field 'rope_scaling.mrope_section': is [1, 2], and nothing here reads it",
                "field 'rope_scaling.factor': is 2.0, and nothing here reads it",
            ],
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, ORIGINAL: 512}},
            [f"field 'rope_scaling.{ORIGINAL}': is 512, and nothing here reads it"],
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, ORIGINAL: 512}},
            [f"field 'rope_scaling.{ORIGINAL}': is 512, and nothing here reads it"],
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "truncate": False}},
            ["field 'rope_scaling.truncate': is False, and nothing here reads it"],
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "finetuned": True}},
            ["field 'rope_scaling.finetuned': is True, and nothing here reads it"],
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", **LONG, "mscale": 2.0}},
            ["field 'rope_scaling.mscale': is 2.0, and nothing here reads it"],
        ),
        ({"rope_scaling": {"type": "linear"}}, ["field 'rope_scaling.factor': is missing"]),
        ({"rope_scaling": {"type": "dynamic", "factor": None}}, ["field 'rope_scaling.factor': is missing"]),
        ({"rope_scaling": {"type": "yarn"}}, ["field 'rope_scaling.factor': is missing"]),
        (
            {"rope_scaling": {"type": "llama3"}},
            [f"field 'rope_scaling.{key}': is missing" for key in LLAMA3],
        ),
        (
            {"rope_scaling": {"type": "longrope"}},
            ["field 'rope_scaling.short_factor': is missing", "field 'rope_scaling.long_factor': is missing"],
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": None},
            ["field 'max_position_embeddings': is missing (expected int)"],
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": None}, "max_position_embeddings": 0},
            ["field 'max_position_embeddings': must be positive (found 0)"],
        ),
        (
            {"rope_scaling": {"type": "longrope", **LONG, ORIGINAL: 512}, "max_position_embeddings": "long"},
            ["field 'max_position_embeddings': has the wrong type (expected int, found 'long')"],
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": -2}},
            ["field 'rope_scaling.factor': must be positive (found -2.0)"],
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": True}},
            ["field 'rope_scaling.factor': has the wrong type (expected float, found True)"],
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, ORIGINAL: 12.5, "truncate": 0}},
            [
                f"field 'rope_scaling.{ORIGINAL}': has the wrong type (expected int, found 12.5)",
                "field 'rope_scaling.truncate': has the wrong type (expected bool, found 0)",
            ],
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": 1.0},
            ["field 'rope_theta': must be above 1 for rotary type 'yarn' (found 1.0)"],
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2}, "rope_theta": "1e4"},
            ["field 'rope_theta': has the wrong type (expected float, found '1e4')"],
        ),
        (
            {"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
            [
                "field 'rope_scaling.high_freq_factor': is too small "
                "(expected more than low_freq_factor, 1.0, found 1.0)"
            ],
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": 2.0, "long_factor": [1.0, "2", 0]}},
            [
                "field 'rope_scaling.short_factor': has the wrong type (expected a list of numbers, found 2.0)",
                "field 'rope_scaling.long_factor[1]': has the wrong type (expected float, found '2')",
                "field 'rope_scaling.long_factor[2]': must be positive (found 0.0)",
            ],
        ),
        (
            {"rope_scaling": {"type": "longrope", **LONG, ORIGINAL: 1}},
            [f"field 'rope_scaling.{ORIGINAL}': is too small (expected at least 2, found 1)"],
        ),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], problems: list[str]) -> None:
    assert read(config) == (Rotary(theta=10_000.0), problems)


def test_a_model_that_rotates_whole_heads_refuses_a_fraction() -> None:
    config = {"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5}}
    assert read(config, fraction_keys=())[1] == [
        "field 'rope_parameters.partial_rotary_factor': is 0.5, and this architecture rotates whole heads"
    ]
    config = {"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 1}, "partial_rotary_factor": 0.5}
    assert read(config, fraction_keys=()) == (Rotary(theta=5.0), [])


def test_a_problem_of_the_length_is_listed_once() -> None:
    """The spec checks the same field."""
    problems: list[Any] = []
    config = {"max_position_embeddings": "x", "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    for _ in range(2):
        rotary_from_hf(config, default_theta=1.0, problems=problems)
    assert len(problems) == 1


WRITTEN = [scaling for _, scaling in TYPES.values()] + [
    YarnScaling(
        factor=4.0,
        original_max_positions=9,
        beta_fast=20.0,
        beta_slow=3.0,
        attention_factor=1.1,
        mscale=0.5,
        mscale_all_dim=0.25,
        truncate=False,
    ),
    DynamicScaling(factor=2.0, original_max_positions=77),
]


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("scaling", WRITTEN, ids=lambda scaling: type(scaling).__name__)
def test_what_is_written_reads_back(scaling: Any, fraction: float) -> None:
    rotary = Rotary(theta=3e4, scaling=scaling, fraction=fraction)
    assert read(json.loads(json.dumps(rotary_to_hf(rotary)))) == (rotary, [])


def test_what_is_written() -> None:
    assert rotary_to_hf(Rotary(theta=5.0)) == {"rope_theta": 5.0, "rope_scaling": None}
    assert rotary_to_hf(Rotary(theta=5.0, fraction=0.5)) == {
        "rope_theta": 5.0,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
    }
    assert rotary_to_hf(Rotary(theta=5.0, scaling=WRITTEN[-1])) == {
        "rope_theta": 5.0,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 77,
    }
    # Phi-3's configuration has a length of its own beside the section, which goes before the one inside.
    assert rotary_to_hf(Rotary(theta=5.0, scaling=TYPES["longrope"][1]))[ORIGINAL] == 512

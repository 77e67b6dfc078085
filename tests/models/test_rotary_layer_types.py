"""Rotary positions that differ by the type of a layer, as config.json says it: both spellings, read and written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bombus.layers import DynamicScaling, LinearScaling, Llama3Scaling, LongScaling, Rotary, YarnScaling
from bombus.models.rotary import rotary_by_layer_type, rotary_by_layer_type_to_hf

SCALINGS = [
    None,
    LinearScaling(factor=2.0),
    DynamicScaling(factor=2.0, original_max_positions=77),
    Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=512),
    YarnScaling(factor=4.0, original_max_positions=9, mscale=0.5, truncate=False),
    LongScaling(short_factor=(1.0, 1.5), long_factor=(2.0, 6.0), original_max_positions=512, attention_factor=1.25),
]
THETAS = {"full_attention": 1e6, "sliding_attention": 1e4}
GEMMA = {
    "full_attention": Rotary(theta=2e6, scaling=LinearScaling(factor=8.0)),
    "sliding_attention": Rotary(theta=3e4),
}


def read_layers(config: dict[str, Any]) -> tuple[dict[str, Rotary], list[str]]:
    problems: list[Any] = []
    config = {"max_position_embeddings": 2048} | config
    found = rotary_by_layer_type(config, default_thetas=THETAS, problems=problems)
    return found, [str(problem) for problem in problems]


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 2e6, "rope_local_base_freq": 3e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
                "chunked_attention": None,
            },
        },
        {
            "rope_theta": 2e6,
            "rope_local_base_freq": 3e4,
            "rope_parameters": {"full_attention": {"type": "linear", "factor": 8.0}, "sliding_attention": None},
        },
        # As transformers: what rope_scaling says goes before the nested section.
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 2e6},
                "sliding_attention": {"rope_theta": 3e4},
            },
            "rope_scaling": {"factor": 8.0},
        },
    ],
)
def test_every_layer_type_has_its_own(config: dict[str, Any]) -> None:
    assert read_layers(config) == (GEMMA, [])


def test_layer_types_without_a_word_have_their_defaults() -> None:
    assert read_layers({}) == ({kind: Rotary(theta=theta) for kind, theta in THETAS.items()}, [])


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"rope_parameters": 3}, "field 'rope_parameters': must be an object (found 3)"),
        ({"rope_scaling": 3}, "field 'rope_scaling': must be an object (found 3)"),
        (
            {"rope_parameters": {"full_attention": 3}},
            "field 'rope_parameters.full_attention': must be an object (found 3)",
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0}},
            "field 'rope_parameters.rope_theta': is 5.0, and nothing here reads it",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "field 'rope_parameters.sliding_attention.factor': is missing",
        ),
        (
            {"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5}}},
            "field 'rope_parameters.sliding_attention.partial_rotary_factor': is 0.5, and this architecture rotates "
            "whole heads",
        ),
        ({"rope_local_base_freq": -1.0}, "field 'rope_local_base_freq': must be positive (found -1.0)"),
    ],
)
def test_what_is_wrong_with_a_layer_type_is_named(config: dict[str, Any], problem: str) -> None:
    assert read_layers(config)[1] == [problem]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)
@pytest.mark.parametrize("scaled", THETAS)
def test_what_is_written_of_layer_types_reads_back(scaled: str, scaling: Any) -> None:
    rotaries = GEMMA | {scaled: Rotary(theta=7.0, scaling=scaling)}
    assert read_layers(json.loads(json.dumps(rotary_by_layer_type_to_hf(rotaries)))) == (rotaries, [])


def test_layer_types_are_written_in_both_spellings() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    assert rotary_by_layer_type_to_hf(GEMMA) == {
        "rope_theta": 2e6,
        "rope_local_base_freq": 3e4,
        "rope_scaling": linear,
        "rope_parameters": {
            "full_attention": linear | {"rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
    }

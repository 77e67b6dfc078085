"""load_model and a config.json that is wrong or asks for what is not supported: the field, and what is expected."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from damaged import edit, refusal

import bombus
from bombus.models.model import flat
from bombus.models.registry import architectures
from bombus.policies.errors import SpecError

ROTARY_TYPES = "default, linear, dynamic, llama3, yarn or longrope"


@pytest.mark.parametrize(
    ("fields", "without", "problem"),
    [
        ({}, ["hidden_size"], "field 'hidden_size': is missing (expected int)"),
        (
            {"hidden_size": "32"},
            [],
            "field 'hidden_size': has the wrong type (expected int, found '32')",
        ),
        ({"vocab_size": True}, [], "field 'vocab_size': has the wrong type (expected int, found True)"),
        ({"vocab_size": 1024.0}, [], "field 'vocab_size': has the wrong type (expected int, found 1024.0)"),
        (
            {"rms_norm_eps": [1e-6]},
            [],
            "field 'rms_norm_eps': has the wrong type (expected float, found [1e-06])",
        ),
        (
            {"tie_word_embeddings": 1},
            [],
            "field 'tie_word_embeddings': has the wrong type (expected bool, found 1)",
        ),
        ({"hidden_act": 3}, [], "field 'hidden_act': has the wrong type (expected str, found 3)"),
        ({"num_hidden_layers": 0}, [], "field 'num_blocks': must be positive (found 0)"),
        (
            {"num_key_value_heads": 3},
            [],
            "field 'num_key_value_heads': must divide num_attention_heads (expected a divisor of 4, found 3)",
        ),
        (
            {"head_dim": 7},
            [],
            "field 'head_dim': must be even for rotary positions (found 7 (hidden_size 32, 4 heads))",
        ),
        (
            {"hidden_act": "sulu"},
            [],
            "field 'hidden_act': names an activation that is not supported, 'sulu'. The closest are 'silu', "
            "'relu', 'gelu'",
        ),
        (
            {"rope_scaling": {"rope_type": "mrope", "mrope_section": [2, 1, 1]}},
            [],
            f"field 'rope_scaling': asks for rotary type 'mrope', which is not supported (expected {ROTARY_TYPES})",
        ),
        # Older files write `type`, newer ones `rope_parameters`.
        (
            {"rope_scaling": {"type": "ntk", "factor": 4.0}},
            [],
            f"field 'rope_scaling': asks for rotary type 'ntk', which is not supported (expected {ROTARY_TYPES})",
        ),
        (
            {"rope_scaling": None, "rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}},
            [],
            "field 'rope_parameters': asks for rotary type 'proportional', which is not supported "
            f"(expected {ROTARY_TYPES})",
        ),
        ({"rope_scaling": "llama3"}, [], "field 'rope_scaling': must be an object (found 'llama3')"),
        ({"rope_theta": "1e4"}, [], "field 'rope_theta': has the wrong type (expected float, found '1e4')"),
        ({"pretraining_tp": 2}, [], "field 'pretraining_tp': is not supported (expected 1, found 2)"),
        (
            {"final_logit_softcapping": 30.0},
            [],
            "field 'final_logit_softcapping': is 30.0, and nothing here reads it. If it cannot change the numbers, "
            "load with strict=False",
        ),
    ],
)
def test_a_field_that_is_missing_wrong_or_not_supported_is_named(llama, fields, without, problem):
    edit(llama, *without, **fields)
    assert refusal(llama, SpecError) == f"config.json: {problem}"


def test_llama3_scaling_without_its_numbers_lists_them(llama):
    edit(llama, rope_scaling={"rope_type": "llama3", "factor": 8.0})
    assert refusal(llama, SpecError) == (
        "config.json: 3 problems\n"
        "  - field 'rope_scaling.low_freq_factor': is missing\n"
        "  - field 'rope_scaling.high_freq_factor': is missing\n"
        "  - field 'rope_scaling.original_max_position_embeddings': is missing"
    )


def test_a_number_of_labels_that_is_no_number_is_refused(llama):
    edit(llama, num_labels="three")
    assert "field 'num_labels'" in refusal(llama, SpecError)


def test_everything_wrong_with_a_configuration_is_listed_at_once(llama):
    edit(llama, "vocab_size", hidden_size="32", sparse_ratio=0.5, rope_scaling={"rope_type": "mrope"})
    text = refusal(llama, SpecError)
    assert text.startswith("config.json: 4 problems\n")
    for field in ("vocab_size", "hidden_size", "sparse_ratio", "rope_scaling"):
        assert f"\n  - field '{field}': " in text


def test_strict_false_accepts_an_unknown_field_and_changes_nothing(llama):
    expected = flat(bombus.load_model(llama).params)
    edit(llama, sparse_ratio=0.5)
    assert "field 'sparse_ratio': is 0.5, and nothing here reads it" in refusal(llama, SpecError)
    found = flat(bombus.load_model(llama, strict=False).params)
    assert jax.tree.map(lambda value: np.asarray(value).tobytes(), found) == jax.tree.map(
        lambda value: np.asarray(value).tobytes(), expected
    )


@pytest.mark.parametrize("value", [None, False])
def test_an_unknown_field_that_is_switched_off_is_accepted(llama, value):
    edit(llama, sparse_ratio=value)
    assert bombus.load_spec(llama) == bombus.load_spec(llama, strict=False)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"architectures": ["LlamaForCausalLN"], "model_type": "lama"},
            "architecture 'LlamaForCausalLN': is not supported. The closest are 'LlamaForCausalLM', ",
        ),
        (
            {"architectures": ["Zamba2"], "model_type": "zamba2"},
            "architecture 'Zamba2': is not supported. ",
        ),
        ({"architectures": None, "model_type": "lama"}, "architecture 'lama': is not supported. "),
    ],
)
def test_an_architecture_that_is_not_supported_is_answered_with_those_that_are(llama, fields, problem):
    edit(llama, **fields)
    text = refusal(llama, SpecError)
    assert text.startswith(f"config.json: {problem}")
    assert text.endswith(f"; supported: {', '.join(sorted(known.name for known in architectures()))}")


def test_architectures_that_are_no_list_are_refused(llama):
    edit(llama, architectures="LlamaForCausalLM")
    assert refusal(llama, SpecError) == (
        "config.json: field 'architectures': must be a list of names (found 'LlamaForCausalLM')"
    )


def test_an_architecture_that_is_asked_for_and_not_known_lists_classes_and_heads(llama):
    text = refusal(llama, SpecError, architecture="casual_lm")
    assert text.startswith("architecture 'casual_lm': is not supported. The closest are 'causal_lm'")


METHODS = "one of 'fp8', 'mxfp8', 'fbgemm_fp8', 'compressed-tensors', 'modelopt', 'mxfp4', 'gptq', 'awq', 'bombus'"


@pytest.mark.parametrize(
    ("change", "field", "expected", "found"),
    [
        ({"quant_method": "aqlm"}, "quant_method", METHODS, "'aqlm'"),
        ({"quant_method": None}, "quant_method", METHODS, "None"),
        ({"activation_scheme": "other"}, "activation_scheme", "'dynamic' or 'static'", "'other'"),
        ({"expert_dtype": "fp4"}, "expert_dtype", "'fp8'", "'fp4'"),
        ({"weight_block_size": [128, 0]}, "weight_block_size", "two positive sizes, like [128, 128]", "[128, 0]"),
        ({"weight_block_size": 128}, "weight_block_size", "two positive sizes, like [128, 128]", "128"),
    ],
)
def test_another_way_to_quantize_is_refused(fp8, change, field, expected, found):
    section = json.loads((fp8 / "config.json").read_text("utf-8"))["quantization_config"]
    edit(fp8, quantization_config=section | change)
    assert refusal(fp8, SpecError) == (
        f"config.json: field 'quantization_config.{field}': is not supported (expected {expected}, found {found}). "
        "Look for a BF16 or block-FP8 version of this checkpoint"
    )


def test_a_quantization_config_that_is_no_object_is_refused(fp8):
    edit(fp8, quantization_config="fp8")
    assert "field 'quantization_config': is not supported (expected an object, found 'fp8')" in refusal(fp8, SpecError)


def test_fp8_without_a_quantization_config_is_defined_by_its_scales(fp8):
    expected = flat(bombus.load_model(fp8).params)
    edit(fp8, "quantization_config")
    found = flat(bombus.load_model(fp8).params)
    assert {path: np.asarray(value).tobytes() for path, value in found.items()} == {
        path: np.asarray(value).tobytes() for path, value in expected.items()
    }
    assert {value.dtype for value in found.values()} == {np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "file: is not valid JSON: "), ("[1]", "file: must hold a JSON object (found [1])")],
)
def test_a_configuration_that_is_no_object_is_refused(llama, text, problem):
    (llama / "config.json").write_text(text, "utf-8")
    assert refusal(llama, SpecError).startswith(f"{llama / 'config.json'}: {problem}")

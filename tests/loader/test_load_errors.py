"""load_model on damaged checkpoints: one error of our own family, with the file, the field and the remedy."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import bombus
from bombus.models.model import flat
from bombus.policies.errors import CheckpointError, HubError, PlanError, SpecError

# Small: one tile per kernel, and nothing here is about tiles.
SIZES = {"preset": "original", "num_blocks": 1}
SCALE = "model.layers.0.mlp.up_proj.weight_scale_inv"


@pytest.fixture
def fp8(tiny, tmp_path):
    return Path(shutil.copytree(tiny("qwen3", "f8_e4m3fn", **SIZES), tmp_path / "checkpoint"))


@pytest.fixture
def llama(tiny, tmp_path):
    return Path(shutil.copytree(tiny("llama", "bf16", **SIZES), tmp_path / "checkpoint"))


def edit(folder, *without, **fields):
    """Change fields of config.json, and take some out."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in without}), "utf-8")


def overwrite(folder, tensor, values):
    """Put other bytes in place of the first ones of a tensor."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    start = 8 + length + json.loads(content[8 : 8 + length])[tensor]["data_offsets"][0]
    raw = values.tobytes()
    content[start : start + len(raw)] = raw
    path.write_bytes(content)


def refusal(folder, kind, **options):
    with pytest.raises(bombus.LoadError) as caught:
        bombus.load_model(folder, **options)
    assert type(caught.value) is kind
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (0.0, "0.0"), (-0.5, "-0.5"), (np.inf, "inf")])
def test_a_scale_that_is_no_positive_number_is_refused(fp8, value, shown, preserve):
    overwrite(fp8, SCALE, np.float32(value))
    assert refusal(fp8, CheckpointError, preserve_source_types=preserve) == (
        f"{fp8 / 'model.safetensors'}: tensor {SCALE}: has 1 scales that are not positive numbers "
        f"(expected positive finite scales, found {shown} at [0, 0]). Download the checkpoint again"
    )


def test_tied_tensors_that_differ_are_refused(tiny, tmp_path):
    # An untied checkpoint whose configuration is changed to say that it is tied.
    source = tiny("llama", "bf16", **SIZES, tie_word_embeddings=False)
    folder = Path(shutil.copytree(source, tmp_path / "checkpoint"))
    edit(folder, tie_word_embeddings=True)
    assert refusal(folder, CheckpointError) == (
        f"{folder / 'model.safetensors'}: tensor lm_head.weight: differs from model.embed_tokens.weight, but "
        "config.json says that they are tied. Set tie_word_embeddings to false: load_model(repo, "
        "spec=load_spec(repo, tie_word_embeddings=False))"
    )
    # The remedy works.
    loaded = bombus.load_model(folder, spec=bombus.load_spec(folder, tie_word_embeddings=False))
    assert "language_modeling_head.output.kernel" in flat(loaded.params)


def test_a_truncated_file_says_how_many_bytes_are_missing(llama):
    path = llama / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 100)
    assert refusal(llama, CheckpointError) == (
        f"{path}: file: is cut short: 100 bytes are missing (expected {size} bytes, found {size - 100}). "
        "Download it again"
    )


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
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            [],
            "field 'rope_scaling': asks for rotary type 'yarn', which is not supported (expected default or llama3)",
        ),
        # Older files write `type`, newer ones `rope_parameters`.
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            [],
            "field 'rope_scaling': asks for rotary type 'linear', which is not supported (expected default or llama3)",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}},
            [],
            "field 'rope_scaling': asks for rotary type 'dynamic', which is not supported (expected default or llama3)",
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
    edit(llama, "vocab_size", hidden_size="32", sparse_ratio=0.5, rope_scaling={"rope_type": "yarn"})
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
    assert text.endswith("; supported: llama, qwen3")


def test_architectures_that_are_no_list_are_refused(llama):
    edit(llama, architectures="LlamaForCausalLM")
    assert refusal(llama, SpecError) == (
        "config.json: field 'architectures': must be a list of names (found 'LlamaForCausalLM')"
    )


def test_an_architecture_that_is_asked_for_and_not_known_lists_classes_and_heads(llama):
    text = refusal(llama, SpecError, architecture="casual_lm")
    assert text.startswith("architecture 'casual_lm': is not supported. The closest are 'causal_lm'")


METHODS = "'fp8' (block FP8), 'compressed-tensors' or 'bombus'"


@pytest.mark.parametrize(
    ("change", "field", "expected", "found"),
    [
        ({"quant_method": "awq"}, "quant_method", METHODS, "'awq'"),
        ({"quant_method": None}, "quant_method", METHODS, "None"),
        ({"activation_scheme": "static"}, "activation_scheme", "'dynamic'", "'static'"),
        ({"weight_block_size": None}, "weight_block_size", "two positive sizes, like [128, 128]", "None"),
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


def test_shapes_of_another_configuration_are_a_plan_error_that_names_the_folder(llama):
    edit(llama, intermediate_size=66)
    text = refusal(llama, PlanError)
    assert text.startswith(f"{llama}: 3 problems\n")
    for name in ("gate", "up", "down"):
        assert f"\n  - tensor model.layers.0.mlp.{name}_proj.weight: does not fit parameter " in text


def test_a_rule_that_matches_nothing_is_a_plan_error(llama):
    text = refusal(llama, PlanError, policy={"lm_heat.weight": "f32"})
    assert text.startswith(f"{llama}: policy rule 'lm_heat.weight': matches no parameter. ")


def test_no_such_folder_says_what_is_expected(tmp_path):
    absent = tmp_path / "absent"
    for repo in (absent, str(absent)):
        assert refusal(repo, HubError) == (
            f"{absent}: repository: there is no such folder, and it is not the form of a hub id "
            "(expected a folder with config.json, or an id like Qwen/Qwen3-0.6B)"
        )


def test_a_path_object_is_never_taken_for_a_hub_id():
    assert "there is no such folder" in refusal(Path("absent/checkpoint"), HubError)


def test_offline_a_repository_that_is_not_in_the_cache_is_not_asked_for(tmp_path):
    text = refusal("bombus/absent", HubError, local_files_only=True, cache_dir=tmp_path)
    assert text == (
        "bombus/absent: file config.json: is not in the local cache, and the network is switched off. "
        "Unset HF_HUB_OFFLINE and local_files_only, or download the repository first"
    )


def test_a_file_instead_of_a_folder_is_answered_with_its_folder(llama):
    path = llama / "model.safetensors"
    assert refusal(path, HubError) == f"{path}: repository: is a file. Give its folder, {llama}"


def test_a_revision_of_a_local_folder_is_refused(llama):
    assert refusal(llama, HubError, revision="main") == (
        f"{llama}: revision: has no meaning for a local folder. Leave it out"
    )


def test_a_folder_without_a_configuration_is_refused(llama):
    (llama / "config.json").unlink()
    assert refusal(llama, CheckpointError) == (
        f"{llama}: file config.json: is not there. Give the folder or id of a Hugging Face checkpoint"
    )
    assert refusal(llama.parent, CheckpointError, subfolder="checkpoint") == (
        f"{llama.parent}: file config.json: is not there in subfolder 'checkpoint'. "
        "Give the folder or id of a Hugging Face checkpoint"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "file: is not valid JSON: "), ("[1]", "file: must hold a JSON object (found [1])")],
)
def test_a_configuration_that_is_no_object_is_refused(llama, text, problem):
    (llama / "config.json").write_text(text, "utf-8")
    assert refusal(llama, SpecError).startswith(f"{llama / 'config.json'}: {problem}")


def test_code_in_a_repository_is_never_run(llama, tmp_path):
    made = tmp_path / "made"
    (llama / "modeling_evil.py").write_text(f"import os\nos.mkdir({str(made)!r})\n", "utf-8")
    edit(llama, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    bombus.load_model(llama)
    assert not made.exists()

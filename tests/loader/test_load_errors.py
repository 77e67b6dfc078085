"""load_model on damaged checkpoints: one error of our own family, with the file, the tensor and the remedy."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from damaged import SIZES, edit, refusal

import bombus
from bombus.models.model import flat
from bombus.policies.errors import CheckpointError, HubError, PlanError

SCALE = "model.layers.0.mlp.up_proj.weight_scale_inv"


def overwrite(folder, tensor, values):
    """Put other bytes in place of the first ones of a tensor."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    start = 8 + length + json.loads(content[8 : 8 + length])[tensor]["data_offsets"][0]
    raw = values.tobytes()
    content[start : start + len(raw)] = raw
    path.write_bytes(content)


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
    text = refusal("somebody/absent", HubError, local_files_only=True, cache_dir=tmp_path)
    assert text == (
        "somebody/absent: file config.json: is not in the local cache, and the network is switched off. "
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


def test_code_in_a_repository_is_never_run(llama, tmp_path):
    made = tmp_path / "made"
    (llama / "modeling_evil.py").write_text(f"import os\nos.mkdir({str(made)!r})\n", "utf-8")
    edit(llama, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    bombus.load_model(llama)
    assert not made.exists()

"""save_model writes what load_model read: bytes, configuration, shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy_decoder import read_tensors

import bombus
from bombus.models.model import flat, nested


@pytest.mark.parametrize(
    ("architecture", "weights", "options"),
    [
        ("qwen3", "f8_e4m3fn", {"scales": "bf16"}),
        ("qwen3", "f8_e4m3fn", {"tie_word_embeddings": False, "not_converted": ("*.o_proj",)}),
        ("llama", "bf16", {"head": "sequence_classification", "num_labels": 3}),
        ("llama", "f32", {"attention_bias": True}),
    ],
)
def test_a_saved_model_is_the_checkpoint_it_came_from(
    architecture: str, weights: str, options: dict, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Every tensor bit for bit, and a configuration that says the same."""
    folder = tiny(architecture, weights, **options)
    loaded = bombus.load_model(folder, preserve_source_types=True)
    written = bombus.save_model(loaded, tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    before, after = read_tensors(folder), read_tensors(tmp_path)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert tensor.tobytes() == after[name].tobytes(), name
    old, new = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
    assert {key: value for key, value in old.items() if not key.endswith("token_id")} | {"pad_token_id": None} == new
    again = bombus.load_model(tmp_path, preserve_source_types=True)
    assert again.spec == loaded.spec
    assert again.generation_config == loaded.generation_config


def test_a_dequantized_model_is_saved_without_quantization_config(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """What is not FP8 any more does not say that it is."""
    loaded = bombus.load_model(tiny("qwen3"))
    bombus.save_model(loaded, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = bombus.load_model(tmp_path)
    for path, value in flat(loaded.params).items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(flat(again.params)[path]))


def test_shards_and_the_files_of_an_earlier_save(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Large models are split with an index; a single file of before does not shadow it, nor the other way round."""
    loaded = bombus.load_model(tiny("qwen3"), preserve_source_types=True)
    bombus.save_model(loaded, tmp_path)
    written = bombus.save_model(loaded, tmp_path, max_shard_bytes=200_000)
    shards = [path for path in written if path.suffix == ".safetensors"]
    assert len(shards) > 2
    assert not (tmp_path / "model.safetensors").exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == loaded.report.nbytes
    again = bombus.load_model(tmp_path, preserve_source_types=True)
    for path, value in flat(loaded.params).items():
        assert np.asarray(value).tobytes() == np.asarray(flat(again.params)[path]).tobytes()
    bombus.save_model(loaded, tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_parameters_that_are_not_the_models_are_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Missing, foreign and cast parameters, all at once."""
    loaded = bombus.load_model(tiny("llama", "bf16"))
    values = flat(loaded.params)
    values["extra.kernel"] = values.pop("output_norm.scale")
    name = "embedder.token_embedding.embedding"
    values[name] = values[name].astype("float32")
    broken = bombus.LoadedModel(
        model=loaded.model,
        params=nested(values),
        spec=loaded.spec,
        report=loaded.report,
        generation_config=loaded.generation_config,
    )
    with pytest.raises(bombus.PlanError) as caught:
        bombus.save_model(broken, tmp_path)
    assert [str(problem) for problem in caught.value.problems] == [
        "parameter extra.kernel: is not the model's",
        "parameter output_norm.scale: is missing",
        f"parameter {name}: is not stored as the model says (expected bf16, found f32)",
    ]
    assert list(tmp_path.iterdir()) == []

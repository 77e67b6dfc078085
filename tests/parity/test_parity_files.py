"""Files that transformers wrote load here, and files that we wrote load there, with the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bombus
from bombus.layers import Llama3Scaling, Rotary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

ATOL = 1e-4  # the largest difference seen is 6.9e-6
_SIZES = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 168,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "rms_norm_eps": 0.01,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 70_000.0,
}
_DEFAULT = {"rope_type": "default", "rope_theta": 70_000.0}
# transformers' class -> arguments of its config class.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3ForCausalLM": {"rope_parameters": _DEFAULT, "tie_word_embeddings": True},
    "Qwen3ForSequenceClassification": {"rope_parameters": _DEFAULT, "num_labels": 4, "attention_bias": True},
    "Qwen3Model": {"rope_parameters": _LLAMA3},
    "LlamaForCausalLM": {"rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True},
    "LlamaForSequenceClassification": {"rope_parameters": _DEFAULT, "num_labels": 4},
    "LlamaModel": {"rope_parameters": _DEFAULT},
}


def write_with_transformers(name: str, folder: Path, **options: Any) -> None:
    """A checkpoint of transformers' own: norms and biases random too, which it would leave at ones and zeros."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**_SIZES, **MODELS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            around = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(around + 0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder, **options)


def rewrite_as_version_4(folder: Path) -> None:
    """The same config.json as transformers spelled it before version 5."""
    config = json.loads((folder / "config.json").read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", MODELS)
def test_files_of_transformers(comparison: Any, tmp_path: Path, name: str) -> None:
    write_with_transformers(name, tmp_path)
    loaded = bombus.load_model(tmp_path)
    assert loaded.report.plan.unused == ()
    batch = comparison.make_batch(_SIZES["vocab_size"], "left", 0)
    theirs = comparison.theirs(tmp_path, *batch)
    np.testing.assert_allclose(comparison.ours(loaded, *batch), theirs, atol=ATOL, rtol=0)

    assert loaded.spec.rotary.theta == 70_000.0
    assert "rope_theta" not in json.loads((tmp_path / "config.json").read_text())
    rewrite_as_version_4(tmp_path)
    assert bombus.load_spec(tmp_path) == loaded.spec
    # Both libraries read the old spelling alike.
    np.testing.assert_array_equal(comparison.theirs(tmp_path, *batch), theirs)


def test_shards_of_transformers(comparison: Any, tmp_path: Path) -> None:
    write_with_transformers("Qwen3ForCausalLM", tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    batch = comparison.make_batch(_SIZES["vocab_size"], None, 0)
    ours = comparison.ours(bombus.load_model(tmp_path), *batch)
    np.testing.assert_allclose(ours, comparison.theirs(tmp_path, *batch), atol=ATOL, rtol=0)


@pytest.mark.parametrize("weights", ["f32", "bf16"])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("qwen3", {}),
        ("qwen3", {"head": "sequence_classification", "num_labels": 3, "attention_bias": True}),
        ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        (
            "llama",
            {
                "head": "base",
                "rotary": Rotary(
                    theta=70_000.0,
                    scaling=Llama3Scaling(
                        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16
                    ),
                ),
            },
        ),
    ],
    ids=["qwen3", "qwen3-sequence_classification", "llama", "llama-base"],
)
def test_files_of_ours(
    comparison: Any,
    tiny: Callable[..., Path],
    tmp_path: Path,
    architecture: str,
    options: dict[str, Any],
    weights: str,
) -> None:
    """What transformers computes from our files is what it computes from those that we read, to the last bit."""
    folder = tiny(architecture, weights, **options)
    bombus.save_model(bombus.load_model(folder), tmp_path, max_shard_bytes=300_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    batch = comparison.make_batch(320, "left", 0)
    np.testing.assert_array_equal(comparison.theirs(tmp_path, *batch), comparison.theirs(folder, *batch))


def test_files_of_ours_in_another_type(comparison: Any, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """float32 weights that a policy rounded to bf16 while loading."""
    policy = bombus.create_policy(params="bf16", compute="f32", output="f32")
    loaded = bombus.load_model(tiny("qwen3", "f32"), policy=policy)
    bombus.save_model(loaded, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    batch = comparison.make_batch(320, None, 0)
    ours = comparison.ours(loaded, *batch)
    np.testing.assert_allclose(ours, comparison.theirs(tmp_path, *batch), atol=ATOL, rtol=0)

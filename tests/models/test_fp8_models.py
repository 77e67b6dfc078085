"""FP8 checkpoints against a float64 model: bits, values in both modes, and what a wrong scale does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy_decoder import forward, read_tensors
from safetensors.numpy import save_file

import bombus
from bombus.models.model import flat

TOKENS = np.random.default_rng(5).integers(0, 320, 21)
Tiny = Callable[..., Path]

CASES = {
    "qwen3": ("qwen3", {}),
    "qwen3, bf16 scales in two shards": ("qwen3", {"scales": "bf16", "shards": 2}),
    "qwen3, untied, some layers not converted": (
        "qwen3",
        {"tie_word_embeddings": False, "not_converted": ("*.o_proj", "model.layers.1.mlp.*")},
    ),
    "qwen3, tiles of 64x96": ("qwen3", {"block_shape": (64, 96)}),
    "qwen3, the original generator's sizes": ("qwen3", {"preset": "original"}),
    "llama, biases, odd sizes": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "hidden_size": 130, "intermediate_size": 259, "scales": "bf16"},
    ),
}


def logits(folder: Path, **options: Any) -> np.ndarray:
    """What Bombus computes in float32."""
    loaded = bombus.load_model(folder, **options)
    output = jax.jit(loaded.model.apply)(loaded.params, TOKENS[None])
    return np.asarray(output.hidden_state if output.logits is None else output.logits)[0]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_both_modes_agree_with_float64(case: str, tiny: Tiny) -> None:
    """Preserved and dequantized weights give float64's logits to 1e-5 (measured: 2e-6)."""
    architecture, options = CASES[case]
    folder = tiny(architecture, **options)
    expected = forward(folder, TOKENS)
    assert (
        difference(logits(folder, preserve_source_types=True, policy={"default": {"compute": "f32"}}), expected) < 1e-5
    )
    assert difference(logits(folder, policy="f32"), expected) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_preserved_parameters_are_the_files_bytes(case: str, tiny: Tiny) -> None:
    """Codes, scales and everything else keep their type and their bits."""
    architecture, options = CASES[case]
    folder = tiny(architecture, **options)
    loaded = bombus.load_model(folder, preserve_source_types=True)
    tensors = read_tensors(folder)
    assert sum(tensor.dtype.name == "float8_e4m3fn" for tensor in tensors.values()) >= 7
    mapping = loaded.model.architecture.mapping
    spell = mapping.spelled_for(loaded.spec.head)
    for path, value in flat(loaded.params).items():
        tensor = tensors.pop(spell(mapping.tensor(path)))
        assert value.dtype == tensor.dtype, path
        assert np.asarray(value).tobytes() == tensor.tobytes(), path
    assert tensors == {}


def test_bf16_computation_stays_near_float64(tiny: Tiny) -> None:
    """Without a policy an FP8 checkpoint is computed in bf16, with the error of bf16 (8 bits)."""
    folder = tiny("qwen3")
    expected = forward(folder, TOKENS)
    assert difference(logits(folder, preserve_source_types=True), expected) < 0.03
    assert difference(logits(folder), expected) < 0.03


def test_default_load_dequantizes_to_the_checkpoints_wide_type(tiny: Tiny) -> None:
    """Without preservation no parameter is FP8, and the values are the rounded products of codes and scales."""
    folder = tiny("qwen3")
    loaded = bombus.load_model(folder)
    kernel = loaded.params["decoder"]["blocks"]["0"]["ffn"]["gate"]["kernel"]
    assert {value.dtype.name for value in flat(loaded.params).values()} == {"bfloat16"}
    tensors = read_tensors(folder)
    name = "model.layers.0.mlp.gate_proj.weight"
    scale = tensors[f"{name}_scale_inv"].repeat(128, 0).repeat(128, 1)[:320, :192]
    expected = (tensors[name].astype(np.float32) * scale).astype(kernel.dtype)
    np.testing.assert_array_equal(np.asarray(kernel), expected)


# q_proj of 192x192 has a square 2x2 grid, so that a transposed grid still fits.
SQUARE = {"num_heads": 6, "head_dim": 32}
SCALE = "model.layers.0.self_attn.q_proj.weight_scale_inv"


def _mutated(folder: Path, target: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    shutil.copytree(folder, target)
    tensors = {name: value.copy() for name, value in read_tensors(folder).items()}
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def _transpose(tensors: dict[str, np.ndarray]) -> None:
    tensors[SCALE] = np.ascontiguousarray(tensors[SCALE].T)


def _wrong(tensors: dict[str, np.ndarray]) -> None:
    tensors[SCALE][1, 1] *= 1.01


def _ones(tensors: dict[str, np.ndarray]) -> None:
    tensors[SCALE][:] = 1.0


def _drop(tensors: dict[str, np.ndarray]) -> None:
    del tensors[SCALE]


@pytest.mark.parametrize("change", [_transpose, _wrong, _ones])
@pytest.mark.parametrize("preserve", [True, False])
def test_a_wrong_scale_is_seen(
    change: Callable[[dict[str, np.ndarray]], None], preserve: bool, tiny: Tiny, tmp_path: Path
) -> None:
    """A transposed grid, one scale that is 1% off, scales of one: the comparison above would fail."""
    folder = tiny("qwen3", **SQUARE)
    mutated = _mutated(folder, tmp_path / "mutated", change)
    options = (
        {"preserve_source_types": True, "policy": {"default": {"compute": "f32"}}} if preserve else {"policy": "f32"}
    )
    found = logits(mutated, **options)
    assert difference(found, forward(folder, TOKENS)) > 1e-4
    assert difference(found, forward(mutated, TOKENS)) < 1e-5


def test_a_dropped_scale_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    """Codes are never cast without their scale, in either mode."""
    mutated = _mutated(tiny("qwen3", **SQUARE), tmp_path / "mutated", _drop)
    for preserve in (True, False):
        with pytest.raises(bombus.PlanError, match=r"q_proj.weight: is in float8_e4m3fn and has no scale"):
            bombus.load_model(mutated, preserve_source_types=preserve)


def test_scales_of_a_tiny_checkpoint_are_distinct(tiny: Tiny) -> None:
    """The checkpoints that prove all this have several tiles, partial ones, and no two equal scales."""
    tensors = read_tensors(tiny("qwen3"))
    scale = tensors["model.layers.0.mlp.gate_proj.weight_scale_inv"]
    assert scale.shape == (3, 2)
    assert len(np.unique(scale)) == 6
    assert 1.0 not in scale
    config = json.loads((tiny("qwen3") / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]

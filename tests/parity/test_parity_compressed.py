"""Activations, caches and groups of several formats as compressed-tensors writes them: the same values in every bit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bombus
from bombus.models.model import flat

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
compressors = pytest.importorskip("compressed_tensors.compressors")
quantization = pytest.importorskip("compressed_tensors.quantization")
pytestmark = pytest.mark.parity

# Groups of 128, two of them or three.
WHOLE = {"hidden_size": 256, "intermediate_size": 384, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64}


def our_weights(folder: Path) -> dict[str, np.ndarray]:
    """Layer -> the values that Bombus reads."""
    loaded = bombus.load_model(folder, policy="f32")
    tensor = loaded.model.architecture.mapping.tensor
    params = {path: value for path, value in flat(loaded.params).items() if path.endswith((".kernel", ".embedding"))}
    return {tensor(path).removesuffix(".weight"): np.asarray(value) for path, value in params.items()}


def assert_same(ours: np.ndarray, theirs: Any, layer: str = "") -> None:
    assert theirs.dtype == torch.float32, layer
    np.testing.assert_array_equal(ours, theirs.detach().numpy(), strict=True, err_msg=layer)


def write_compressed(folder: Path, source: Path, groups: dict[str, Any], **config: Any) -> dict[str, np.ndarray]:
    """A checkpoint that compressed-tensors writes, with scales of weights by their largest value; the scales of
    activations and of a cache, which are random, by tensor.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    section = quantization.QuantizationConfig(config_groups=groups, ignore=["lm_head"], **config)
    quantization.apply_quantization_config(model, section, show_progress=False)
    random, scales = torch.Generator().manual_seed(7), {}
    for layer, module in model.named_modules():
        if hasattr(module, "weight_scale"):
            calibrate(module)
        for name, value in module.named_parameters(recurse=False):
            if name in ("input_scale", "q_scale", "k_scale", "v_scale"):
                value.data.copy_(torch.rand(value.shape, generator=random) + 0.1)
                scales[f"{layer}.{name}"] = value.detach().numpy().copy()
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return scales


def calibrate(module: Any) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments, weight = module.quantization_scheme.weights, module.weight.data
    rows, columns = {"tensor": weight.shape, "channel": (1, weight.shape[1])}.get(
        arguments.strategy, (1, arguments.group_size)
    )
    tiles = weight.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
    scale, zero = calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), arguments)
    module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zero.reshape(module.weight_scale.shape))


def their_weights(folder: Path) -> dict[str, Any]:
    """Layer -> the values that compressed-tensors decompresses, of every layer that it takes for a quantized one."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    config = quantization.QuantizationConfig.model_validate(config["quantization_config"])
    plain = transformers.AutoConfig.from_pretrained(folder)
    del plain.quantization_config
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(plain)
    quantization.apply_quantization_config(model, config, show_progress=False)
    tensors, values = load_file(folder / "model.safetensors"), {}
    for layer, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format or config.format)
        names = [name for name in compressor.compression_param_names(scheme) if name != "input_scale"]
        values[layer] = compressor.decompress({name: tensors[f"{layer}.{name}"] for name in names}, scheme)["weight"]
    return values


def arguments(**changes: Any) -> Any:
    whole = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    return quantization.QuantizationArgs(**(whole | changes))


def preset(name: str, *targets: str) -> Any:
    return quantization.preset_name_to_scheme(name, list(targets) or ["Linear"])


def of_attention(**changes: Any) -> Any:
    """A group of the activations of attention alone."""
    return quantization.QuantizationScheme(targets=["Qwen3Attention"], input_activations=arguments(**changes))


ATTENTION, FEED_FORWARD = "re:.*self_attn.*_proj", "re:.*mlp.*"
WRITTEN: dict[str, tuple[Callable[[], dict[str, Any]], set[str], int]] = {
    "static activations and a cache": (
        lambda: {"config_groups": {"group_0": preset("FP8")}, "kv_cache_scheme": arguments()},
        {"f8_e4m3fn(tile=tensor)"},
        7 + 2,
    ),
    "mixed groups": (
        lambda: {
            "config_groups": {
                "group_0": preset("FP8_DYNAMIC", ATTENTION),
                "group_1": preset("W4A16_ASYM", FEED_FORWARD),
            }
        },
        {"f8_e4m3fn(tile=channel)", "int4(zero_points, scale=f32)"},
        0,
    ),
    "mixed groups, some static, and a cache of heads": (
        lambda: {
            "config_groups": {"group_0": preset("W8A16", ATTENTION), "group_1": preset("FP8", FEED_FORWARD)},
            "kv_cache_scheme": arguments(strategy="attn_head"),
        },
        {"int8(group=128)", "f8_e4m3fn(tile=tensor)"},
        3 + 2,
    ),
    "static activations in int8": (
        lambda: {
            "config_groups": {
                "group_0": quantization.QuantizationScheme(
                    targets=["Linear"],
                    weights=arguments(type="int", strategy="channel"),
                    input_activations=arguments(type="int"),
                )
            }
        },
        {"int8"},
        7,
    ),
    "attention": (
        lambda: {
            "config_groups": {"group_0": of_attention(strategy="attn_head"), "group_1": preset("W4A16", FEED_FORWARD)}
        },
        {"int4(scale=f32)"},
        3,
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_compressed_tensors_writes_has_its_values(tiny: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """Weights bit for bit, in float32; scales of activations, of which each is another, in the report."""
    config, formats, count = WRITTEN[name]
    options = config()
    source = tiny("qwen3", "f32", num_blocks=1, vocab_size=34, tie_word_embeddings=False, **WHOLE)
    scales = write_compressed(tmp_path, source, options.pop("config_groups"), **options)
    loaded = bombus.load_model(tmp_path, preserve_source_types=True)
    assert {str(format) for format in loaded.model.formats.values() if format.is_low} == formats
    ours, theirs = our_weights(tmp_path), their_weights(tmp_path)
    assert len(theirs) == sum(format.is_low for format in loaded.model.formats.values())
    for layer, weight in theirs.items():
        assert_same(ours[layer], weight, layer)
    forward = inspect.signature(transformers.models.qwen3.modeling_qwen3.Qwen3Attention.forward)
    if len(scales) < count and "past_key_values" not in forward.parameters:
        pytest.skip(
            "compressed-tensors does not know what this transformers calls a cache: 0.20.1 not 5.24.0's `cache`"
        )
    assert len(scales) == count
    report = loaded.report.activation_scales
    others = {name for name in report if name.endswith("_zero_point")}
    assert report.keys() == scales.keys() | others
    assert all(np.array_equal(report[tensor], scale) for tensor, scale in scales.items())
    assert not any(report[tensor].astype(np.float32).any() for tensor in others)

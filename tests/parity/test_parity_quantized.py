"""Quantized files: transformers and compressed-tensors read what we save, and we read what compressed-tensors saves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

ATOL = 1e-4  # values reach 8; the largest difference seen is 9.4e-6
# Every kernel is whole tiles of 128, several in each direction but for one row of tiles in the keys and values.
WHOLE = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_blocks": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
}
UNTIED = {"tie_word_embeddings": False}
BIASES = {"attention_bias": True, "mlp_bias": True}
KERNELS = ("attention", "feed_forward")


def in_float32(rules: Mapping[str, str | None]) -> bombus.MixedPrecision:
    """Groups or patterns of parameters stored in these formats; everything computed in float32."""
    policies = {
        rule: bombus.create_policy(params=format, compute="f32", output="f32") for rule, format in rules.items()
    }
    return bombus.MixedPrecision(policies, bombus.create_policy(compute="f32", output="f32"))


def stored_as(format: str) -> bombus.MixedPrecision:
    """All kernels of the blocks in one format."""
    return in_float32(dict.fromkeys(KERNELS, format))


def save_and_reload(loaded: bombus.LoadedModel, folder: Path) -> bombus.LoadedModel:
    """The model again from what it was saved as: the same bytes in the same formats."""
    bombus.save_model(loaded, folder)
    again = bombus.load_model(folder, preserve_source_types=True, policy=in_float32({}))
    assert again.model.formats == {path: format.canonical for path, format in loaded.model.formats.items()}
    before, after = flat(loaded.params), flat(again.params)
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert value.dtype == after[path].dtype
        assert np.asarray(value).tobytes() == np.asarray(after[path]).tobytes(), path
    return again


def read_config(folder: Path) -> dict[str, Any]:
    """`quantization_config` as it is written."""
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def write_config(folder: Path, section: Mapping[str, Any]) -> None:
    """Another `quantization_config`."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))


def read_tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of the folder, in torch's types."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def meta_model(folder: Path) -> Any:
    """transformers' model of a folder as if it were not quantized, without values."""
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def our_kernels(folder: Path) -> dict[str, np.ndarray]:
    """Layer -> the float32 values that Bombus reads, dequantized."""
    loaded = bombus.load_model(folder, policy="f32")
    tensor = loaded.model.architecture.mapping.tensor
    kernels = {path: value for path, value in flat(loaded.params).items() if path.endswith(".kernel")}
    return {tensor(path).removesuffix(".weight"): np.asarray(value) for path, value in kernels.items()}


def their_kernels(folder: Path) -> dict[str, Any]:
    """Layer -> the values that compressed-tensors decompresses, of every layer that it takes for a quantized one.

    It validates config.json, matches the layers' names and checks that a layer has the tensors it needs.
    """
    config = quantization.QuantizationConfig.model_validate(read_config(folder))
    model = meta_model(folder)
    quantization.apply_quantization_config(model, config, show_progress=False)
    tensors = read_tensors(folder)
    kernels = {}
    for layer, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        compressor = compressors.BaseCompressor.get_value_from_registry(scheme.format or config.format)
        state = {name.removeprefix(f"{layer}."): t for name, t in tensors.items() if name.startswith(f"{layer}.")}
        for name in ("bias", "input_global_scale"):  # which is for activations
            state.pop(name, None)
        assert state.keys() == set(compressor.compression_param_names(scheme)), layer
        kernels[layer] = compressor.decompress(state, scheme)["weight"]
    return kernels


def assert_same_kernels(folder: Path, quantized: set[str]) -> None:
    """Bit for bit in the type that compressed-tensors decompresses to, which is bfloat16 for some formats."""
    ours, theirs = our_kernels(folder), their_kernels(folder)
    assert theirs.keys() == quantized
    for layer, weight in theirs.items():
        assert weight.unique().numel() > 14, layer
        assert torch.equal(torch.from_numpy(np.array(ours[layer])).to(weight.dtype), weight), layer


def low_layers(loaded: bombus.LoadedModel) -> dict[str, str]:
    """Layer -> its format, of every weight in low precision."""
    model = loaded.model
    tensor = model.architecture.mapping.tensor
    low = {path: format for path, format in model.formats.items() if format.is_low}
    return {tensor(path).removesuffix(".weight"): str(format) for path, format in low.items()}


# --- Block FP8


@pytest.mark.parametrize(
    ("architecture", "weights", "options", "rules"),
    [
        ("qwen3", "f32", {}, dict.fromkeys(KERNELS, "f8_e4m3fn")),
        ("qwen3", "bf16", UNTIED, dict.fromkeys(KERNELS, "f8_e4m3fn(scale=bf16)")),
        ("llama", "f32", UNTIED | BIASES, dict.fromkeys(KERNELS, "f8_e4m3fn(tile=64x32)")),
        ("llama", "bf16", {}, {"feed_forward": "f8_e4m3fn"}),
        ("llama", "f32", UNTIED, {"decoder.blocks.*": "f8_e4m3fn", "head": "f8_e4m3fn"}),
    ],
    ids=["qwen3", "qwen3-bf16-scales", "llama-small-tiles", "llama-feed-forward", "llama-with-its-head"],
)
def test_transformers_reads_saved_block_fp8(
    comparison: Any,
    tiny: Callable[..., Path],
    tmp_path: Path,
    architecture: str,
    weights: str,
    options: dict[str, Any],
    rules: dict[str, str],
) -> None:
    folder = tiny(architecture, weights, vocab_size=384, **WHOLE, **options)
    loaded = bombus.load_model(folder, policy=in_float32(rules))
    kept = save_and_reload(loaded, tmp_path)
    assert read_config(tmp_path)["quant_method"] == "fp8"
    batch = comparison.make_batch(loaded.spec.vocab_size, "left", 0)
    config = transformers.FineGrainedFP8Config(dequantize=True)
    model = comparison.read_transformers(tmp_path, quantization_config=config).float()  # it leaves a part in bf16
    theirs = comparison.theirs(model, *batch)
    np.testing.assert_allclose(comparison.ours(loaded, *batch), theirs, atol=ATOL, rtol=0)
    np.testing.assert_allclose(comparison.ours(kept, *batch), theirs, atol=ATOL, rtol=0)
    assert_layers_of_a_gpu(tmp_path, set(low_layers(loaded)))


def assert_layers_of_a_gpu(folder: Path, quantized: set[str]) -> None:
    """Where transformers has a GPU it runs FP8 layers: those that are FP8 here, with tensors of these shapes."""
    from transformers.integrations.finegrained_fp8 import FP8Linear, replace_with_fp8_linear

    config = transformers.FineGrainedFP8Config(**read_config(folder))
    model = meta_model(folder)
    replace_with_fp8_linear(model, config.modules_to_not_convert, quantization_config=config, pre_quantized=True)
    assert {name for name, module in model.named_modules() if isinstance(module, FP8Linear)} == quantized
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in read_tensors(folder).items()}
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert found == expected


@pytest.mark.parametrize(
    ("format", "method"),
    [("f8_e4m3fn", "fp8"), ("f8_e4m3fn(tile=40x56)", "fp8"), ("int8(group=128)", "bombus"), ("int4", "bombus")],
)
def test_partial_tiles_keep_their_bytes(tiny: Callable[..., Path], tmp_path: Path, format: str, method: str) -> None:
    """transformers derives a tile as rows // scales and refuses these; compressed-tensors has no partial groups."""
    loaded = bombus.load_model(tiny("llama", "f32", num_blocks=1), policy=stored_as(format))
    save_and_reload(loaded, tmp_path)
    assert read_config(tmp_path)["quant_method"] == method


# --- Ours, read by compressed-tensors

# Weights that are stored so, and whether compressed-tensors dequantizes them to float32, as here, or to bfloat16.
FORMATS = {
    "int8": True,
    "int8(group=32)": True,
    "int8(group=128, scale=bf16)": False,
    "int4(group=32, scale=f32)": True,
    "int4(group=64)": False,
    "int4": False,
    "int4(group=channel, scale=f32)": True,
    "int4(zero_points, scale=f32)": True,
    "int4(group=32, zero_points)": False,
    "int4(group=channel, zero_points, scale=f32)": True,
    "mxfp8": True,  # bfloat16 too, which holds all its values
    "mxfp8(scale_rule=even)": True,
    "mxfp4": True,
    "nvfp4": False,
    "f8_e4m3fn(tile=channel)": True,
    "f8_e4m3fn(tile=channel, scale=bf16)": False,
    "f8_e4m3fn(tile=tensor)": True,
}
MIXED = {
    "*.query.kernel": "int4(group=64, scale=f32)",
    "*.key.kernel": "int8",
    "*.value.kernel": "mxfp8",
    "*.self_attention.output.kernel": "mxfp4",
    "*.ffn.gate.kernel": "f8_e4m3fn",
    "*.ffn.intermediate.kernel": "f8_e4m3fn(tile=tensor)",
    "*.ffn.output.kernel": "f8_e4m3fn(tile=1x32)",  # in all but its scales an mxfp8
}


@pytest.mark.parametrize("format", FORMATS)
def test_compressed_tensors_reads_saved_weights(
    comparison: Any, tiny: Callable[..., Path], tmp_path: Path, format: str
) -> None:
    """Every weight bit for bit; and logits, with compressed-tensors dequantizing while transformers loads."""
    options = {} if "zero_points" in format else UNTIED
    loaded = bombus.load_model(tiny("qwen3", "f32", **WHOLE, **options), policy=stored_as(format))
    save_and_reload(loaded, tmp_path)
    config = read_config(tmp_path)
    assert config["quant_method"] == "compressed-tensors"
    assert config["ignore"] == ["lm_head"]
    assert_same_kernels(tmp_path, set(low_layers(loaded)))

    dequantize = transformers.CompressedTensorsConfig(dequantize=True)
    models = [comparison.read_transformers(tmp_path, quantization_config=dequantize)]
    if "zero_points" not in format:
        # As it is packed; this way compressed-tensors 0.20 makes zero points of another shape than it packs them to.
        models.append(read_packed(comparison, tmp_path))
    batch = comparison.make_batch(loaded.spec.vocab_size, "left", 0)
    rounded = loaded if FORMATS[format] else bombus.load_model(tmp_path, policy=stored_as("bf16"))
    for model in models:
        # Packed, transformers casts scales to its type first, so that what is computed with them is float32.
        ours = rounded if model is models[0] or format == "nvfp4" else loaded
        np.testing.assert_allclose(comparison.ours(ours, *batch), comparison.theirs(model, *batch), atol=ATOL, rtol=0)


def read_packed(comparison: Any, folder: Path) -> Any:
    """transformers' model of the packed tensors, which must all fit, then decompressed."""
    model = comparison.read_transformers(folder)
    model.hf_quantizer.compressor.decompress_model(model)
    return torch.nn.Module.float(model)  # some formats are bf16 now; transformers' own .float() refuses


@pytest.mark.parametrize(("architecture", "options"), [("qwen3", {}), ("llama", UNTIED | BIASES)])
def test_compressed_tensors_reads_saved_weights_of_several_formats(
    comparison: Any, tiny: Callable[..., Path], tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    """transformers' dequantize=True takes the first group for all layers, so only the packed way is compared."""
    loaded = bombus.load_model(tiny(architecture, "f32", **WHOLE, **options), policy=in_float32(MIXED))
    save_and_reload(loaded, tmp_path)
    assert read_config(tmp_path)["format"] == "mixed-precision"
    assert set(low_layers(loaded).values()) == set(MIXED.values())
    assert_same_kernels(tmp_path, set(low_layers(loaded)))
    batch = comparison.make_batch(loaded.spec.vocab_size, "right", 0)
    theirs = comparison.theirs(read_packed(comparison, tmp_path), *batch)
    np.testing.assert_allclose(comparison.ours(loaded, *batch), theirs, atol=ATOL, rtol=0)


# --- Theirs, read here


def weights_only(**arguments: Any) -> Any:
    """A scheme that none of the package's presets is."""
    return quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**arguments))


def preset(name: str, targets: list[str] | None = None) -> Any:
    """One of the package's presets; those with an A below 16 also quantize activations, while running."""
    return quantization.preset_name_to_scheme(name, targets or ["Linear"])


def compress(source: Path, folder: Path, dtype: str, groups: Mapping[str, Any], ignore: list[str]) -> None:
    """Quantize a checkpoint with compressed-tensors as llm-compressor does, with scales by the largest value."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    config = quantization.QuantizationConfig(config_groups=dict(groups), ignore=ignore)
    quantization.apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            _calibrate(module)
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def _calibrate(module: Any) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    arguments, weight = module.quantization_scheme.weights, module.weight.data
    whole_global = None
    if arguments.strategy == "tensor_group":
        whole_global = generate_gparam(weight.min(), weight.max())
        module.weight_global_scale.data.copy_(whole_global)
        if hasattr(module, "input_global_scale"):
            module.input_global_scale.data.fill_(3.0)
    rows, columns = {
        "tensor": weight.shape,
        "channel": (1, weight.shape[1]),
        "block": arguments.block_structure,
    }.get(arguments.strategy, (1, arguments.group_size))
    tiles = weight.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
    scale, zero = calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), arguments, global_scale=whole_global)
    module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zero.reshape(module.weight_scale.shape))


# Their scheme -> what it is here, with the scales of a bf16 model.
SCHEMES: dict[str, tuple[Callable[[], Any], str]] = {
    "W8A8": (lambda: preset("W8A8"), "int8(scale=bf16)"),
    "W8A16": (lambda: preset("W8A16"), "int8(group=128, scale=bf16)"),
    "W4A16": (lambda: preset("W4A16"), "int4"),
    "W4A16_ASYM": (lambda: preset("W4A16_ASYM"), "int4(zero_points)"),
    "W4A16, groups of 32": (lambda: weights_only(num_bits=4, group_size=32), "int4(group=32)"),
    "W4A16, channels": (
        lambda: weights_only(num_bits=4, strategy="channel", symmetric=False),
        "int4(group=channel, zero_points)",
    ),
    "W8A16, channels": (lambda: weights_only(num_bits=8, group_size=-1), "int8(scale=bf16)"),
    "FP8_DYNAMIC": (lambda: preset("FP8_DYNAMIC"), "f8_e4m3fn(tile=channel, scale=bf16)"),
    "FP8_BLOCK": (lambda: preset("FP8_BLOCK"), "f8_e4m3fn(scale=bf16)"),
    "FP8, whole tensors": (
        lambda: weights_only(num_bits=8, type="float", strategy="tensor"),
        "f8_e4m3fn(tile=tensor, scale=bf16)",
    ),
    "NVFP4A16": (lambda: preset("NVFP4A16"), "nvfp4"),
    "NVFP4": (lambda: preset("NVFP4"), "nvfp4"),
    "MXFP4A16": (lambda: preset("MXFP4A16"), "mxfp4"),
    "MXFP4": (lambda: preset("MXFP4"), "mxfp4"),
    "MXFP8A16": (lambda: preset("MXFP8A16"), "mxfp8"),
    "MXFP8": (lambda: preset("MXFP8"), "mxfp8"),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_weights_of_theirs(tiny: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """Every weight bit for bit, from their file and from the one that is made of it here."""
    scheme, expected = SCHEMES[name]
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    source = tiny("qwen3", "bf16", **WHOLE, **UNTIED)
    compress(source, theirs, "bfloat16", {"group_0": scheme()}, ["lm_head"])
    loaded = bombus.load_model(theirs, preserve_source_types=True, policy=in_float32({}))
    layers = low_layers(loaded)
    assert len(layers) == 7
    assert set(layers.values()) == {expected}
    assert_same_theirs(theirs, set(layers))

    save_and_reload(loaded, ours)
    before, after = read_tensors(theirs), read_tensors(ours)
    kernels = our_kernels(theirs)
    for layer, kernel in our_kernels(ours).items():
        np.testing.assert_array_equal(kernel, kernels[layer])
    if name == "FP8_BLOCK":  # saved as block FP8
        return
    assert_same_kernels(ours, set(layers))
    before = {tensor: value for tensor, value in before.items() if not tensor.endswith("input_global_scale")}
    if name != "W8A8":  # which is one byte a code there and packed here
        assert before.keys() == after.keys()
        for tensor, value in before.items():
            assert value.dtype == after[tensor].dtype
            assert torch.equal(value.view(torch.uint8), after[tensor].view(torch.uint8)), tensor


def assert_same_theirs(folder: Path, layers: set[str]) -> None:
    """Our values of their file are theirs; in a copy of their configuration also as older versions wrote it."""
    assert_same_kernels(folder, layers)
    section = read_config(folder)
    older = {key: value for key, value in section.items() if not key.endswith(("_config", "version"))}
    for group in older["config_groups"].values():
        del group["format"]
        group["weights"] |= {"observer": "minmax", "observer_kwargs": {}, "actorder": None}
        group["weights"].setdefault("block_structure", None)
    write_config(folder, older)
    assert_same_kernels(folder, layers)
    write_config(folder, section)


def test_float32_scales_of_theirs(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny("llama", "f32", **WHOLE, **UNTIED, **BIASES)
    compress(source, tmp_path, "float32", {"group_0": preset("W4A16_ASYM")}, ["lm_head"])
    loaded = bombus.load_model(tmp_path, preserve_source_types=True)
    assert set(low_layers(loaded).values()) == {"int4(zero_points, scale=f32)"}
    assert_same_kernels(tmp_path, set(low_layers(loaded)))


def test_targets_and_ignored_layers_of_theirs(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A name beats expressions, the first expression of the alphabet the others, these "Linear"; ignored is ignored."""
    groups = {
        "group_0": preset("MXFP8A16"),
        "group_1": preset("W8A16", [r"re:model\.layers\..*mlp\..*"]),
        "group_2": preset("W4A16", [r"re:.*\.mlp\.gate_proj$"]),
        "group_3": preset("FP8_DYNAMIC", [r"re:.*self_attn\.(q|k)_proj", "model.layers.0.mlp.up_proj"]),
    }
    source = tiny("qwen3", "bf16", **{**WHOLE, "num_blocks": 2}, **UNTIED)
    compress(source, tmp_path, "bfloat16", groups, ["lm_head", "re:.*1.self_attn.o_proj", "model.layers.1.mlp.up_proj"])
    section = read_config(tmp_path)
    assert section["format"] == "mixed-precision"
    # The first group that matches is now another one.
    write_config(tmp_path, section | {"config_groups": dict(reversed(section["config_groups"].items()))})
    loaded = bombus.load_model(tmp_path, preserve_source_types=True, policy=in_float32({}))
    fp8 = "f8_e4m3fn(tile=channel, scale=bf16)"
    expected = {
        "self_attn.q_proj": (fp8, fp8),
        "self_attn.k_proj": (fp8, fp8),
        "self_attn.v_proj": ("mxfp8", "mxfp8"),
        "self_attn.o_proj": ("mxfp8", None),
        "mlp.gate_proj": ("int4", "int4"),
        "mlp.up_proj": (fp8, None),
        "mlp.down_proj": ("int8(group=128, scale=bf16)",) * 2,
    }
    assert low_layers(loaded) == {
        f"model.layers.{block}.{layer}": format
        for layer, formats in expected.items()
        for block, format in enumerate(formats)
        if format is not None
    }
    assert_same_kernels(tmp_path, set(low_layers(loaded)))

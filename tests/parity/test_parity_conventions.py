"""Conventions of low-precision weights, read by transformers and compressed-tensors: the same values in every bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from convention_cases import CASES, EMBEDDING, SIZES, hugging_face
from conventions import E5M2, E8M0, KERNELS, Convention, Written, fp8, integers, write_convention, write_folder

import bombus
from bombus.models.model import flat

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")
pytestmark = pytest.mark.parity

# Whole tiles of 128, in each direction; transformers derives a tile as rows // scales.
WHOLE = {"hidden_size": 256, "intermediate_size": 384, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
BF16 = ml_dtypes.bfloat16


@pytest.fixture
def written(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Written]:
    """`written(convention)`: a checkpoint of one block in a convention, made by NumPy."""

    def make(convention: Convention) -> Written:
        sizes = {**SIZES, "whole": WHOLE}[convention.base]
        return write_convention(convention, tiny("qwen3", "f32", num_blocks=1, vocab_size=34, **sizes), tmp_path)

    return make


def our_weights(folder: Path) -> dict[str, np.ndarray]:
    """Layer -> the values that Bombus reads."""
    loaded = bombus.load_model(folder, policy="f32")
    tensor = loaded.model.architecture.mapping.tensor
    params = {path: value for path, value in flat(loaded.params).items() if path.endswith((".kernel", ".embedding"))}
    return {tensor(path).removesuffix(".weight"): np.asarray(value) for path, value in params.items()}


def as_torch(written: Written) -> dict[str, Any]:
    """The tensors of a file in torch's types."""
    from safetensors.torch import load_file

    return {name: tensor for file in written.folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(ours: np.ndarray, theirs: Any, layer: str = "") -> None:
    assert theirs.dtype == torch.float32, layer
    np.testing.assert_array_equal(ours, theirs.detach().numpy(), strict=True, err_msg=layer)


# --- transformers: block FP8 and its aliases, dequantized on CPU

FINE_GRAINED = {
    "f32": (fp8("", (128, 128)), hugging_face([128, 128])),
    "small tiles, bf16": (fp8("", (64, 32), scale=BF16), hugging_face([64, 32])),
    "scale, e8m0": (fp8("", (128, 128), scale=E8M0, word="scale"), hugging_face([128, 128], scale_fmt="ue8m0")),
    "bytes": (fp8("", (128, 128), scale="U8"), hugging_face([128, 128], scale_fmt="ue8m0")),
    "mxfp8": (fp8("", (1, 32), scale="U8"), hugging_face([1, 32], "mxfp8", scale_fmt="ue8m0")),
    "qscale_weight": (
        fp8("", (0, 0), word="qscale_weight", shape=lambda grid: grid.reshape(())),
        hugging_face(None, activation_scheme="dynamic"),
    ),
    "a tensor, in a row": (fp8("", (0, 0), shape=lambda grid: grid.reshape(1)), hugging_face(None)),
    "f16": (fp8("", (128, 128), scale=np.float16), hugging_face([128, 128])),
    "e5m2": (fp8("", (128, 128), element=E5M2), hugging_face([128, 128], fmt="e5m2")),
}


@pytest.mark.parametrize("name", FINE_GRAINED)
def test_transformers_dequantizes_fp8_to_the_same_values(written: Callable[..., Written], name: str) -> None:
    maker, section = FINE_GRAINED[name]
    checkpoint = written(Convention(makers=maker, section=section, base="whole"))
    config = transformers.FineGrainedFP8Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, quantization_config=config, dtype=torch.float32
    )
    theirs = {name.removesuffix(".weight"): tensor for name, tensor in model.state_dict().items()}
    ours = our_weights(checkpoint.folder)
    assert len(checkpoint.made) == 7
    for layer in checkpoint.made:
        assert_same(ours[layer], theirs[layer], layer)


def test_an_embedding_in_fp8_has_the_values_of_transformers(written: Callable[..., Written]) -> None:
    """transformers keeps it as it is and looks up rows of it."""
    from transformers.integrations.finegrained_fp8 import FP8Embedding

    case = CASES["fp8, an embedding"]
    checkpoint = written(replace(case, makers={EMBEDDING: case.maker("model.embed_tokens")}))
    tensors = as_torch(checkpoint)
    layer = FP8Embedding(*tensors["model.embed_tokens.weight"].shape)
    layer.load_state_dict(
        {name.removeprefix("model.embed_tokens."): t for name, t in tensors.items() if "embed" in name}
    )
    assert_same(our_weights(checkpoint.folder)["model.embed_tokens"], layer(torch.arange(34)))


@pytest.mark.parametrize("name", ["mxfp4", "mxfp4, alone, partial blocks"])
def test_transformers_converts_blocks_of_mxfp4_to_the_same_values(written: Callable[..., Written], name: str) -> None:
    """It takes (experts, outputs, blocks, bytes) and returns inputs first, of whole blocks."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    checkpoint = written(CASES[name])
    tensors, ours = as_torch(checkpoint), our_weights(checkpoint.folder)
    for layer in checkpoint.made:
        blocks, scales = (tensors[f"{layer}_{part}"][None] for part in ("blocks", "scales"))
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)[0].T.contiguous()
        assert_same(ours[layer], theirs[:, : ours[layer].shape[1]].contiguous(), layer)


def test_configurations_that_transformers_writes_are_read(written: Callable[..., Written]) -> None:
    """With every field that it writes, its enumerations as their values."""
    makers = {
        "gptq": (transformers.GPTQConfig(bits=4, group_size=16, sym=False), CASES["gptq"]),
        "gptq_v2": (transformers.GPTQConfig(bits=4, group_size=8, format="gptq_v2"), CASES["gptq_v2"]),
        "awq": (transformers.AwqConfig(bits=4, group_size=16), CASES["awq"]),
        "fp8": (transformers.FineGrainedFP8Config(weight_block_size=(16, 24)), CASES["fp8, odd blocks, bf16"]),
        "fbgemm": (transformers.FbgemmFp8Config(), CASES["fbgemm_fp8"]),
        "mxfp4": (transformers.Mxfp4Config(), CASES["mxfp4"]),
    }
    for name, (config, case) in makers.items():
        section = json.loads(json.dumps(config.to_dict()))
        checkpoint = written(replace(case, section=section))
        loaded = bombus.load_model(checkpoint.folder, preserve_source_types=True)
        low = {str(format) for format in loaded.model.formats.values() if format.is_low}
        assert low == {case.maker(layer).format for layer in checkpoint.made}, name


# --- compressed-tensors, which converts other conventions


@pytest.mark.parametrize("name", ["fp8", "fp8, odd blocks, bf16", "alone, blocks", "fp8, bytes of e8m0"])
def test_compressed_tensors_dequantizes_partial_blocks_to_the_same_values(
    written: Callable[..., Written], name: str
) -> None:
    from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer

    checkpoint = written(CASES[name])
    size = (CASES[name].section or {}).get("weight_block_size", [128, 128])
    converter = FP8BlockDequantizer(targets=[f"re:{KERNELS}"], weight_block_size=tuple(size), dtype=torch.float32)
    tensors = as_torch(checkpoint)
    if "bytes" in name:
        bytes_of_scales = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.uint8}
        tensors |= {name: tensor.view(torch.float8_e8m0fnu) for name, tensor in bytes_of_scales.items()}
    theirs, ours = converter.process(tensors), our_weights(checkpoint.folder)
    for layer in checkpoint.made:
        assert_same(ours[layer], theirs[f"{layer}.weight"], layer)


def compressed_copy(checkpoint: Written, converter: Any, folder: Path) -> Path:
    """The checkpoint as compressed-tensors converts it, with the configuration that it writes."""
    from safetensors.torch import save_file

    base = json.loads((checkpoint.folder / "config.json").read_text())
    section = json.loads(converter.update_config(None).model_dump_json())
    write_folder(checkpoint.plain, folder, {"none": np.zeros(1)}, base | {"quantization_config": section})
    tensors = converter.process(as_torch(checkpoint))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def assert_same_model(first: bombus.LoadedModel, second: bombus.LoadedModel) -> None:
    """The same formats and the same bytes."""
    assert first.model.formats == second.model.formats
    theirs = flat(second.params)
    for path, value in flat(first.params).items():
        assert np.asarray(value).tobytes() == np.asarray(theirs[path]).tobytes(), path


@pytest.mark.parametrize("scale", [np.float16, BF16])
def test_compressed_tensors_converts_awq_to_the_same_codes(
    written: Callable[..., Written], tmp_path: Path, scale: Any
) -> None:
    from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter

    text = "int4(group=16, zero_points)" if scale is BF16 else "int4(group=16, zero_points, scale=f16)"
    maker = integers(text, 16, style="awq", scale=scale)
    checkpoint = written(Convention(makers=maker, section=CASES["awq"].section, base="eights"))
    converter = AutoAWQConverter(group_size=16)
    folder = compressed_copy(checkpoint, converter, tmp_path / "compressed")
    load = partial(bombus.load_model, preserve_source_types=True)
    assert_same_model(load(checkpoint.folder), load(folder))


@pytest.mark.parametrize("base", ["odd", "blocks"])
def test_compressed_tensors_converts_nvfp4_of_modelopt_to_the_same_codes(
    written: Callable[..., Written], tmp_path: Path, base: str
) -> None:
    """The reciprocal of the scale of a tensor is theirs in every bit."""
    from compressed_tensors.entrypoints.convert.converters import ModelOptNvfp4Converter

    checkpoint = written(replace(CASES["modelopt, NVFP4"], base=base))
    converter = ModelOptNvfp4Converter(targets=[f"re:{KERNELS}"])
    folder = compressed_copy(checkpoint, converter, tmp_path / "compressed")
    load = partial(bombus.load_model, preserve_source_types=True)
    ours, theirs = load(checkpoint.folder), load(folder)
    assert_same_model(ours, theirs)
    scales = {name: 1 / float(scale) for name, scale in ours.report.activation_scales.items()}
    assert {
        name.replace("input_global_scale", "input_scale"): pytest.approx(float(scale), rel=1e-7)
        for name, scale in theirs.report.activation_scales.items()
    } == scales


@pytest.mark.parametrize("name", ["gptq", "gptq_v2", "gptq, 8 bits"])
def test_compressed_tensors_unpacks_words_of_gptq_to_the_same_codes(written: Callable[..., Written], name: str) -> None:
    """Its words are GPTQ's: those of weights along the inputs, those of zero points along the outputs."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    checkpoint = written(CASES[name])
    bits, less = 8 if "8 bits" in name else 4, 0 if name == "gptq_v2" else 1
    tensors, ours = as_torch(checkpoint), our_weights(checkpoint.folder)
    for layer in checkpoint.made:
        words, zeros, scales, groups = (tensors[f"{layer}.{word}"] for word in ("qweight", "qzeros", "scales", "g_idx"))
        outputs, inputs = ours[layer].shape
        codes = unpack_from_int32(words, bits, (inputs, outputs), packed_dim=0).int()
        zero = unpack_from_int32(zeros, bits, (zeros.shape[0], outputs)).int()
        half = 2 ** (bits - 1)
        # Both are less the middle; the sum of zero point and one is taken in as many bits.
        zero = (zero + half + less) % 2**bits - half
        values = (codes - zero[groups.long()]) * scales.float()[groups.long()]
        assert_same(ours[layer], values.T.contiguous(), layer)

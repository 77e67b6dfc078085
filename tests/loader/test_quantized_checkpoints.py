"""Quantized checkpoints of every convention, made by hand with NumPy: kept bit for bit, and their float64 values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy_formats
import pytest
from quantized_files import (
    SIZES,
    compressed,
    encode,
    own,
    packed_fp4,
    packed_integers,
    quantized,
    raw_tensors,
    unpacked,
    write,
)
from safetensors.numpy import load_file

import bombus
from bombus.models.model import flat

GATE, UP, DOWN = (f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down"))
QUERY, OUTPUT = (f"model.layers.0.self_attn.{name}_proj" for name in ("q", "o"))
_NAMES = {
    **{f"model.layers.0.self_attn.{name[0]}_proj": f"self_attention.{name}" for name in ("query", "key", "value")},
    OUTPUT: "self_attention.output",
    GATE: "ffn.gate",
    UP: "ffn.intermediate",
    DOWN: "ffn.output",
}
OURS = {theirs: f"decoder.blocks.0.{ours}.kernel" for theirs, ours in _NAMES.items()}
# Groups that divide 35 inputs, so not for the layers with 34.
WIDE = [layer for layer in OURS if layer not in (DOWN, OUTPUT)]
NOT_THOSE = r".*(?<!down)(?<!\.o)_proj"


class Case(NamedTuple):
    """name and options of our format, as it is written, the tensors of a weight, quantization_config."""

    name: str
    options: dict[str, Any]
    text: str
    make: Callable[[np.ndarray], dict[str, np.ndarray]]
    section: dict[str, Any]


def integers(bits: int, text: str, **options: Any) -> Case:
    """int4 and int8 in int32 words."""
    group = options.get("group", 0)
    weights = {
        "num_bits": bits,
        "type": "int",
        "strategy": "group" if group else "channel",
        "group_size": group or None,
        "symmetric": not options.get("zero_points", False),
    }
    targets = [f"re:{NOT_THOSE}"] if group else ["Linear"]
    section = compressed(weights, "pack-quantized", targets=targets)
    return Case(f"int{bits}", options, text, partial(packed_integers, bits=bits, **options), section)


def floats(text: str, strategy: str, format: str = "float-quantized", name: str = "f8_e4m3fn", **options: Any) -> Case:
    """Codes of one byte each, not packed."""
    weights = {"num_bits": 8, "type": "float" if name != "int8" else "int", "strategy": strategy, "symmetric": True}
    if strategy == "block":
        weights["block_structure"] = list(options["tile"])
    if name == "mxfp8":
        weights |= {"group_size": 32, "scale_dtype": "torch.uint8"}
    return Case(name, options, text, partial(unpacked, name=name, **options), compressed(weights, format))


FOUR = {"num_bits": 4, "type": "float", "symmetric": True}
LOCAL = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local"}
CASES = {
    "int8, int-quantized": floats("int8(scale=bf16)", "channel", "int-quantized", "int8", scale="bf16"),
    "int8, a channel": integers(8, "int8", scale="f32"),
    "int8, groups of 5": integers(8, "int8(group=5, scale=bf16)", group=5, scale="bf16"),
    "int4, a channel": integers(4, "int4(group=channel)", group=0),
    "int4, groups of 7": integers(4, "int4(group=7, scale=f16)", group=7, scale="f16"),
    "int4, a channel, zero points": integers(4, "int4(group=channel, zero_points)", group=0, zero_points=True),
    "int4, groups of 7, zero points": integers(4, "int4(group=7, zero_points)", group=7, zero_points=True),
    "FP8, a channel": floats("f8_e4m3fn(tile=channel, scale=bf16)", "channel", tile=(1, 0), scale="bf16"),
    "FP8, a tensor": floats("f8_e4m3fn(tile=tensor)", "tensor", "naive-quantized", tile=(0, 0)),
    "FP8, blocks": floats("f8_e4m3fn(tile=16x24, scale=bf16)", "block", tile=(16, 24), scale="bf16"),
    "mxfp8": floats("mxfp8", "group", "mxfp8-quantized", "mxfp8"),
    "mxfp4": Case(
        *("mxfp4", {}, "mxfp4", partial(packed_fp4, name="mxfp4")),
        compressed({**FOUR, "strategy": "group", "group_size": 32}, "mxfp4-pack-quantized"),
    ),
    "nvfp4": Case(
        *("nvfp4", {}, "nvfp4", partial(packed_fp4, name="nvfp4")),
        compressed(
            {**FOUR, "strategy": "tensor_group", "group_size": 16}, "nvfp4-pack-quantized", input_activations=LOCAL
        ),
    ),
    **{
        f"our own, {text}": Case(
            *(text.partition("(")[0], options, text, partial(own, name=text.partition("(")[0], **options)),
            {"quant_method": "bombus", "version": 1, "formats": dict.fromkeys(OURS, text)},
        )
        for text, options in {
            "bfp8": {},
            "bfp8(axis=out)": {"axis": "out"},
            "bfp4(axis=out)": {"axis": "out"},
            "bfp4": {},
            "int4(group=8, zero_points)": {"group": 8, "zero_points": True},
            "f8_e5m2(tile=16x24)": {"tile": (16, 24)},
            "nvfp4": {},
        }.items()
    },
}


@pytest.fixture(scope="module")
def base(tiny: Callable[..., Path]) -> Path:
    return tiny("qwen3", "f32", **SIZES)


def made(case: Case, base: Path, folder: Path) -> tuple[Path, list[str]]:
    """(the checkpoint, its quantized layers)."""
    some = case.section.get("config_groups", {}).get("group_0", {}).get("targets", ["Linear"]) != ["Linear"]
    folder = quantized(base, folder, case.section, case.make, NOT_THOSE if some else ".*")
    return folder, WIDE if some else list(OURS)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_values_are_those_of_float64(case: Case, base: Path, tmp_path: Path) -> None:
    """Dequantized while loading, to float32, against NumPy's decoding of the same codes (float32 rounds to 6e-8)."""
    folder, layers = made(case, base, tmp_path)
    loaded = bombus.load_model(folder, policy="f32")
    original = load_file(base / "model.safetensors")
    for layer, path in OURS.items():
        values = original[f"{layer}.weight"]
        expected = numpy_formats.decode(*encode(values, case.name, **case.options), case.name, **case.options)
        found = np.asarray(flat(loaded.params)[path])
        np.testing.assert_allclose(found, expected if layer in layers else values, rtol=2e-7, atol=0)
        # And they are no noise: the format's own error, which is at most a quarter in four bits.
        assert np.abs(found - values).max() <= 0.25 * np.abs(values).max()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_codes_and_parts_are_kept_bit_for_bit(case: Case, base: Path, tmp_path: Path) -> None:
    """As this project has them in memory, and the report says where they are from."""
    folder, layers = made(case, base, tmp_path)
    loaded = bombus.load_model(folder, preserve_source_types=True)
    params = flat(loaded.params)
    original = load_file(base / "model.safetensors")
    for layer in layers:
        path = OURS[layer]
        assert str(loaded.model.formats[path]) == case.text
        codes, parts = encode(original[f"{layer}.weight"], case.name, **case.options)
        stored = numpy_formats.pack(codes) if case.name in numpy_formats.PACKED else codes
        arrays = {path: stored, **{path.replace("kernel", part): array for part, array in parts.items()}}
        for name, array in arrays.items():
            assert params[name].dtype == array.dtype, name
            assert np.asarray(params[name]).tobytes() == array.tobytes(), name
    actions = {entry.path: entry.action for entry in loaded.report.plan.entries}
    assert set(actions.values()) == {"keep"}
    assert loaded.report.plan.unused == ()


# Groups of 16 and 32 have to divide the inputs there, where this project would write its own layout.
EVEN = {**SIZES, "hidden_size": 64, "intermediate_size": 32, "head_dim": 32}
OTHERWISE = ("int8, int-quantized", "FP8, blocks")  # which are written in other layouts than they were read in


@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHERWISE])
def test_what_is_kept_is_saved_as_it_was(name: str, base: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """The same tensors, by name, type and bytes, but for the scale of activations, which are not quantized here."""
    base = tiny("qwen3", "f32", **EVEN) if name in ("mxfp8", "mxfp4", "nvfp4") else base
    folder, _ = made(CASES[name], base, tmp_path / "made")
    bombus.save_model(bombus.load_model(folder, preserve_source_types=True), tmp_path / "saved")
    before = {name: tensor for name, tensor in raw_tensors(folder).items() if "input_global_scale" not in name}
    assert raw_tensors(tmp_path / "saved") == before


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_the_scale_of_a_tensor_has_any_shape_of_one_number(shape: tuple, base: Path, tmp_path: Path) -> None:
    case = CASES["FP8, a tensor"]

    def make(values: np.ndarray) -> dict[str, np.ndarray]:
        tensors = case.make(values)
        return tensors | {"weight_scale": tensors["weight_scale"].reshape(shape)}

    loaded = bombus.load_model(quantized(base, tmp_path, case.section, make), preserve_source_types=True)
    params = flat(loaded.params)
    assert {params[path.replace("kernel", "scale_inv")].shape for path in OURS.values()} == {(1, 1)}


def test_ignored_layers_are_not_quantized(base: Path, tmp_path: Path) -> None:
    """By name and by expression, from the start of a name on, as the package matches."""
    case = CASES["int4, a channel"]
    section = {**case.section, "ignore": ["lm_head", DOWN, r"re:.*\.self_attn\.[kv]_proj"]}
    plain = {DOWN, *(layer for layer in OURS if layer.endswith((".k_proj", ".v_proj")))}
    pattern = "|".join(sorted(set(OURS) - plain))
    loaded = bombus.load_model(quantized(base, tmp_path, section, case.make, pattern), preserve_source_types=True)
    found = {layer for layer, path in OURS.items() if str(loaded.model.formats[path]) == "f32"}
    assert found == plain


def test_a_named_layer_comes_before_an_expression_and_that_before_all(base: Path, tmp_path: Path) -> None:
    """Each layer has the format of its group; the groups' own order does not count."""
    names = ("int8, a channel", "int4, a channel, zero points", "FP8, a tensor")
    targets = (["Linear"], [r"re:.*mlp.*"], [GATE])
    sections = [CASES[name].section for name in names]
    groups = {
        f"group_{index}": {**section["config_groups"]["group_0"], "targets": target, "format": section["format"]}
        for index, (section, target) in enumerate(zip(sections, targets, strict=True))
    }
    section = {**sections[0], "format": "mixed-precision", "config_groups": groups}
    of_layer = {layer: CASES[names[2 if layer == GATE else 1 if "mlp" in layer else 0]] for layer in OURS}
    original = load_file(base / "model.safetensors")
    tensors = {name: tensor for name, tensor in original.items() if name.removesuffix(".weight") not in OURS}
    for layer, case in of_layer.items():
        tensors |= {f"{layer}.{word}": tensor for word, tensor in case.make(original[f"{layer}.weight"]).items()}
    folder = write(base, tmp_path, section, tensors)
    loaded = bombus.load_model(folder, preserve_source_types=True)
    assert {layer: str(loaded.model.formats[path]) for layer, path in OURS.items()} == {
        layer: case.text for layer, case in of_layer.items()
    }


def test_the_report_names_the_formats_and_counts_the_bytes(base: Path, tmp_path: Path) -> None:
    """Of the file and in memory; the bytes are those of the arrays."""
    folder, _ = made(CASES["int4, groups of 7, zero points"], base, tmp_path)
    loaded = bombus.load_model(folder, preserve_source_types=True, policy={"model.embed_tokens.weight": "int8"})
    rows = {row["parameter"]: row for row in loaded.report.to_json()["parameters"]}
    gate = rows[OURS[GATE]]
    assert (gate["tensor"], gate["in file"], gate["stored"]) == (
        f"{GATE}.weight_packed",
        "int4(group=7, zero_points)",
        "int4(group=7, zero_points)[34, 35]",
    )
    assert gate["bytes"] == 34 * 18 + 34 * 5 * (2 + 1)
    assert loaded.report.nbytes == sum(value.nbytes for value in flat(loaded.params).values())

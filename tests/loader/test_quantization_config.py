"""`quantization_config`, as each convention writes it: what is not supported is refused by the name of its field."""

from __future__ import annotations

from typing import Any

import pytest
from quantized_files import compressed

import bombus
from bombus.loader.quantization import read_scheme

UP = "model.layers.0.mlp.up_proj"
ANOTHER = ". Look for a BF16 or block-FP8 version of this checkpoint"
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
BLOCK = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16], "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
KNOWN = "int4, int8, float8, MXFP or NVFP4 of a known kind"
LAYOUTS = (
    "pack-quantized, float-quantized, mxfp8-quantized, mxfp4-pack-quantized, nvfp4-pack-quantized, int-quantized, "
    "naive-quantized, mixed-precision, dense"
)


METHODS = "one of 'fp8', 'mxfp8', 'fbgemm_fp8', 'compressed-tensors', 'modelopt', 'mxfp4', 'gptq', 'awq', 'bombus'"


def refusal(section: Any) -> list[str]:
    """The problems of a `quantization_config`."""
    with pytest.raises(bombus.SpecError) as caught:
        read_scheme({"quantization_config": section})
    assert str(caught.value).startswith("config.json")
    return [str(problem) for problem in caught.value.problems]


def unsupported(field: str, expected: str, found: str) -> str:
    name = f"quantization_config.{field}" if field else "quantization_config"
    return f"field '{name}': is not supported (expected {expected}, found {found}){ANOTHER}"


@pytest.mark.parametrize(
    "weights",
    [
        INT4 | {"num_bits": 3},
        INT4 | {"group_size": 0},
        INT4 | {"group_size": "32"},
        INT4 | {"strategy": "tensor"},
        INT4 | {"strategy": "token", "type": "float", "num_bits": 8},
        INT4 | {"type": "float", "group_size": 16},
        INT8 | {"symmetric": False},
        BLOCK,
        BLOCK | {"strategy": "channel", "symmetric": False},
    ],
    ids=str,
)
def test_weights_of_an_unknown_kind_are_refused(weights: dict[str, Any]) -> None:
    """With the arguments that say the kind."""
    named = ("num_bits", "type", "strategy", "group_size", "block_structure", "symmetric")
    shown = {name: weights[name] for name in named if name in weights}
    section = compressed(weights, "pack-quantized")
    assert refusal(section) == [unsupported("config_groups.group_0.weights", KNOWN, repr(shown))]


@pytest.mark.parametrize(
    ("section", "field", "expected", "found"),
    [
        (
            compressed(INT4 | {"actorder": "group"}, "pack-quantized"),
            *("config_groups.group_0.weights.actorder", "null", "'group'"),
        ),
        (
            compressed(INT4, "pack-quantized", targets=["Linear", "Embedding"]),
            *("config_groups.group_0.targets", "'Linear', names of layers, or re: and an expression", "Embedding"),
        ),
        (
            compressed(INT4, "pack-quantized", targets=["re:("]),
            "config_groups or ignore",
            "a regular expression (missing ), unterminated subpattern at position 0)",
            "'re:('",
        ),
        (compressed(INT4, "pack-quantized", ignore="lm_head"), "ignore", "a list of names", "'lm_head'"),
        (
            compressed(INT4, "pack-quantized", transform_config={"R1": {}}),
            *("transform_config", "nothing, or an empty object", "{'R1': {}}"),
        ),
        (compressed(INT4, "marlin-24"), "format", LAYOUTS, "'marlin-24'"),
        (compressed(INT4, "pack-quantized", config_groups={}), "config_groups", "an object of groups", "{}"),
        (
            compressed(INT4, "pack-quantized", config_groups={"first": {"targets": ["Linear"], "weights": None}}),
            "config_groups.first",
            "an object with `targets` and `weights`",
            "{'targets': ['Linear'], 'weights': None}",
        ),
        ({"quant_method": "fp8", "activation_scheme": "x"}, "activation_scheme", "'dynamic' or 'static'", "'x'"),
        (
            {"quant_method": "fp8", "weight_block_size": [128]},
            *("weight_block_size", "two positive sizes, like [128, 128]", "[128]"),
        ),
        ("int4", "", "an object", "'int4'"),
        ({"quant_method": ["fp8"]}, "quant_method", METHODS, "['fp8']"),
        ({"quant_method": "bombus", "version": 1, "formats": ["int8"]}, "formats", "an object of layer: format", None),
    ],
)
def test_a_configuration_that_is_not_supported_names_its_field(
    section: Any, field: str, expected: str, found: str | None
) -> None:
    assert refusal(section) == [unsupported(field, expected, found or "['int8']")]


def test_everything_that_is_wrong_in_a_configuration_is_listed() -> None:
    section = compressed(INT4 | {"num_bits": 5}, "marlin-24", ignore=[1])
    section["config_groups"]["second"] = 7
    fields = ("format", "config_groups.group_0.weights", "config_groups.second", "ignore")
    assert [problem.partition(":")[0] for problem in refusal(section)] == [
        f"field 'quantization_config.{field}'" for field in fields
    ]


def test_our_own_layout_of_a_newer_version_is_refused() -> None:
    (problem,) = refusal({"quant_method": "bombus", "version": 2, "formats": {UP: "int3(group=8)"}})
    assert problem.startswith(
        "field 'quantization_config.version': is not supported (expected 1; a newer one needs a newer bombus, found 2)"
    )


def test_unknown_formats_of_our_own_layout_name_their_layers() -> None:
    formats = {UP: "int3(group=8)", "lm_head": "int4(groups=8)"}
    first, second = refusal({"quant_method": "bombus", "version": 1, "formats": formats})
    assert UP in first
    assert "type 'int3(group=8)': is not a storage format" in first
    assert "lm_head" in second
    assert second.endswith("format 'int4': has no option 'groups'. Its options are group, zero_points, scale")

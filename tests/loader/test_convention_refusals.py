"""Low-precision tensors that are missing, stand alone or twice, do not fit or hold no numbers: exact texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from convention_cases import CASES, SIZES
from conventions import UP, Changes, write_changed

import bombus
from bombus.policies.formats import type_name

PATH = "decoder.blocks.0.ffn.intermediate.kernel"
LOST = "Download the checkpoint again; without its scales the values are lost"
FIELD = "Check quantization_config in config.json"
BELONGS = "Check that config.json belongs to these weights"
OR_LEAVE = "Check the architecture in config.json, or pass strict=False to leave it out"


@pytest.fixture
def broken(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`broken(case, changes)`: a checkpoint of which one weight is in the convention of a case. See write_changed."""

    def make(case: str, changes: Changes) -> Path:
        base = tiny("qwen3", "f32", num_blocks=1, vocab_size=34, **SIZES[CASES[case].base])
        return write_changed(CASES[case], changes, base, tmp_path)

    return make


def problems(folder: Path, *, strict: bool = True) -> list[str]:
    """The problems of a load that fails with one PlanError."""
    with pytest.raises(bombus.PlanError) as caught:
        bombus.load_model(folder, preserve_source_types=True, strict=strict)
    assert caught.value.where == str(folder)
    return [str(problem) for problem in caught.value.problems]


def as_type(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda tensor: tensor.astype(dtype)


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """The tensor, with another number in its second row and column, or as the only one."""

    def change(tensor: np.ndarray) -> np.ndarray:
        changed = tensor.copy()
        changed[(1, 1) if changed.ndim == 2 else ()] = value
        return changed

    return change


def no_part(word: str, noun: str, dtype: str, missed: str) -> str:
    return f"weight {UP}{word}: is in {dtype} and has no {noun} (expected a tensor {UP}{missed}). {LOST}"


# --- Scales that are missing, alone, twice or of another shape


@pytest.mark.parametrize(
    ("case", "end", "text"),
    [
        ("fp8", ".weight_scale_inv", no_part(".weight", "scale", "float8_e4m3fn", ".weight_scale_inv")),
        ("fp8, e5m2", ".weight_scale_inv", no_part(".weight", "scale", "float8_e5m2", ".weight_scale_inv")),
        ("alone, channels", ".weight_scale_inv", no_part(".weight", "scale", "float8_e4m3fn", ".weight_scale_inv")),
        ("compressed, static", ".weight_scale", no_part(".weight", "scale", "float8_e4m3fn", ".weight_scale")),
        ("modelopt, FP8", ".weight_scale", no_part(".weight", "scale", "float8_e4m3fn", ".weight_scale")),
        ("fbgemm_fp8", ".weight_scale", no_part(".weight", "scale", "float8_e4m3fn", ".weight_scale")),
        ("modelopt, NVFP4", ".weight_scale", no_part(".weight", "scale", "uint8", ".weight_scale")),
        ("modelopt, NVFP4", ".weight_scale_2", no_part(".weight", "global scale", "uint8", ".weight_scale_2")),
        ("gptq", ".scales", no_part(".qweight", "scale", "int32", ".scales")),
        ("gptq", ".qzeros", no_part(".qweight", "zero point", "int32", ".qzeros")),
        ("awq", ".scales", no_part(".qweight", "scale", "int32", ".scales")),
        ("mxfp4", "_scales", no_part("_blocks", "scale", "uint8", "_scales")),
        (
            *("compressed, actorder", ".weight_zero_point"),
            no_part(".weight_packed", "zero point", "int32", ".weight_zero_point"),
        ),
    ],
)
def test_codes_without_a_part_are_refused(broken: Callable[..., Path], case: str, end: str, text: str) -> None:
    """Strict or not: random numbers are no replacement."""
    folder = broken(case, {end: None})
    assert problems(folder) == problems(folder, strict=False) == [text]


@pytest.mark.parametrize(
    ("case", "end"), [("fp8", ".weight"), ("fp8, AutoFP8", ".weight"), ("gptq", ".qweight"), ("mxfp4", "_blocks")]
)
def test_parts_without_codes_are_one_missing_weight(broken: Callable[..., Path], case: str, end: str) -> None:
    shape = {"tiles": (320, 192), "odd": (34, 35), "eights": (40, 48), "blocks": (96, 64)}[CASES[case].base]
    assert problems(broken(case, {end: None})) == [
        f"tensor {UP}.weight: is missing; parameter {PATH} needs it (expected shape {shape}). {BELONGS}, or pass "
        "strict=False to initialise it"
    ]


@pytest.mark.parametrize(("case", "end"), [("fp8", "weight_scale_inv"), ("fp8, scale, e8m0", "scale")])
def test_a_scale_of_a_wide_weight_is_refused(broken: Callable[..., Path], case: str, end: str) -> None:
    assert problems(broken(case, {".weight": as_type(ml_dtypes.bfloat16)})) == [
        f"tensor {UP}.{end}: is a scale, but {UP}.weight is bf16 (expected float8_e4m3fn codes)"
    ]


def not_fit(word: str, shape: str, format: str, expected: str, found: str, noun: str = "scale") -> str:
    return (
        f"weight {UP}{word}: has {noun}s that do not fit its shape {shape} in {format} (expected {expected}, found "
        f"{found}). {FIELD}"
    )


FP8_SCALES = "f32, bf16, f16, e8m0, uint8"


@pytest.mark.parametrize(
    ("case", "changes", "text"),
    [
        (
            *("fp8", {".weight_scale_inv": np.ones((2, 2), np.float32)}),
            not_fit(".weight", "(320, 192)", "tiles of (128, 128)", f"(3, 2) of {FP8_SCALES}", "(2, 2) of f32"),
        ),
        (
            *("alone, blocks", {".weight_scale_inv": np.ones((2, 3), np.float32)}),
            not_fit(".weight", "(320, 192)", "tiles of (128, 128)", f"(3, 2) of {FP8_SCALES}", "(2, 3) of f32"),
        ),
        (
            *("fp8", {".weight_scale_inv": np.ones((3, 2), np.int32)}),
            not_fit(".weight", "(320, 192)", "tiles of (128, 128)", f"(3, 2) of {FP8_SCALES}", "(3, 2) of int32"),
        ),
        (
            *("modelopt, FP8_PB_WO", {".weight_scale": np.ones((3, 1, 3, 1), np.float32)}),
            not_fit(".weight", "(320, 192)", "tiles of (128, 128)", f"(3, 2) of {FP8_SCALES}", "(3, 1, 3, 1) of f32"),
        ),
        (
            *("fbgemm_fp8", {".weight_scale": np.ones((1, 34), np.float32)}),
            not_fit(".weight", "(34, 35)", "f8_e4m3fn(tile=tensor)", f"(1,) of {FP8_SCALES}", "(1, 34) of f32"),
        ),
        (
            *("mxfp8, e8m0", {".weight_scale": lambda scale: np.repeat(scale, 2, 1)[:, :3]}),
            not_fit(".weight", "(34, 35)", "f8_e4m3fn(tile=1x32)", f"(34, 2) of {FP8_SCALES}", "(34, 3) of e8m0"),
        ),
        (
            *("modelopt, NVFP4", {".weight_scale": as_type(np.float32)}),
            not_fit(".weight", "(34, 35)", "nvfp4", "(34, 3) of f8_e4m3fn", "(34, 3) of f32"),
        ),
        (
            *("modelopt, NVFP4", {".weight_scale_2": as_type(ml_dtypes.bfloat16)}),
            not_fit(".weight", "(34, 35)", "nvfp4", "(1,) of f32", "() of bf16", "global scale"),
        ),
        (
            *("mxfp4", {"_scales": lambda scale: scale[:, :1].copy()}),
            not_fit("_blocks", "(96, 64)", "mxfp4", "(96, 2) of e8m0, uint8", "(96, 1) of uint8"),
        ),
        (
            *("gptq", {".qzeros": as_type(np.int64)}),
            not_fit(
                *(".qweight", "(40, 48)", "int4(group=16, zero_points, scale=f16)"),
                *("(3, 5) of int32", "(3, 5) of int64", "zero point"),
            ),
        ),
        (
            *("awq", {".scales": lambda scale: scale.T.copy()}),
            not_fit(
                *(".qweight", "(40, 48)", "int4(group=16, zero_points, scale=f16)"),
                *("(3, 40) of f32, bf16, f16", "(40, 3) of f16"),
            ),
        ),
    ],
)
def test_parts_of_another_shape_or_type_are_refused(
    broken: Callable[..., Path], case: str, changes: Changes, text: str
) -> None:
    folder = broken(case, changes)
    assert problems(folder) == problems(folder, strict=False) == [text]


@pytest.mark.parametrize(
    ("case", "end", "tensor"),
    [
        ("fp8", "weight_scale", np.ones((3, 2), np.float32)),
        ("fp8, odd blocks, bf16", "qscale_weight", np.ones((), np.float32)),
        ("modelopt, NVFP4", "pre_quant_scale", np.ones(35, np.float32)),
        ("compressed, g_idx in order", "weight_zero_point", np.zeros((5, 5), np.int32)),
    ],
)
def test_what_else_stands_beside_codes_is_refused(
    broken: Callable[..., Path], case: str, end: str, tensor: np.ndarray
) -> None:
    """A second scale of another name, a factor of the inputs: without them the values may be others."""
    folder = broken(case, {f".{end}": tensor})
    assert (
        problems(folder)
        == problems(folder, strict=False)
        == [
            f"tensor {UP}.{end}: is unexpected: no parameter reads it (found {type_name(tensor.dtype)}"
            f"{list(tensor.shape)}). {OR_LEAVE}"
        ]
    )


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_scale", f"{UP}.input_scale"])
def test_scales_of_activations_without_a_quantized_weight_are_unexpected(
    broken: Callable[..., Path], name: str
) -> None:
    wide = {".weight": as_type(np.float32), ".weight_scale_inv": None}
    assert problems(broken("fp8", {**wide, name: np.ones((), np.float32)})) == [
        f"tensor {name}: is unexpected: no parameter reads it (found f32[]). {OR_LEAVE}"
    ]


# --- Values that are none


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0, np.inf])
@pytest.mark.parametrize(
    ("case", "end"),
    [("fp8", ".weight_scale_inv"), ("fp8, AutoFP8", ".weight_scale"), ("modelopt, channels", ".weight_scale")],
)
def test_scales_that_are_no_positive_numbers_are_refused(
    broken: Callable[..., Path], case: str, end: str, value: float
) -> None:
    """At their place in the grid, whatever shape they have in the file."""
    change = (lambda scale: np.where(np.arange(34) == 1, np.float32(value), scale)) if "channels" in case else None
    folder = broken(case, {end: change or with_value(value)})
    place = {"fp8": [1, 1], "fp8, AutoFP8": [0, 0], "modelopt, channels": [1, 0]}[case]
    assert_bad_scale(folder, end, value, place)


@pytest.mark.parametrize(
    ("case", "end", "value", "found"),
    [
        ("mxfp8, bytes", ".weight_scale_inv", 255, np.nan),
        ("fp8, bytes of e8m0", ".weight_scale_inv", 255, np.nan),
        ("mxfp4", "_scales", 255, np.nan),
        ("modelopt, NVFP4", ".weight_scale", np.nan, np.nan),
        ("modelopt, NVFP4", ".weight_scale", -2, -2),
        ("modelopt, NVFP4", ".weight_scale_2", np.nan, np.nan),
        ("modelopt, NVFP4", ".weight_scale_2", -1, -1),
        ("gptq", ".scales", np.nan, np.nan),
        ("awq", ".scales", 0, 0),
    ],
)
def test_scales_of_other_types_that_are_no_positive_numbers_are_refused(
    broken: Callable[..., Path], case: str, end: str, value: float, found: float
) -> None:
    place = [0] if end.endswith("2") else [1, 1]
    assert_bad_scale(broken(case, {end: with_value(value)}), end, found, place)


def assert_bad_scale(folder: Path, end: str, value: float, place: list[int]) -> None:
    for preserve in (True, False):
        with pytest.raises(bombus.CheckpointError) as caught:
            bombus.load_model(folder, preserve_source_types=preserve)
        assert str(caught.value) == (
            f"{folder}/model.safetensors: tensor {UP}{end}: has 1 scales that are not positive numbers (expected "
            f"positive finite scales, found {float(value)} at {place}). Download the checkpoint again"
        )

"""Quantized tensors that do not fit or hold no numbers, and weights that cannot be quantized: exact texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy_decoder import read_tensors
from quantized_files import SIZES, Tensors, compressed, own, packed_fp4, packed_integers, quantized, unpacked, write

import bombus

UP = "model.layers.0.mlp.up_proj"
PATH = "decoder.blocks.0.ffn.intermediate.kernel"
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}


@pytest.fixture(scope="module")
def base(tiny: Callable[..., Path]) -> Path:
    return tiny("qwen3", "f32", **SIZES)


def int4(values: np.ndarray) -> Tensors:
    return packed_integers(values, 4, group=5, zero_points=True)


def fp8(values: np.ndarray) -> Tensors:
    return unpacked(values, "f8_e4m3fn", tile=(1, 0), scale="bf16")


def nvfp4(values: np.ndarray) -> Tensors:
    return packed_fp4(values, "nvfp4")


SECTIONS = {
    int4: compressed(INT4 | {"group_size": 5, "symmetric": False}, "pack-quantized", targets=[UP]),
    fp8: compressed({"num_bits": 8, "type": "float", "strategy": "channel"}, "float-quantized", targets=[UP]),
    nvfp4: compressed(
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        *("nvfp4-pack-quantized",),
        targets=[UP],
    ),
}


def changed(
    make: Callable[[np.ndarray], Tensors], changes: Tensors | dict[str, None], base: Path, folder: Path
) -> Path:
    """A checkpoint in which one weight is quantized, with some of its tensors replaced or, by None, left out."""

    def then(values: np.ndarray) -> Tensors:
        return {word: tensor for word, tensor in (make(values) | changes).items() if tensor is not None}

    return quantized(base, folder, SECTIONS[make], then, UP)


LOST = "Download the checkpoint again; without its scales the values are lost"
FIELD = "Check quantization_config in config.json"


@pytest.mark.parametrize(
    ("make", "changes", "text"),
    [
        (
            *(int4, {"weight_scale": None}),
            f"weight {UP}.weight_packed: is in int32 and has no scale (expected a tensor {UP}.weight_scale). {LOST}",
        ),
        (
            *(int4, {"weight_zero_point": None}),
            f"weight {UP}.weight_packed: is in int32 and has no zero point (expected a tensor {UP}.weight_zero_point). "
            f"{LOST}",
        ),
        (
            *(nvfp4, {"weight_global_scale": None}),
            f"weight {UP}.weight_packed: is in uint8 and has no global scale (expected a tensor "
            f"{UP}.weight_global_scale). {LOST}",
        ),
        (
            *(int4, {"weight_scale": np.ones((34, 6), np.float32)}),
            f"weight {UP}.weight_packed: has scales that do not fit its shape (34, 35) in int4(group=5, zero_points) "
            f"(expected (34, 7) of f32, bf16, f16, found (34, 6) of f32). {FIELD}",
        ),
        (
            *(int4, {"weight_scale": np.ones((34, 7), np.int8)}),
            f"weight {UP}.weight_packed: has scales that do not fit its shape (34, 35) in int4(group=5, zero_points) "
            f"(expected (34, 7) of f32, bf16, f16, found (34, 7) of int8). {FIELD}",
        ),
        (
            *(int4, {"weight_zero_point": np.zeros((34, 7), np.int8)}),
            f"weight {UP}.weight_packed: has zero points that do not fit its shape (34, 35) in int4(group=5, "
            f"zero_points) (expected (5, 7) of int32, found (34, 7) of int8). {FIELD}",
        ),
        (
            *(int4, {"weight_packed": np.zeros((34, 4), np.int32)}),
            f"tensor {UP}.weight_packed: does not fit parameter {PATH} (34, 35) in int4(group=5, zero_points) "
            "(expected shape (34, 5), found (34, 4)). Check that config.json belongs to these weights",
        ),
        (
            *(fp8, {"weight_scale": np.ones((1, 34), np.float32)}),
            f"weight {UP}.weight: has scales that do not fit its shape (34, 35) in f8_e4m3fn(tile=channel) "
            f"(expected (34, 1) of f32, bf16, f16, e8m0, uint8, found (1, 34) of f32). {FIELD}",
        ),
        (
            *(nvfp4, {"weight_scale": np.ones((34, 3), np.float32)}),
            f"weight {UP}.weight_packed: has scales that do not fit its shape (34, 35) in nvfp4 (expected (34, 3) of "
            f"f8_e4m3fn, found (34, 3) of f32). {FIELD}",
        ),
        (
            *(nvfp4, {"weight_global_scale": np.ones((2,), np.float32)}),
            f"weight {UP}.weight_packed: has global scales that do not fit its shape (34, 35) in nvfp4 (expected (1,) "
            f"of f32, found (2,) of f32). {FIELD}",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_one_problem(
    make: Callable, changes: dict, text: str, base: Path, tmp_path: Path
) -> None:
    """Found before anything is read, and never replaced by random values."""
    folder = changed(make, changes, base, tmp_path)
    for strict in (True, False) if not text.startswith("tensor") else (True,):
        with pytest.raises(bombus.PlanError) as caught:
            bombus.load_model(folder, strict=strict)
        assert [str(problem) for problem in caught.value.problems] == [text]


def test_a_tensor_that_a_layout_does_not_have_is_unexpected(base: Path, tmp_path: Path) -> None:
    """It may change every value."""
    folder = changed(int4, {"weight_order": np.zeros(35, np.int32)}, base, tmp_path)
    with pytest.raises(bombus.PlanError) as caught:
        bombus.load_plan(folder)
    assert [str(problem) for problem in caught.value.problems] == [
        f"tensor {UP}.weight_order: is unexpected: no parameter reads it (found int32[35]). Check the architecture in "
        "config.json, or pass strict=False to leave it out"
    ]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize(("make", "word"), [(int4, "weight_scale"), (nvfp4, "weight_global_scale")])
@pytest.mark.parametrize("preserve", [True, False])
def test_scales_that_are_no_positive_numbers_are_refused(
    make: Callable, word: str, value: float, preserve: bool, base: Path, tmp_path: Path
) -> None:
    scale = make(read_tensors(base)[f"{UP}.weight"])[word]
    place = (3, 2)[: scale.ndim] if scale.size > 1 else (0,)
    scale[place] = value
    folder = changed(make, {word: scale}, base, tmp_path)
    with pytest.raises(bombus.CheckpointError) as caught:
        bombus.load_model(folder, preserve_source_types=preserve)
    assert str(caught.value) == (
        f"{folder}/model.safetensors: tensor {UP}.{word}: has 1 scales that are not positive numbers (expected "
        f"positive finite scales, found {value} at {list(place)}). Download the checkpoint again"
    )


def test_an_e8m0_scale_that_is_nan_is_refused(base: Path, tmp_path: Path) -> None:
    tensors = own(read_tensors(base)[f"{UP}.weight"], "bfp8")
    scale = tensors["weight_scale_inv"].view(np.uint8).copy()
    scale[1, 1] = 255
    section = {"quant_method": "bombus", "version": 1, "formats": {UP: "bfp8"}}
    broken = tensors | {"weight_scale_inv": scale.view(ml_dtypes.float8_e8m0fnu)}
    folder = quantized(base, tmp_path, section, lambda _: broken, UP)
    with pytest.raises(bombus.CheckpointError, match=r"weight_scale_inv: has 1 scales that are not positive numbers"):
        bombus.load_model(folder, preserve_source_types=True)


FORMATS = [
    *("f8_e4m3fn", "f8_e4m3fn(tile=channel, scale=bf16)", "f8_e4m3fn(scale=e8m0)", "f8_e5m2", "int8", "int8(group=8)"),
    *("int4", "int4(zero_points)", "bfp8", "bfp8(axis=out)", "bfp4(scale_rule=search)"),
    *("mxfp8", "mxfp8(element=f8_e5m2)", "mxfp8(scale_rule=ceil)", "mxfp4", "mxfp4(scale_rule=even)", "nvfp4"),
]


@pytest.mark.parametrize("format", FORMATS)
def test_values_that_are_not_finite_are_not_quantized(format: str, base: Path, tmp_path: Path) -> None:
    """Neither NaN nor an infinity, in any format: they would spoil their tile without a word."""
    for value in (np.nan, np.inf, -np.inf):
        tensors = {name: tensor.copy() for name, tensor in read_tensors(base).items()}
        tensors[f"{UP}.weight"][30, 33] = value
        folder = write(base, tmp_path, None, tensors)
        with pytest.raises(bombus.CheckpointError) as caught:
            bombus.load_model(folder, policy={PATH: format})
        stored = bombus.find_format(format).canonical
        assert str(caught.value).startswith(
            f"{folder}/model.safetensors: tensor {UP}.weight: cannot be stored as {stored}: it has values that are not "
            "finite"
        )


def test_a_scale_that_its_type_cannot_hold_is_refused(base: Path, tmp_path: Path) -> None:
    """Values to 1e7 in int8 need scales of 8e4, and float16 ends at 65504."""
    tensors = {name: tensor.copy() for name, tensor in read_tensors(base).items()}
    tensors[f"{UP}.weight"][5, 5] = 1e7
    folder = write(base, tmp_path, None, tensors)
    assert bombus.load_model(folder, policy={PATH: "int8"}).report.nbytes > 0
    with pytest.raises(bombus.CheckpointError) as caught:
        bombus.load_model(folder, policy={PATH: "int8(scale=f16)"})
    assert str(caught.value) == (
        f"{folder}/model.safetensors: tensor {UP}.weight: cannot be stored as int8(scale=f16): it has values that are "
        "not finite, or too large or too small for its scales. Load it as f32 to see them, or give this parameter "
        "another format"
    )

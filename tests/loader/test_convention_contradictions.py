"""A quantization_config that says other than the tensors, or nothing where it has to: exact texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convention_cases import CASES, INT, SIZES, compressed, gptq, hugging_face, modelopt
from conventions import UP, Changes, write_changed

import bombus
from bombus.models.model import flat

PATH = "decoder.blocks.0.ffn.intermediate.kernel"
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
FIELD = "Check quantization_config in config.json"
BELONGS = "Check that config.json belongs to these weights"
AWQ = CASES["awq"].section
SAME: dict[str, Any] = {"as": "the case says"}
Broken = Callable[..., Path]


@pytest.fixture
def broken(tiny: Callable[..., Path], tmp_path: Path) -> Broken:
    """`broken(case, section, changes)`: one weight in the convention of a case, with another configuration."""

    def make(case: str, section: Any = SAME, changes: Changes | None = None) -> Path:
        convention = CASES[case] if section is SAME else replace(CASES[case], section=section)
        base = tiny("qwen3", "f32", num_blocks=1, vocab_size=34, **SIZES[convention.base])
        return write_changed(convention, changes or {}, base, tmp_path)

    return make


def problems(folder: Path, *, strict: bool = True) -> list[str]:
    """The problems of a load that fails with one PlanError."""
    with pytest.raises(bombus.PlanError) as caught:
        bombus.load_model(folder, preserve_source_types=True, strict=strict)
    return [str(problem) for problem in caught.value.problems]


def otherwise(word: str, says: str, found: str) -> str:
    return (
        f"weight {UP}{word}: is not stored as quantization_config in config.json says (expected {says}, "
        f"found {found}). {BELONGS}"
    )


FP8_FOUND = "f8_e4m3fn, as in f8_e4m3fn or mxfp8"
ANY_FP8 = "one of f8_e4m3fn, f8_e5m2"


@pytest.mark.parametrize(
    ("case", "section", "text"),
    [
        (
            "compressed, static",
            compressed([(["Linear"], INT)], "pack-quantized"),
            otherwise(".weight", "int4", FP8_FOUND),
        ),
        (
            *("compressed, static", compressed([(["Linear"], FP4)], "nvfp4-pack-quantized")),
            otherwise(".weight", "nvfp4", FP8_FOUND),
        ),
        (
            *("compressed, actorder", CASES["compressed, static"].section),
            otherwise(".weight_packed", "f8_e4m3fn", "int32, as in int4 or int8"),
        ),
        (
            *("compressed, actorder", hugging_face([128, 128])),
            otherwise(".weight_packed", f"{ANY_FP8}, mxfp8", "int32, as in int4 or int8"),
        ),
        ("modelopt, FP8", modelopt("NVFP4"), otherwise(".weight", "one of nvfp4", FP8_FOUND)),
        ("modelopt, FP8", modelopt("mxfp8"), otherwise(".weight", "one of mxfp8", FP8_FOUND)),
        ("modelopt, NVFP4", modelopt("FP8"), otherwise(".weight", ANY_FP8, "uint8, as in nvfp4")),
        ("modelopt, MXFP8", modelopt("FP8"), otherwise(".weight", ANY_FP8, "f8_e4m3fn, as in mxfp8")),
        ("modelopt, NVFP4", hugging_face([128, 128]), otherwise(".weight", f"{ANY_FP8}, mxfp8", "uint8, as in nvfp4")),
        ("fp8", {"quant_method": "mxfp4"}, otherwise(".weight", "one of mxfp4", FP8_FOUND)),
        ("mxfp4", hugging_face([128, 128]), otherwise("_blocks", f"{ANY_FP8}, mxfp8", "uint8, as in mxfp4")),
        ("fp8", gptq(4, 16), otherwise(".weight", "one of int4", FP8_FOUND)),
        ("modelopt, NVFP4", AWQ, otherwise(".weight", "one of int4", "uint8, as in nvfp4")),
    ],
)
def test_tensors_that_are_not_what_the_configuration_says_are_refused(
    broken: Broken, case: str, section: dict[str, Any], text: str
) -> None:
    folder = broken(case, section)
    assert problems(folder) == problems(folder, strict=False) == [text]


def scales_not_fit(word: str, shape: str, format: str, expected: str, found: str) -> str:
    return (
        f"weight {UP}{word}: has scales that do not fit its shape {shape} in {format} (expected {expected}, found "
        f"{found}). {FIELD}"
    )


FP8_SCALES = "f32, bf16, f16, e8m0, uint8"


@pytest.mark.parametrize(
    ("case", "section", "text"),
    [
        (
            *("compressed, static", CASES["compressed, cache"].section),
            scales_not_fit(
                *(".weight", "(34, 35)", "f8_e4m3fn(tile=channel)", f"(34, 1) of {FP8_SCALES}", "(1,) of bf16")
            ),
        ),
        (
            *("fp8", hugging_face([64, 128])),
            scales_not_fit(".weight", "(320, 192)", "tiles of (64, 128)", f"(5, 2) of {FP8_SCALES}", "(3, 2) of f32"),
        ),
        (
            *("fp8", hugging_face(None)),
            scales_not_fit(
                *(".weight", "(320, 192)", "f8_e4m3fn(tile=tensor)", f"(1, 1) of {FP8_SCALES}", "(3, 2) of f32")
            ),
        ),
        (
            *("fp8", {"quant_method": "fbgemm_fp8"}),
            scales_not_fit(
                *(".weight", "(320, 192)", "f8_e4m3fn(tile=tensor)", f"(1, 1) of {FP8_SCALES}", "(3, 2) of f32")
            ),
        ),
        (
            *("gptq", gptq(4, 8)),
            scales_not_fit(
                *(".qweight", "(40, 48)", "int4(group=8, zero_points, scale=f16)"),
                *("(6, 40) of f32, bf16, f16", "(3, 40) of f16"),
            ),
        ),
    ],
)
def test_scales_for_other_tiles_than_the_configuration_says_are_refused(
    broken: Broken, case: str, section: dict[str, Any], text: str
) -> None:
    folder = broken(case, section)
    assert problems(folder) == problems(folder, strict=False) == [text]


@pytest.mark.parametrize(
    ("case", "section", "expected", "found"),
    [
        ("gptq, 8 bits", gptq(4, 16), (6, 40), (12, 40)),
        ("awq", gptq(4, 16), (6, 40), (48, 5)),
        ("gptq", AWQ, (48, 5), (6, 40)),
    ],
)
def test_words_of_another_layout_than_the_configuration_says_are_refused(
    broken: Broken, case: str, section: dict[str, Any], expected: tuple[int, int], found: tuple[int, int]
) -> None:
    assert problems(broken(case, section)) == [
        f"tensor {UP}.qweight: does not fit parameter {PATH} (40, 48) in int4(group=16, zero_points, scale=f16) "
        f"(expected shape {expected}, found {found}). {BELONGS}"
    ]


@pytest.mark.parametrize("section", [None, hugging_face([128, 128])])
@pytest.mark.parametrize("case", ["gptq", "gptq, 8 bits", "awq"])
def test_qweights_that_no_configuration_explains_are_refused(broken: Broken, case: str, section: Any) -> None:
    """GPTQ's and AWQ's look alike, and so do two versions of zero points."""
    folder = broken(case, section)
    assert problems(folder) == problems(folder, strict=False) == [unexplained(".qweight")]


def unexplained(word: str) -> str:
    return (
        f"weight {UP}{word}: is in low precision, and nothing says how (expected a quantization_config in config.json "
        "that is about this layer). Download config.json again"
    )


def test_packed_weights_without_a_configuration(broken: Broken) -> None:
    """Groups that divide the inputs show themselves; others do not."""
    folder = broken("compressed, actorder", None)
    loaded = bombus.load_model(folder, preserve_source_types=True)
    assert str(loaded.model.formats[PATH]) == "int4(group=5, zero_points, scale=f32)"
    scale = np.ones((34, 4), np.float32)
    folder = broken("compressed, actorder", None, {".weight_scale": scale})
    assert problems(folder) == problems(folder, strict=False) == [unexplained(".weight_packed")]


@pytest.mark.parametrize("case", ["gptq", "awq", "fp8", "modelopt, NVFP4", "compressed, static", "mxfp4"])
def test_a_configuration_of_weights_that_are_all_wide_does_nothing(broken: Broken, case: str) -> None:
    """As after a dequantization that left it behind: values are values."""
    shape = {"tiles": (320, 192), "odd": (34, 35), "eights": (40, 48), "blocks": (96, 64)}[CASES[case].base]
    values = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    made = CASES[case].maker(UP)
    assert made is not None
    ends = made.make(values, np.random.default_rng(7)).tensors
    changes = {**dict.fromkeys((*ends, *CASES[case].beside)), ".weight": values}
    loaded = bombus.load_model(broken(case, SAME, changes))
    assert str(loaded.model.formats[PATH]) == "f32"
    assert np.array_equal(np.asarray(flat(loaded.params)[PATH]), values)


# --- Tensors that repeat what is known, and say something else


@pytest.mark.parametrize(
    ("case", "end", "change", "expected"),
    [
        *(
            (case, end, change, f"groups of {group} inputs in their order (desc_act is not supported)")
            for case, end, group in (
                ("gptq", ".g_idx", 16),
                ("gptq, 8 bits", ".g_idx", 16),
                ("gptq, symmetric", ".g_idx", 48),
                ("compressed, g_idx in order", ".weight_g_idx", 7),
            )
            for change in (lambda g_idx: np.roll(g_idx, 1) + 1, lambda g_idx: g_idx[:-1].copy())
        ),
        (
            *("compressed, g_idx in order", ".weight_g_idx", lambda g_idx: np.where(g_idx == 2, -1, g_idx)),
            "groups of 7 inputs in their order (desc_act is not supported)",
        ),
        ("gptq, 8 bits", ".qzeros", lambda zeros: zeros + 1, "zero points of 128, which int8 has"),
        ("gptq_v2, 8 bits", ".qzeros", lambda zeros: zeros - 256, "zero points of 128, which int8 has"),
        ("compressed, mixed", ".weight_shape", lambda shape: shape[::-1].copy(), "the shape of the weight, [96, 64]"),
        ("compressed, mixed", ".weight_shape", lambda shape: shape - 1, "the shape of the weight, [96, 64]"),
    ],
)
def test_tensors_that_contradict_what_is_known_are_refused(
    broken: Broken, case: str, end: str, change: Callable[[np.ndarray], np.ndarray], expected: str
) -> None:
    folder = broken(case, SAME, {end: change})
    for preserve in (True, False):
        with pytest.raises(bombus.CheckpointError) as caught:
            bombus.load_model(folder, preserve_source_types=preserve)
        assert str(caught.value) == (
            f"{folder}/model.safetensors: tensor {UP}{end}: does not say what its weight is stored as (expected "
            f"{expected}). {FIELD}, or download the checkpoint again"
        )


@pytest.mark.parametrize(
    ("case", "section", "end", "dtype", "format", "expected"),
    [
        ("compressed, mixed", SAME, ".weight_packed", np.int64, "int4(group=32)", "int32"),
        ("compressed, mixed", None, ".weight_packed", np.float32, "int4(group=32)", "int32"),
        ("mxfp4", SAME, "_blocks", np.int8, "mxfp4", "uint8"),
        ("awq", SAME, ".qweight", np.int64, "int4(group=16, zero_points, scale=f16)", "int32"),
    ],
)
def test_codes_of_another_type_are_refused(
    broken: Broken, case: str, section: Any, end: str, dtype: Any, format: str, expected: str
) -> None:
    """Whose bytes would be read as if they were codes."""
    folder = broken(case, section, {end: lambda codes: codes.astype(dtype)})
    shown = "f32" if dtype is np.float32 else np.dtype(dtype).name
    text = f"is not in the type that codes of {format} have (expected {expected}, found {shown})"
    assert problems(folder) == problems(folder, strict=False) == [f"weight {UP}{end}: {text}. {FIELD}"]

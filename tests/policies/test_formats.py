"""Formats: which of them agree, and what a weight is stored as in each."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bombus.policies.errors import PolicyError
from bombus.policies.formats import FORMATS, Format, find_format, find_type, fp8_in_tiles, is_low_precision, type_name

F32, BF16, F16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
E4M3, E5M2 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
INT8, UINT8 = np.dtype(np.int8), np.dtype(np.uint8)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("int4(group=128, zero_points=false, scale=bf16)", "int4"),
        ("int8(group=channel, scale=f32)", "int8"),
        ("f8_e4m3fn(tile=128x128, scale=bf16)", "f8_e4m3fn(scale=bf16)"),
        ("bfp4(axis=in, scale_rule=search)", "bfp4"),
        ("bfp8(axis=out, scale_rule=max)", "bfp8(axis=out)"),
        ("mxfp8(element=f8_e4m3fn, scale_rule=ceil)", "mxfp8"),
        ("mxfp8(element=f8_e5m2, scale_rule=even)", "mxfp8(element=f8_e5m2)"),
        ("bf16", "bf16"),
    ],
)
def test_canonical_leaves_what_the_bits_mean(written: str, canonical: str) -> None:
    """Neither defaults nor how values were rounded."""
    assert str(find_format(written).canonical) == canonical
    assert find_format(written).canonical == find_format(canonical)


@pytest.mark.parametrize(
    ("wanted", "found", "accepts"),
    [
        ("int4", "int4(group=32, zero_points)", True),
        ("int4(group=128)", "int4", True),
        ("int4(group=64)", "int4", False),
        ("int4(group=64)", "int4(group=64, scale=f16)", True),
        ("int4(group=64, scale=bf16)", "int4(group=64, scale=f16)", False),
        ("int4(zero_points=false)", "int4(zero_points)", False),
        ("bfp8(scale_rule=search)", "bfp8", True),
        ("bfp8(axis=out)", "bfp8", False),
        ("mxfp8", "mxfp8(element=f8_e5m2)", True),
        ("mxfp8", "mxfp4", False),
        ("f8_e4m3fn", "f8_e5m2", False),
        ("bf16", "bf16", True),
    ],
)
def test_a_format_accepts_a_weight_as_far_as_options_were_given(wanted: str, found: str, accepts: bool) -> None:
    """How values are rounded is no property of the stored weight."""
    assert find_format(wanted).accepts(find_format(found)) is accepts


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("int4", "int4(scale=f32)", True),
        ("int4(group=128)", "int4(scale=f16)", True),
        ("int4(group=64)", "int4", False),
        ("int4(zero_points)", "int4", False),
        ("f8_e4m3fn", "f8_e4m3fn(scale=bf16)", True),
        ("f8_e4m3fn(scale=e8m0)", "f8_e4m3fn(scale=e8m0)", True),
        ("f8_e4m3fn", "f8_e4m3fn(tile=channel)", False),
        ("f8_e4m3fn", "f8_e5m2", False),
        ("mxfp4(scale_rule=ceil)", "mxfp4", True),
        ("bfp8", "bfp8(axis=out)", False),
        ("bf16", "bf16", False),
    ],
)
def test_same_codes(one: str, other: str, same: bool) -> None:
    """Whether codes may stay when a weight changes from one format to the other, whichever is the first."""
    assert find_format(one).same_codes(find_format(other)) is same
    assert find_format(other).same_codes(find_format(one)) is same


def test_scales_become_powers_of_two_only_with_new_codes() -> None:
    """A cast of them would change values by up to 41 %; the other way it changes nothing."""
    powers, plain = find_format("f8_e4m3fn(scale=e8m0)"), find_format("f8_e4m3fn")
    assert powers.same_codes(plain)
    assert not plain.same_codes(powers)


def test_with_scale() -> None:
    """Another type of scales beside the options that were given; refused where there is no choice."""
    assert str(find_format("int4(group=64)").with_scale(F32)) == "int4(group=64, scale=f32)"
    assert str(find_format("f8_e4m3fn(tile=channel, scale=bf16)").with_scale(E8M0)) == (
        "f8_e4m3fn(tile=channel, scale=e8m0)"
    )
    with pytest.raises(PolicyError) as caught:
        find_format("mxfp8").with_scale(F32)
    assert str(caught.value) == "format 'mxfp8': has no option 'scale'. Its options are element, scale_rule"
    with pytest.raises(PolicyError) as caught:
        find_format("int4").with_scale(E8M0)
    assert str(caught.value) == "format 'int4', option 'scale=e8m0': is not known (expected f32, bf16, f16)"


# What a weight (130, 201) is stored as: codes, tile, scales, bytes in all, bits of one weight of 4096 x 4096.
STORED = {
    "f32": ((130, 201), F32, None, 104520, 32),
    "bf16": ((130, 201), BF16, None, 52260, 16),
    "f16": ((130, 201), F16, None, 52260, 16),
    "f8_e4m3fn": ((130, 201), E4M3, ((128, 128), (2, 2), F32), 26130 + 16, 8.001953125),
    "f8_e4m3fn(tile=64x96)": ((130, 201), E4M3, ((64, 96), (3, 3), F32), 26130 + 36, 8 + 32 * 64 * 43 / 2**24),
    "f8_e4m3fn(tile=channel, scale=bf16)": ((130, 201), E4M3, ((1, 0), (130, 1), BF16), 26130 + 260, 8.00390625),
    "f8_e5m2(tile=tensor)": ((130, 201), E5M2, ((0, 0), (1, 1), F32), 26134, 8 + 2**-19),
    "f8_e5m2(scale=e8m0)": ((130, 201), E5M2, ((128, 128), (2, 2), E8M0), 26134, 8.00048828125),
    "int8": ((130, 201), INT8, ((1, 0), (130, 1), F32), 26130 + 520, 8.0078125),
    "int8(group=32)": ((130, 201), INT8, ((1, 32), (130, 7), F32), 26130 + 3640, 9),
    "int8(group=32, scale=f16)": ((130, 201), INT8, ((1, 32), (130, 7), F16), 26130 + 1820, 8.5),
    "int4": ((130, 101), UINT8, ((1, 128), (130, 2), BF16), 13130 + 520, 4.125),
    "int4(group=32)": ((130, 101), UINT8, ((1, 32), (130, 7), BF16), 13130 + 1820, 4.5),
    "int4(group=channel, scale=f32)": ((130, 101), UINT8, ((1, 0), (130, 1), F32), 13130 + 520, 4.0078125),
    "int4(group=64, zero_points)": ((130, 101), UINT8, ((1, 64), (130, 4), BF16), 13130 + 1040 + 520, 4.375),
    "bfp8": ((130, 201), INT8, ((1, 16), (130, 13), E8M0), 26130 + 1690, 8.5),
    "bfp8(axis=out)": ((130, 201), INT8, ((16, 1), (9, 201), E8M0), 26130 + 1809, 8.5),
    "bfp4": ((130, 101), UINT8, ((1, 16), (130, 13), E8M0), 13130 + 1690, 4.5),
    "mxfp8": ((130, 201), E4M3, ((1, 32), (130, 7), E8M0), 26130 + 910, 8.25),
    "mxfp8(element=f8_e5m2)": ((130, 201), E5M2, ((1, 32), (130, 7), E8M0), 26130 + 910, 8.25),
    "mxfp4": ((130, 101), UINT8, ((1, 32), (130, 7), E8M0), 13130 + 910, 4.25),
    "nvfp4": ((130, 101), UINT8, ((1, 16), (130, 13), E4M3), 13130 + 1690 + 4, 4.5 + 2**-19),
}


@pytest.mark.parametrize("written", STORED)
def test_what_a_weight_is_stored_as(written: str) -> None:
    """Codes, tile, grid of partial tiles, types of scales and exact sizes."""
    codes, dtype, scales, nbytes, bits = STORED[written]
    found = find_format(written)
    assert (found.codes_shape((130, 201)), found.dtype) == (codes, dtype)
    if scales is not None:
        assert (found.tile, found.grid((130, 201)), found.scale_type) == scales
    assert found.nbytes((130, 201)) == nbytes
    assert found.bits_per_weight() == bits


def test_parts() -> None:
    """The arrays beside the codes, by name: none, scales, zero points, and the scale of the tensor."""
    shape = (130, 201)
    assert find_format("bf16").parts(shape) == {}
    assert find_format("int4(group=64)").parts(shape) == {"scale_inv": ((130, 4), BF16)}
    assert find_format("int4(group=64, zero_points, scale=f32)").parts(shape) == {
        "scale_inv": ((130, 4), F32),
        "zero_point": ((130, 4), UINT8),
    }
    assert find_format("nvfp4").parts(shape) == {"scale_inv": ((130, 13), E4M3), "global_scale": ((1,), F32)}


@pytest.mark.parametrize("written", [*STORED, "f8_e4m3fn(tile=tensor)", "int4(group=64, zero_points)"])
def test_what_a_stack_of_experts_is_stored_as(written: str) -> None:
    """What each expert is by itself, with the axis of experts in front of every array."""
    found, one = find_format(written), (130, 201)
    assert found.grid((6, *one)) == (6, *found.grid(one))
    assert found.codes_shape((6, *one)) == (6, *found.codes_shape(one))
    assert found.parts((6, *one)) == {name: ((6, *shape), dtype) for name, (shape, dtype) in found.parts(one).items()}
    assert found.nbytes((6, *one)) == 6 * found.nbytes(one)


@pytest.mark.parametrize("name", FORMATS)
def test_one_weight_has_one_scale(name: str) -> None:
    """A tile is never larger than the weight, and no grid is empty."""
    found = find_format(name)
    assert found.grid((1, 1)) == (1, 1)
    assert found.codes_shape((1, 1)) == (1, 1)
    extra = {"f32": 0, "bf16": 0, "f16": 0, "f8_e4m3fn": 4, "f8_e5m2": 4, "int8": 4, "int4": 2, "nvfp4": 5}
    assert found.nbytes((1, 1)) == found.dtype.itemsize + extra.get(name, 1)


def test_fp8_in_tiles() -> None:
    """Outputs come first."""
    assert fp8_in_tiles((64, 96)) == find_format("f8_e4m3fn(tile=64x96)")


def test_find_type() -> None:
    """Arithmetic is done in the three plain types."""
    assert [find_type(name) for name in ("f32", "bf16", jnp.float16)] == [F32, BF16, F16]
    with pytest.raises(PolicyError) as caught:
        find_type("int4(group=64)")
    assert str(caught.value) == (
        "type int4(group=64): is a storage format; nothing is computed in it (expected f32, bf16 or f16)"
    )


def test_type_names_and_low_precision_types() -> None:
    """Short names, NumPy's own for a type outside the registry, and which types must not be cast bare."""
    assert [type_name(dtype) for dtype in (np.float32, jnp.bfloat16, E4M3, E8M0, np.int8)] == [
        *("f32", "bf16", "f8_e4m3fn", "e8m0", "int8")
    ]
    assert type_name(np.int64) == "int64"
    assert [dtype for dtype in (F32, BF16, F16, E4M3, E5M2, INT8, UINT8) if is_low_precision(dtype)] == [
        *(E4M3, E5M2, INT8)
    ]


def test_a_format_cannot_be_changed() -> None:
    """Formats are keys: of compiled programs, and of decisions."""
    with pytest.raises(AttributeError):
        find_format("int4").name = "int8"
    assert {find_format("int4"): 1}[Format("int4")] == 1

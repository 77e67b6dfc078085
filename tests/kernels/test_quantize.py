"""Quantization to every storage format against the NumPy model of tests/support, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_formats as model
import pytest
from every_format import (
    CASES,
    F32,
    LARGE,
    SHAPES,
    as_bytes,
    cases_of,
    codes_of,
    example,
    in_every_format,
    model_options,
    parts_of,
    stored,
    stored_example,
)

from bombus.kernels import Weight, dequantize, quantize
from bombus.policies.formats import find_format

# float16 scales do not reach from 2^-40 to 2^40.
EXAMPLES = [("tiles", shape, case) for shape in SHAPES for case in cases_of(shape)] + [
    ("blocks", LARGE, case) for case in CASES if "=f16" not in case
]


def unlike(case: str, found: np.ndarray, expect: Callable[[float], np.ndarray]) -> list[list[int]]:
    """Where bits differ from what is expected. `expect` takes a factor for what is rounded.

    XLA divides by multiplying with a reciprocal, so what is next to a tie may go to either side, unless it divides
    by a power of two.
    """
    wrong = as_bytes(found) != as_bytes(expect(1))
    if find_format(case).scale_type != ml_dtypes.float8_e8m0fnu and wrong.any():
        assert wrong.mean() < 0.01
        wrong &= as_bytes(found) != as_bytes(expect(1 - 2**-22))
        wrong &= as_bytes(found) != as_bytes(expect(1 + 2**-22))
    return np.argwhere(wrong).tolist()


@pytest.mark.parametrize(("kind", "shape", "case"), EXAMPLES, ids=str)
def test_scales_are_the_models(kind: str, shape: tuple[int, int], case: str) -> None:
    """Bit for bit; float32 scales may be a step off, as XLA divides by a constant with two roundings."""
    values, found = example(kind, shape), parts_of(stored_example(kind, shape)[case][0])
    expect = functools.partial(model.make_parts, values, **model_options(case))
    expected = expect()
    assert {name: part.dtype for name, part in found.items()} == {name: part.dtype for name, part in expected.items()}
    for name, part in found.items():
        if part.dtype == np.float32:
            np.testing.assert_allclose(part, expected[name], rtol=2**-22)
        else:
            assert unlike(case, part, lambda nudge, name=name: expect(nudge=nudge)[name]) == []


@pytest.mark.parametrize(("kind", "shape", "case"), EXAMPLES, ids=str)
def test_codes_are_the_models(kind: str, shape: tuple[int, int], case: str) -> None:
    """Bit for bit, for the scales that were found."""
    weight, values = stored_example(kind, shape)[case][0], example(kind, shape)
    expect = functools.partial(model.make_codes, values, parts_of(weight), **model_options(case))
    assert unlike(case, codes_of(weight), lambda nudge: expect(nudge=nudge)) == []


@pytest.mark.parametrize(("shape", "case"), [(shape, case) for shape in SHAPES for case in cases_of(shape)], ids=str)
def test_a_weight_takes_the_bytes_that_its_format_says(shape: tuple[int, int], case: str) -> None:
    """Codes and parts have the declared shapes and types, and the format forgets how values were rounded."""
    weight, format = stored_example("tiles", shape)[case][0], find_format(case)
    assert (weight.codes.shape, weight.codes.dtype) == (format.codes_shape(shape), format.dtype)
    assert {name: (part.shape, part.dtype) for name, part in weight.parts.items()} == format.parts(shape)
    assert sum(part.nbytes for part in (weight.codes, *weight.parts.values())) == format.nbytes(shape)
    assert (weight.format, weight.shape) == (format.canonical, shape)


@functools.cache
def zeros() -> dict[str, tuple[Weight, np.ndarray]]:
    """Zeros of both signs in every format."""
    values = np.zeros(LARGE, np.float32)
    values[1::2] = -0.0
    return in_every_format(values)


@pytest.mark.parametrize("case", CASES)
def test_zeros_are_zeros(case: str) -> None:
    """A weight of zeros of both signs: finite scales above zero, and values that are zero."""
    weight, found = zeros()[case]
    np.testing.assert_array_equal(found, 0)
    scale = np.asarray(weight.scale_inv).astype(np.float64)
    assert ((scale > 0) & np.isfinite(scale)).all()
    if find_format(case).name in ("int8", "int4", "bfp8", "bfp4", "mxfp4", "nvfp4"):
        assert not np.signbit(found).any()


# Values -> what they are stored as, on grids whose scales are one (for nvfp4, 448 and one): ties go to the even code,
# what is too large saturates, and a tie between 0 and less than it is 0.
ROUNDED = {
    "f8_e4m3fn": ([448, 17, 19, -17, 2**-10, 3 * 2**-10, 0.3], [448, 16, 20, -16, 0, 2**-8, 0.3125]),
    "f8_e5m2": ([57344, 9, 11, -9, 2**-17, 3 * 2**-17], [57344, 8, 12, -8, 0, 2**-15]),
    "int8": ([127, 0.5, 1.5, 2.5, -0.5, -1.5, -127], [127, 0, 2, 2, 0, -2, -127]),
    "int4": ([7, 0.5, 1.5, 2.5, -0.5, -1.5, -7], [7, 0, 2, 2, 0, -2, -7]),
    "int4(group=64, zero_points)": ([-4, 0.5, 1.5, 2.5, 11, -0.5, 10.9], [-4, 0, 2, 2, 11, 0, 11]),
    "bfp4": ([1.99, 1.75, 0.125, 0.375, 0.625, -1.99, -0.125, 0.13], [1.75, 1.75, 0, 0.5, 0.5, -1.75, 0, 0.25]),
    "bfp8": ([1.9999, 127 / 64, 1 / 128, 3 / 128, -1.9999, -1 / 128], [127 / 64, 127 / 64, 0, 1 / 32, -127 / 64, 0]),
    # On the grid of 1 all of the eighths are ties that go to 0; on the grid of 1/2 only the 1 is cut off.
    "bfp4(scale_rule=search)": ([1] + [0.125] * 15, [0.875] + [0.125] * 15),
    "mxfp4": ([6, 5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25, -5, -0.25, 7.5], [6, 4, 4, 2, 2, 1, 1, 0, -4, 0, 6]),
    "mxfp4(scale_rule=even)": ([7.5, 0.5, 1.5], [8, 0, 2]),
    "mxfp4(scale_rule=ceil)": ([6.5, 0.5, 1.5], [6, 0, 2]),
    "mxfp8": ([480, 448, 17, 19, -17], [448, 448, 16, 20, -16]),
    "mxfp8(scale_rule=even)": ([496, 17], [512, 16]),
    "mxfp8(scale_rule=ceil)": ([449, 448, 17], [448, 448, 16]),
    "mxfp8(element=f8_e5m2)": ([60000, 9, 11], [57344, 8, 12]),
    "nvfp4": ([2688, 5 * 448, 2.5 * 448, 0.25 * 448, -0.25 * 448, 0.8 * 448], [2688, 1792, 896, 0, 0, 448]),
}


@functools.cache
def rounded() -> dict[str, tuple[Weight, jax.Array]]:
    """The values of ROUNDED in their formats, with nothing but zeros beside them."""
    values = {case: np.zeros(LARGE, np.float32) for case in CASES}
    for case, (row, _) in ROUNDED.items():
        values[case][0, : len(row)] = row
    return stored(values)


@pytest.mark.parametrize("case", ROUNDED)
def test_rounding(case: str) -> None:
    """By hand."""
    expected = np.zeros(LARGE)
    expected[0, : len(ROUNDED[case][1])] = ROUNDED[case][1]
    np.testing.assert_array_equal(rounded()[case][1], expected)


@pytest.mark.parametrize("case", ["bfp8", "bfp4"])
def test_block_floats_pack_like_tt_metal(case: str) -> None:
    """bf16 values: bit for bit. float32 ones are a step away where tt-metal forgets what makes a tie no tie."""
    shape, options = LARGE, model_options(case)
    wide = np.random.default_rng(8).standard_normal(shape).astype(np.float32)
    for values, most in ((example("tiles", shape), 0), (wide, 0.01)):
        found = codes_of(quantize(jnp.asarray(values), find_format(case))).astype(int) - (8 if case == "bfp4" else 0)
        scale = model.make_parts(values, **options)["scale_inv"]
        for place, tile in model.tiles(case, shape, {}):
            exponent = int(scale[place].view(np.uint8))
            np.testing.assert_array_equal(found[tile], model.bfp_integers(values[tile], case, exponent))
            other = model.bfp_integers(values[tile], case, exponent, drop_first=True)
            assert np.abs(found[tile] - other).max() <= (1 if most else 0)


def test_bf16_and_f16_weights_are_quantized_like_their_float32_values() -> None:
    """The type that a checkpoint has them in does not matter."""
    for dtype in (jnp.bfloat16, jnp.float16):
        values = jnp.asarray(example("tiles", (3, 5))).astype(dtype)
        expected = quantize(values.astype(F32), find_format("bfp8"))
        found = quantize(values, find_format("bfp8"))
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_array_equal(as_bytes(parts_of(found)["scale_inv"]), as_bytes(parts_of(expected)["scale_inv"]))


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_a_plain_format_is_a_cast(name: str) -> None:
    """No parts; values are rounded once."""
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    weight = quantize(jnp.asarray(values), find_format(name))
    assert weight.parts == {}
    np.testing.assert_array_equal(weight.codes, values.astype(find_format(name).dtype))
    np.testing.assert_array_equal(dequantize(weight, F32), values.astype(find_format(name).dtype).astype(np.float32))


# What cannot be stored


@functools.cache
def _spoiled(bad: float) -> dict[str, tuple[Weight, np.ndarray]]:
    values = example("tiles", LARGE).copy()
    values[129, 200] = bad
    return in_every_format(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", CASES)
def test_values_that_are_not_finite_show_in_the_scales(case: str, bad: float) -> None:
    """So that a loader that reads the scales finds them."""
    assert not np.isfinite(np.asarray(_spoiled(bad)[case][0].scale_inv).astype(np.float32)).all()


@functools.cache
def tiny_values() -> dict[str, tuple[Weight, np.ndarray]]:
    """2^-120 in every format."""
    return in_every_format(np.full(LARGE, 2.0**-120, np.float32))


@pytest.mark.parametrize("case", CASES)
def test_tiny_weights_stay_finite(case: str) -> None:
    """Rounded, if need be to zero, and with parts that a loader takes."""
    weight, found = tiny_values()[case]
    assert (np.abs(found - 2.0**-120) <= 2.0**-120).all()
    for part in parts_of(weight).values():
        assert np.isfinite(part.astype(np.float64)).all()

"""The C++ kernels, with each instruction set of this machine: every format, code and scale, against float64.

Weights of rows of odd lengths put rows at addresses of every kind; JAX's arrays themselves begin at aligned ones.
Buffers that begin anywhere, and what is read past them, are in tests/native/check_product.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_formats as model
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from native_weights import EVERY, KERNELS, REASON, SOME, assert_product, exact, rows_of, weight_of

from bombus.kernels import Weight, native, product
from bombus.policies.formats import find_format

pytestmark = pytest.mark.skipif(not KERNELS, reason=REASON)
F32, BF16, F16 = (jnp.dtype(name) for name in ("float32", "bfloat16", "float16"))
each_kernel = pytest.mark.parametrize("kernels", KERNELS)
# With at most eight rows weights are streamed, one row after the other; beyond that they are decoded in strips.
ROWS = (1, 2, 3, 4, 5, 7, 17)


@jax.jit
def _together(x: Any, weights: tuple[Weight, ...]) -> tuple[jax.Array, ...]:
    return native.multiply(x, weights)


@jax.jit
def _alone(x: Any, weights: tuple[Weight, ...]) -> tuple[jax.Array, ...]:
    return tuple(native.multiply(x, (weight,))[0] for weight in weights)


def multiply(x: np.ndarray, weights: Sequence[Weight], kernels: str, run: Any = _together) -> list[np.ndarray]:
    """x times each of the weights; the choice holds until all is computed."""
    with native.using_kernels(kernels):
        return [np.asarray(y) for y in jax.block_until_ready(run(x, tuple(weights)))]


@pytest.mark.parametrize("shape", [(129, 201), (30, 1101), (1031, 37)], ids=str)
def test_every_format(shape: tuple[int, int]) -> None:
    """With every option: partial tiles each way, rows of several strips, more outputs than a part has."""
    random = np.random.default_rng(shape)
    weights = [weight_of(format, shape, random) for format in EVERY]
    values = [exact(weight) for weight in weights]
    for rows, dtype in ((1, F32), (7, BF16), (17, F16)):
        x = rows_of(rows, shape[1], dtype, random)
        for kernels in KERNELS:
            for weight, expected, found in zip(weights, values, multiply(x, weights, kernels), strict=True):
                assert_product(found, x, expected, (kernels, weight.format, rows))


@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(1, 160), st.integers(1, 420)),
    rows=st.integers(1, 20),
    dtype=st.sampled_from([F32, BF16, F16]),
    formats=st.lists(st.sampled_from(EVERY), min_size=6, max_size=12),
    seed=st.integers(0, 2**32),
)
@example(shape=(1, 1), rows=1, dtype=F32, formats=EVERY, seed=1)
@example(shape=(3, 2), rows=3, dtype=F16, formats=EVERY[::3], seed=2)
@example(shape=(9, 65), rows=2, dtype=BF16, formats=EVERY[::5], seed=3)
@example(shape=(64, 128), rows=5, dtype=F32, formats=EVERY[::5], seed=4)
def test_random_shapes(shape: tuple[int, int], rows: int, dtype: Any, formats: list[Any], seed: int) -> None:
    """From one weight to several tiles, any number of rows, x in each type; formats beside each other in a call."""
    random = np.random.default_rng(seed)
    weights = [weight_of(format, shape, random) for format in formats]
    values = [exact(weight) for weight in weights]
    x = rows_of(rows, shape[1], dtype, random)
    for kernels in KERNELS:
        for weight, expected, found in zip(weights, values, multiply(x, weights, kernels), strict=True):
            assert_product(found, x, expected, (kernels, weight.format, shape, rows))


def test_the_model_is_the_one_of_the_formats() -> None:
    """`exact` is numpy_formats.decode, which goes tile by tile."""
    random = np.random.default_rng(5)
    for format in (format for format in EVERY if format.is_low and dict(format.options).get("scale") != "f16"):
        weight = weight_of(format, (19, 51), random)
        codes = np.asarray(weight.codes)
        codes = model.unpack(codes, 51) if format.packed else codes
        parts = {name: np.asarray(part) for name, part in weight.parts.items()}
        expected = model.decode(codes, parts, format.name, **dict(format.options))
        np.testing.assert_allclose(exact(weight), expected, rtol=1e-15, err_msg=str(format))


@each_kernel
@pytest.mark.parametrize("inputs", [300, 4200])
def test_few_rows_are_each_as_alone(kernels: str, inputs: int) -> None:
    """Bit for bit: some users get what each would alone, whose long rows are multiplied in one piece."""
    if kernels == "amx":
        pytest.skip("it takes several rows with other instructions")
    most = 4 if kernels == "avx512_bf16" else 8
    random = np.random.default_rng(8)
    weights = [weight_of(format, (37, inputs), random) for format in SOME]
    for rows in {min(rows, most) for rows in ((2, 4, 7, 8) if inputs == 300 else (5, 8))}:
        x = rows_of(rows, inputs, BF16, random)
        each = [multiply(x[row : row + 1], weights, kernels) for row in range(rows)]
        for index, found in enumerate(multiply(x, weights, kernels)):
            alone = np.concatenate([one[index] for one in each])
            np.testing.assert_array_equal(found, alone, err_msg=f"{SOME[index]}, {rows} rows")


@each_kernel
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])
def test_long_rows_are_multiplied_piece_by_piece(kernels: str, dtype: Any) -> None:
    """Rows of x that the L1 cache has no room for: scales of all widths, several pieces each way, and NaN."""
    random = np.random.default_rng(9)
    formats = [*SOME, "f8_e4m3fn(tile=1x1500)", "int8(group=1280)", "int4(group=33, zero_points)", "f8_e5m2(tile=5x96)"]
    weights = [weight_of(format, (35, 5010), random) for format in formats]
    nan = weight_of("f8_e4m3fn", (35, 5010), random)
    codes = np.array(nan.codes)
    codes[[3, 20], [17, 5009]] = np.nan
    values = [exact(weight) for weight in weights]
    for rows in (1, 3, 8):
        x = rows_of(rows, 5010, dtype, random)
        *found, with_nan = multiply(x, [*weights, replace(nan, codes=jnp.asarray(codes))], kernels)
        for weight, expected, one in zip(weights, values, found, strict=True):
            assert_product(one, x, expected, (kernels, weight.format, rows))
        np.testing.assert_array_equal(np.isnan(with_nan), np.isin(np.arange(35), [3, 20])[None].repeat(rows, 0))


# Of all the inputs that are decoded at once: just as many, a few less and more, and a beginning of the next.
@each_kernel
@pytest.mark.parametrize("inputs", [480, 512, 519, 1024, 1090])
def test_rows_that_are_decoded_while_others_are_multiplied(kernels: str, inputs: int) -> None:
    """Groups of outputs that are not whole, scales within a group and for several, and rows up to those of a panel."""
    random = np.random.default_rng(inputs)
    formats = ["bf16", "f8_e4m3fn", "f8_e4m3fn(tile=5x32)", "f8_e5m2(tile=channel)", "int8(group=64)", "int4(group=32)"]
    weights = [weight_of(format, (69, inputs), random) for format in [*formats, "int4(group=96, zero_points)", "mxfp4"]]
    values = [exact(weight) for weight in weights]
    for rows in (5, 8, 9, 16, 17, 33, 40, 530):
        x = rows_of(rows, inputs, BF16, random)
        for weight, expected, found in zip(weights, values, multiply(x, weights, kernels), strict=True):
            assert_product(found, x, expected, (kernels, weight.format, rows))


@each_kernel
def test_products_of_one_call_are_those_alone(kernels: str) -> None:
    """Bit for bit, for weights of different formats and sizes."""
    random = np.random.default_rng(6)
    weights = [weight_of(format, (outputs, 200), random) for format, outputs in zip(SOME, range(3, 99, 6), strict=True)]
    for rows in ROWS:
        x = rows_of(rows, 200, F32, random)
        for together, alone in zip(multiply(x, weights, kernels), multiply(x, weights, kernels, _alone), strict=True):
            np.testing.assert_array_equal(together, alone)


@each_kernel
@pytest.mark.parametrize("tile_rows", range(1, 10))
def test_rows_of_tiles_of_any_height(kernels: str, tile_rows: int) -> None:
    """Scales are read once for all rows of a tile, which begins anywhere among those of a part."""
    random = np.random.default_rng(tile_rows)
    weights = [weight_of(f"f8_e4m3fn(tile={tile_rows}x{columns})", (61, 99), random) for columns in (32, 7, 99)]
    for rows in (1, 2, 4, 5):
        x = rows_of(rows, 99, F32, random)
        for weight, found in zip(weights, multiply(x, weights, kernels), strict=True):
            assert_product(found, x, exact(weight), (kernels, weight.format, rows))


# Codes, one by one


def _one_hot(inputs: int, rows: int) -> list[np.ndarray]:
    """The rows of the identity, so many at a time."""
    identity = np.eye(inputs, dtype=np.float32)
    return [np.resize(identity[first : first + rows], (rows, inputs)) for first in range(0, inputs, rows)]


CODES = ["f8_e4m3fn(tile=tensor)", "f8_e5m2(tile=tensor)", "int8(group=64)", "bfp8", "mxfp8", "f8_e4m3fn(tile=3x7)"]
CODES += ["int4(group=64, scale=f32)", "int4(group=32, zero_points, scale=f32)", "bfp4", "mxfp4", "int4(group=33)"]


@each_kernel
@pytest.mark.parametrize(("rows", "dtype"), [(2, F32), (4, BF16), (67, F32), (16, BF16), (67, BF16)])
def test_every_code_in_every_place(kernels: str, rows: int, dtype: Any) -> None:
    """The product with a row of the identity is a column: all codes, subnormals too, exactly."""
    inputs = 67
    weights = []
    for case in CODES:
        format = find_format(case)
        codes = (np.arange(256)[:, None] * (17 if format.packed else 1) + np.arange(inputs)).astype(np.uint8)
        codes = codes[:, : format.codes_shape((256, inputs))[1]].view(format.dtype)
        codes = np.where(np.isfinite(codes.astype(np.float32)), codes, np.zeros((), format.dtype))
        parts = {name: np.ones(*part) for name, part in format.parts((256, inputs)).items()}
        if "zero_point" in parts:
            parts["zero_point"] = (np.arange(parts["zero_point"].size) % 16).astype(np.uint8).reshape(256, -1)
        arrays = {name: jnp.asarray(part) for name, part in parts.items()}
        weights.append(Weight(codes=jnp.asarray(codes), **arrays, format=format, shape=(256, inputs)))
    columns = [multiply(x.astype(dtype), weights, kernels) for x in _one_hot(inputs, rows)]
    for weight, *found in zip(weights, *columns, strict=True):
        np.testing.assert_array_equal(np.concatenate(found)[:inputs].T, exact(weight), err_msg=str(weight.format))


@each_kernel
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", ["f8_e4m3fn", "f8_e5m2"])
def test_all_256_codes_with_one_input(kernels: str, rows: int, dtype: str) -> None:
    """NaN and the infinities among them, with x in each type."""
    codes = np.arange(256, dtype=np.uint8).view(find_format(dtype).dtype)
    weight = Weight(
        codes=jnp.asarray(codes[:, None]),
        scale_inv=jnp.full((1, 1), 0.5),
        format=find_format(f"{dtype}(tile=tensor)"),
        shape=(256, 1),
    )
    x = np.arange(1, rows + 1, dtype=np.float32)[:, None]
    (found,), (of_bf16,) = multiply(x, [weight], kernels), multiply(x.astype(BF16), [weight], kernels)
    expected = x * codes.astype(np.float32) * np.float32(0.5)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(of_bf16, expected)
    assert np.isnan(found[0]).sum() == (2 if dtype == "f8_e4m3fn" else 6)
    assert np.isinf(found[0]).sum() == (0 if dtype == "f8_e4m3fn" else 2)


@each_kernel
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_is_of_its_output_only(kernels: str, rows: int, code: int) -> None:
    """One NaN among a weight's codes: at either end of a row, in a whole block or behind the last one."""
    random = np.random.default_rng(code)
    for case in ("f8_e4m3fn(tile=16x64)", "f8_e4m3fn(tile=3x7)", "mxfp8", "f8_e4m3fn(tile=channel)", "f8_e5m2"):
        weight = weight_of(case, (75, 550), random)
        places = {0: 0, 13: 549, 26: 31, 27: 32, 47: 300, 70: 511, 71: 512, 74: 544}
        codes = np.array(weight.codes).view(np.uint8)
        for output, place in places.items():
            codes[output, place] = code
        changed = Weight(
            codes=jnp.asarray(codes.view(weight.codes.dtype)),
            scale_inv=weight.scale_inv,
            format=weight.format,
            shape=weight.shape,
        )
        x = rows_of(rows, 550, F32, random)
        before, after = multiply(x, [weight], kernels)[0], multiply(x, [changed], kernels)[0]
        assert np.isnan(after[:, list(places)]).all(), case
        others = np.setdiff1d(np.arange(75), list(places))
        np.testing.assert_array_equal(after[:, others], before[:, others], err_msg=case)


@each_kernel
@pytest.mark.parametrize("rows", ROWS)
def test_infinite_codes(kernels: str, rows: int) -> None:
    """Infinities of e5m2: of the sign of x, and NaN where two of them meet."""
    codes = np.ones((4, 97), ml_dtypes.float8_e5m2)
    codes[0, 40] = np.inf
    codes[1, 96] = -np.inf
    codes[2, 3], codes[2, 50] = np.inf, -np.inf
    weight = Weight(
        codes=jnp.asarray(codes),
        scale_inv=jnp.full((1, 1), 2.0),
        format=find_format("f8_e5m2(tile=tensor)"),
        shape=(4, 97),
    )
    (found,) = multiply(np.ones((rows, 97), np.float32), [weight], kernels)
    np.testing.assert_array_equal(found, [[np.inf, -np.inf, np.nan, 194.0]] * rows)


@each_kernel
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_do_not_touch_each_other(kernels: str, dtype: Any, bad: float) -> None:
    """A row of x with NaN or an infinity spoils its own results."""
    random = np.random.default_rng(8)
    weights = [weight_of(case, (30, 101), random) for case in SOME]
    for rows in (2, 3, 4, 19):
        x = rows_of(rows, 101, dtype, random)
        spoiled = x.copy()
        spoiled[1, 100] = bad
        kept = np.arange(rows) != 1
        for weight, found in zip(weights, multiply(spoiled, weights, kernels), strict=True):
            values = exact(weight)
            assert not np.isfinite(found[1, values[:, 100] != 0]).any(), (weight.format, rows)
            assert_product(found[kept], x[kept], values, (weight.format, rows))


# Scales and x, one by one

E4M3_SCALES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)[:, None]
F16_SCALES = np.array([2**-24, 3 * 2**-24, 2**-14, 1 - 2**-11, 65504.0], np.float16)[:, None]
BF16_SCALES = np.array([2.0**-100, 1.0078125, -3.0, 2.0**100], ml_dtypes.bfloat16)[:, None]
E8M0_SCALES = np.arange(1, 247, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)[:, None]


@each_kernel
@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize(
    ("case", "scales"),
    [
        ("f8_e4m3fn(tile=1x16, scale=f16)", F16_SCALES),
        ("int8(group=16, scale=f16)", F16_SCALES),
        ("int4(group=16)", BF16_SCALES),
        ("f8_e5m2(tile=channel, scale=bf16)", BF16_SCALES),
        ("f8_e4m3fn(tile=channel, scale=e8m0)", E8M0_SCALES),
        ("mxfp4", E8M0_SCALES),
        ("bfp8", E8M0_SCALES),
        ("nvfp4", E4M3_SCALES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_scale(kernels: str, case: str, scales: np.ndarray, rows: int) -> None:
    """Subnormal ones, NaN of nvfp4, and the powers of two from 2^-126 to 2^119: exactly."""
    format = find_format(case)
    count = len(scales)
    codes = np.full(format.codes_shape((count, 11)), {"int4": 0x99, "nvfp4": 0x22, "mxfp4": 0x22}.get(format.name, 1))
    codes = codes.astype(np.uint8).view(format.dtype) if format.packed else codes.astype(format.dtype)
    rest = {"global_scale": jnp.full(1, 4.0)} if format.kind.global_scale else {}
    weight = Weight(codes=jnp.asarray(codes), scale_inv=jnp.asarray(scales), **rest, format=format, shape=(count, 11))
    x = np.zeros((rows, 11), np.float32)
    x[:, 10] = 2.0 ** np.arange(rows)
    (found,) = multiply(x, [weight], kernels)
    factor = {"nvfp4": 1 / 4, "bfp8": 1 / 64}.get(format.name, 1)
    wide = scales[:, 0].astype(np.float64) * factor
    # XLA's threads take subnormal numbers for zero, so that both are right for what is less than a normal one.
    expected = wide * x[:, 10:].astype(np.float64)
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=0, atol=2.0**-120)
    normal = ~(np.abs(expected) < 2.0**-120)
    np.testing.assert_array_equal(found[normal], expected.astype(np.float32)[normal])


FINITE_F16 = np.arange(0, 0x7C00, 127, dtype=np.uint16).view(np.float16)[:, None]


@each_kernel
@pytest.mark.parametrize("rows", [1, 4, 17])
@pytest.mark.parametrize(
    ("case", "scales"),
    [
        ("f8_e4m3fn(tile=1x16)", E8M0_SCALES.astype(np.float32)),
        ("f8_e4m3fn(tile=1x16, scale=f16)", FINITE_F16),
        ("int4(group=16)", E8M0_SCALES.astype(np.float32).astype(ml_dtypes.bfloat16)),
        ("mxfp4", E8M0_SCALES),
        ("nvfp4", E4M3_SCALES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scales_side_by_side(kernels: str, case: str, scales: np.ndarray, rows: int) -> None:
    """As `test_every_scale`, but of one row of the weight, where they are read a vector at a time."""
    format, scales = find_format(case), scales[:, 0]
    finite = scales[np.isfinite(scales.astype(np.float32))]
    inputs = len(finite) * (32 if case == "mxfp4" else 16)
    codes = np.full(format.codes_shape((1, inputs)), {"int4": 0x99, "nvfp4": 0x22, "mxfp4": 0x22}.get(format.name, 1))
    codes = codes.astype(np.uint8).view(format.dtype) if format.packed else codes.astype(format.dtype)
    rest = {"global_scale": jnp.full(1, 4.0)} if format.kind.global_scale else {}
    factor = 1 / 4 if rest else 1.0

    def products(of: np.ndarray, x: np.ndarray) -> np.ndarray:
        shape = (1, inputs)
        weight = Weight(codes=jnp.asarray(codes), scale_inv=jnp.asarray(of[None]), **rest, format=format, shape=shape)
        return multiply(x, [weight], kernels)[0]

    expected = (finite.astype(np.float64) * factor).astype(np.float32)
    normal = ~(np.abs(expected) < 2.0**-120)
    for first in range(0, len(finite), rows * 5):  # a fifth of them is enough
        x = np.zeros((rows, inputs), np.float32)
        groups = np.arange(first, first + rows) % len(finite)
        x[np.arange(rows), groups * (inputs // len(finite)) + 3] = 1.0
        found = products(finite, x)[:, 0]
        np.testing.assert_allclose(found, expected[groups], rtol=0, atol=2.0**-120)
        np.testing.assert_array_equal(found[normal[groups]], expected[groups][normal[groups]])
    if len(finite) < len(scales):
        spoiled = finite.copy()
        spoiled[5] = np.nan
        assert np.isnan(products(spoiled, np.ones((rows, inputs), np.float32))).all()


@each_kernel
@pytest.mark.parametrize("rows", ROWS)
def test_every_half_in_x(kernels: str, rows: int) -> None:
    """All finite float16, subnormals too: the product with one is the value."""
    bits = np.arange(0, 2**16, 7, dtype=np.uint16)
    values = bits.view(np.float16)[np.isfinite(bits.view(np.float16))]
    x = np.zeros((rows, len(values)), np.float16)
    x[-1] = values
    identity = Weight.plain(jnp.asarray(np.eye(len(values), 64, dtype=np.float32).T))
    scattered = np.zeros((64, len(values)), ml_dtypes.bfloat16)
    places = np.random.default_rng(9).permutation(len(values))[:64]
    scattered[np.arange(64), places] = 1
    found = multiply(x, [identity, Weight.plain(jnp.asarray(scattered))], kernels)
    np.testing.assert_array_equal(found[0][-1], values[:64].astype(np.float32))
    np.testing.assert_array_equal(found[1][-1], values[places].astype(np.float32))


# Nothing at all, and the way from `product`


@each_kernel
@pytest.mark.parametrize(("rows", "outputs"), [(0, 5), (3, 0), (0, 0)])
def test_no_rows_or_outputs(kernels: str, rows: int, outputs: int) -> None:
    """Empty results, also beside products that are not."""
    random = np.random.default_rng(10)
    weights = [weight_of(case, (outputs, 33), random) for case in SOME]
    weights.append(weight_of("int8", (4, 33), random))
    x = rows_of(rows, 33, BF16, random)
    found = multiply(x, weights, kernels)
    assert [y.shape for y in found] == [(rows, weight.shape[0]) for weight in weights]
    assert_product(found[-1], x, exact(weights[-1]), rows)


@each_kernel
def test_product_goes_through_the_kernels(kernels: str) -> None:
    """Of low precision, and of 16-bit values in their own type or float32; leading axes of x stay."""
    random = np.random.default_rng(11)
    x = rows_of(6, 77, F32, random)
    run = jax.jit(lambda x, weight: product(x, weight, compute_type=F32))
    for case in SOME[1::3]:
        weight = weight_of(case, (40, 77), random)
        assert "bombus_product" in run.lower(x, weight).as_text()
        with native.using_kernels(kernels):
            found = np.asarray(run(x.reshape(2, 3, 77), weight))
        assert found.shape == (2, 3, 40)
        assert_product(found.reshape(6, 40), x, exact(weight), case)


@pytest.mark.parametrize(
    ("stored", "compute", "taken"),
    [
        (F32, F32, False),
        (BF16, F32, True),
        (BF16, BF16, True),
        (BF16, F16, False),
        (F16, F16, True),
        (F32, BF16, False),
    ],
    ids=str,
)
def test_which_plain_weights_the_kernels_take(stored: Any, compute: Any, taken: bool) -> None:
    """Those that cost half of the memory, where nothing is rounded to another type."""
    weight = Weight.plain(jnp.ones((3, 4), stored))
    assert native.runs(weight, compute) is taken
    run = jax.jit(lambda x: product(x, weight, compute_type=compute))
    assert ("bombus_product" in run.lower(jnp.ones((2, 4))).as_text()) is taken


def spoil(kernels: str) -> None:
    """Raises ZeroDivisionError where these kernels are in use."""
    with native.using_kernels(kernels):
        assert native.kernels_in_use() == kernels
        raise ZeroDivisionError


@each_kernel
def test_the_kernels_chosen_are_those_that_run(kernels: str) -> None:
    """`using_kernels` gives back what was in use, after an error too."""
    before = native.kernels_in_use()
    with pytest.raises(ZeroDivisionError):
        spoil(kernels)
    assert native.kernels_in_use() == before
    assert native.available() == KERNELS
    assert native.kernels_in_use() == before


@pytest.mark.parametrize("size", [0, 1, 391, 4096, 3_000_001])
def test_read_bytes_reads_all(size: int) -> None:
    """The sum of 64-bit words, as two halves; what is behind the last whole one counts by bytes."""
    values = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    words, rest = values[: size // 8 * 8].view(np.uint64), values[size // 8 * 8 :]
    expected = (int(words.astype(object).sum()) + int(rest.sum())) % 2**64 if size else 0
    low, high = np.asarray(native.read_bytes(jnp.asarray(values))).tolist()
    assert low + (high << 32) == expected

"""Decoding of stored weights: every code, every scale, and whole weights against the NumPy model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_formats as model
import pytest
from every_format import BF16, F32, LARGE, SHAPES, cases_of, codes_of, model_options, parts_of, stored_example

from bombus.kernels import Weight, dequantize
from bombus.kernels.weight import pack, unpack
from bombus.policies.formats import find_format

decoded = jax.jit(dequantize, static_argnums=1)


@pytest.mark.parametrize(("shape", "case"), [(shape, case) for shape in SHAPES for case in cases_of(shape)], ids=str)
def test_values_are_the_models(shape: tuple[int, int], case: str) -> None:
    """float32's nearest to the exact product; nvfp4 with its two scales rounds three times."""
    weight, found = stored_example("tiles", shape)[case]
    expected = model.decode(codes_of(weight), parts_of(weight), **model_options(case))
    if case == "nvfp4":
        np.testing.assert_allclose(found, expected, rtol=2e-7)
    else:
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def weight_of(case: str, codes: np.ndarray, **parts: np.ndarray) -> Weight:
    """A stored weight with codes (O, I), one a byte, and parts; scales of one where none are given."""
    format = find_format(case)
    ones = {name: np.ones(shape, dtype) for name, (shape, dtype) in format.parts(codes.shape).items()}
    arrays = {name: jnp.asarray(part) for name, part in {**ones, **parts}.items()}
    packed = model.pack(codes) if format.packed else codes
    return Weight(codes=jnp.asarray(packed), **arrays, format=format, shape=codes.shape)


@pytest.mark.parametrize("case", ["f8_e4m3fn", "f8_e5m2", "mxfp8", "mxfp8(element=f8_e5m2)"])
def test_every_float8_code_decodes_exactly(case: str) -> None:
    """All 256: subnormals, zeros with their signs, infinities and NaN."""
    codes = np.arange(256, dtype=np.uint8).view(find_format(case).dtype).reshape(2, 128)
    found = np.asarray(decoded(weight_of(case, codes), F32))
    expected = codes.astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found)[numbers], np.signbit(expected)[numbers])
    assert numbers.sum() == (254 if codes.dtype == ml_dtypes.float8_e4m3fn else 250)


@pytest.mark.parametrize(
    ("case", "values"),
    [
        ("int8", np.arange(-128, 128)),
        ("bfp8", np.arange(-128, 128) / 64),
        ("int4", np.arange(16) - 8),
        ("int4(zero_points)", np.arange(16) - 3),
        ("bfp4", (np.arange(16) - 8) / 4),
        ("mxfp4", model.E2M1),
        ("nvfp4", model.E2M1),
    ],
)
def test_every_integer_code_decodes_exactly(case: str, values: np.ndarray) -> None:
    """All 256, or all 16 in both halves of a byte and beside every other one."""
    if len(values) == 256:
        codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
        expected = values.reshape(2, 128)
    else:
        pairs = np.arange(256, dtype=np.uint8)
        codes = np.stack([pairs % 16, pairs // 16], axis=1).reshape(2, 256)
        expected = values[codes]
    zero = {"zero_point": np.full((2, 2), 3, np.uint8)} if "zero_points" in case else {}
    np.testing.assert_array_equal(decoded(weight_of(case, codes, **zero), F32), expected)


def test_every_power_of_two_is_a_scale() -> None:
    """e8m0 codes 1 to 254 are 2^-126 to 2^127. Code 0, 2^-127, is no normal float32, and XLA:CPU takes it for zero."""
    scale = np.arange(1, 255, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)[:, None]
    weight = weight_of("mxfp8", np.ones((254, 1), ml_dtypes.float8_e4m3fn), scale_inv=scale)
    np.testing.assert_array_equal(decoded(weight, F32), np.exp2(np.arange(-126, 128))[:, None])


def test_every_scale_of_nvfp4() -> None:
    """Divided by the scale of the tensor, as compressed-tensors does it."""
    scale = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)[:, None]
    weight = weight_of("nvfp4", np.full((127, 1), 3, np.uint8), scale_inv=scale, global_scale=np.float32([32]))
    np.testing.assert_array_equal(decoded(weight, F32), 1.5 * scale.astype(np.float64) / 32)


@pytest.mark.parametrize("case", ["bfp8", "bfp4", "mxfp8", "mxfp4", "f8_e4m3fn(scale=e8m0)"])
def test_bfloat16_holds_the_values_of_formats_with_powers_of_two(case: str) -> None:
    """Dequantization to bf16 rounds nothing."""
    weight, values = stored_example("tiles", LARGE)[case]
    found = np.asarray(decoded(weight, BF16))
    assert found.dtype == BF16
    np.testing.assert_array_equal(found.astype(np.float32), values)


@pytest.mark.parametrize("inputs", [1, 2, 5, 8])
def test_two_codes_share_a_byte(inputs: int) -> None:
    """The even one in the low half; the last half of an odd row is zero."""
    codes = np.random.default_rng(inputs).integers(1, 16, (3, inputs)).astype(np.uint8)
    packed = np.asarray(pack(jnp.asarray(codes)))
    np.testing.assert_array_equal(packed, model.pack(codes))
    np.testing.assert_array_equal(unpack(jnp.asarray(packed), inputs), codes)
    assert (packed[:, -1] < 16).all() == (inputs % 2 == 1)

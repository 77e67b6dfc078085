"""Decoding, dequantization and quantization of e4m3fn codes against NumPy and ml_dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy_decoder import dequantize as dequantize_float64

from bombus.kernels import Weight, decode_e4m3fn, dequantize, quantize
from bombus.policies.formats import Format, find_format

CODES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)


def block_fp8(block: tuple[int, int]) -> Format:
    """The format of codes in tiles of this size, with float32 scales."""
    return find_format(f"f8_e4m3fn(tile={block[0]}x{block[1]})")


@pytest.mark.parametrize("compiled", [True, False])
def test_every_code_decodes_exactly(compiled: bool) -> None:
    """All 256 codes: subnormals, both zeros with their signs, and NaN."""
    decode = jax.jit(decode_e4m3fn) if compiled else decode_e4m3fn
    found = np.asarray(decode(CODES))
    expected = CODES.astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found)[~np.isnan(expected)], np.signbit(expected)[~np.isnan(expected)])
    assert found[0x7E] == 448
    assert found[0x01] == 2.0**-9
    assert np.isnan(found[[0x7F, 0xFF]]).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (128, 128), (129, 127), (300, 200), (576, 130)])
@pytest.mark.parametrize("block", [(128, 128), (2, 2), (64, 96)])
@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu])
def test_dequantize_equals_float64(shape: tuple[int, int], block: tuple[int, int], scale_dtype: type) -> None:
    """Whole and partial tiles, distinct scales of every stored type; one rounding in float32."""
    random = np.random.default_rng(shape[0])
    codes = random.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    scale = np.exp(random.uniform(-3, 3, grid)).astype(scale_dtype)
    expected = dequantize_float64(codes, scale.astype(np.float64), block)
    format = block_fp8(block).with_scale(np.dtype(scale_dtype))
    assert format.parts(shape) == {"scale_inv": (grid, np.dtype(scale_dtype))}
    weight = Weight(codes=jnp.asarray(codes), scale_inv=jnp.asarray(scale), format=format, shape=shape)
    found = np.asarray(dequantize(weight, jnp.dtype(jnp.float32)))
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (300, 200)])
def test_quantize_maps_each_tiles_largest_value_to_448(shape: tuple[int, int]) -> None:
    """Scales are amax/448 per tile, codes are ml_dtypes' rounding, and the error is that of three bits."""
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 3
    weight = quantize(jnp.asarray(values), block_fp8((128, 128)))
    assert (weight.shape, str(weight.format), weight.parts.keys()) == (shape, "f8_e4m3fn", {"scale_inv"})
    codes, scale = np.asarray(weight.codes), np.asarray(weight.scale_inv)
    assert (codes.dtype, scale.dtype) == (ml_dtypes.float8_e4m3fn, np.float32)
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            tile = np.s_[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            assert scale[row, column] == pytest.approx(np.abs(values[tile]).max() / 448, rel=1e-6)
            expected = np.clip(values[tile] / scale[row, column], -448, 448).astype(ml_dtypes.float8_e4m3fn)
            np.testing.assert_array_equal(codes[tile].view(np.uint8), expected.view(np.uint8))
    restored = dequantize_float64(codes, scale, (128, 128))
    assert np.abs(restored - values).max() <= np.abs(values).max() / 16


def test_quantize_of_zeros_gives_zeros() -> None:
    """A tile of zeros has scale one, not zero or NaN."""
    weight = quantize(jnp.zeros((4, 4), jnp.float32), block_fp8((2, 2)))
    np.testing.assert_array_equal(np.asarray(weight.scale_inv), np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(np.asarray(weight.codes).view(np.uint8), 0)

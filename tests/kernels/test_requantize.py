"""A stored weight in another format."""

from __future__ import annotations

import gc
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from every_format import F32, as_bytes, example, parts_of
from jaxlib.mlir import ir

from bombus.kernels import Weight, dequantize, quantize, requantize
from bombus.policies.formats import find_format


@pytest.mark.parametrize(("before", "after"), [("f8_e4m3fn(tile=2x3)", "int4(group=2)"), ("int4(group=2)", "mxfp8")])
def test_another_format_goes_by_way_of_float32(before: str, after: str) -> None:
    """With the scale: never the codes alone."""
    stored = quantize(jnp.asarray(example("tiles", (3, 5))) * 1000, find_format(before))
    found = requantize(stored, find_format(after))
    expected = quantize(dequantize(stored, F32), find_format(after))
    assert found.format == find_format(after)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(as_bytes(parts_of(found)["scale_inv"]), as_bytes(parts_of(expected)["scale_inv"]))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f8_e4m3fn(tile=2x3)", "f8_e4m3fn(tile=2x3, scale=bf16)"),
        ("f8_e4m3fn(tile=2x3, scale=e8m0)", "f8_e4m3fn(tile=2x3)"),
        ("int8(group=2)", "int8(group=2, scale=f16)"),
        ("int4(group=2, zero_points)", "int4(group=2, zero_points, scale=f32)"),
        ("mxfp8", "mxfp8(scale_rule=ceil)"),
    ],
)
def test_another_type_of_scales_keeps_the_codes(before: str, after: str) -> None:
    """Codes and zero points stay bit for bit; scales are cast."""
    stored = quantize(jnp.asarray(example("tiles", (3, 5))), find_format(before))
    found = requantize(stored, find_format(after))
    assert found.format == find_format(after).canonical
    np.testing.assert_array_equal(as_bytes(np.asarray(found.codes)), as_bytes(np.asarray(stored.codes)))
    expected = parts_of(stored)
    expected["scale_inv"] = expected["scale_inv"].astype(find_format(after).scale_type)
    for name, part in parts_of(found).items():
        np.testing.assert_array_equal(as_bytes(part), as_bytes(expected[name]))


def test_scales_that_become_powers_of_two_take_new_codes() -> None:
    """A cast alone would be up to 41% wrong."""
    values = example("tiles", (3, 5))
    stored = requantize(quantize(jnp.asarray(values), find_format("f8_e4m3fn")), find_format("f8_e4m3fn(scale=e8m0)"))
    assert np.abs(dequantize(stored, F32) - values).max() <= np.abs(values).max() / 8


@pytest.mark.parametrize(
    ("before", "after"),
    [("f8_e4m3fn(tile=24x30)", "bfp8(axis=out)"), ("int4(group=channel, zero_points)", "nvfp4"), ("int8", "bf16")],
)
def test_a_large_weight_goes_some_rows_at_a_time(before: str, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole tiles of both formats, and as if all had been there at once."""
    values = np.random.default_rng(2).standard_normal((200, 40)).astype(np.float32)
    stored = quantize(jnp.asarray(values), find_format(before))
    expected = requantize(stored, find_format(after))
    monkeypatch.setattr(sys.modules["bombus.kernels.requantize"], "_VALUES_AT_A_TIME", 130 * 40)
    monkeypatch.setattr(sys.modules["bombus.kernels.requantize"], "_BYTES_AT_A_TIME", -1)
    found = requantize(stored, find_format(after))
    assert (found.format, found.shape) == (expected.format, expected.shape)
    np.testing.assert_array_equal(as_bytes(np.asarray(found.codes)), as_bytes(np.asarray(expected.codes)))
    assert found.parts.keys() == expected.parts.keys()
    for name, part in parts_of(expected).items():
        np.testing.assert_array_equal(as_bytes(parts_of(found)[name]), as_bytes(part))


def test_a_stored_weight_becomes_plain_values() -> None:
    """Dequantized in float32, rounded once."""
    stored = quantize(jnp.asarray(example("tiles", (3, 5))), find_format("int4(group=2)"))
    found = requantize(stored, find_format("bf16"))
    assert found.parts == {}
    np.testing.assert_array_equal(found.codes, np.asarray(dequantize(stored, F32)).astype(ml_dtypes.bfloat16))


# Of the tiles that are used: halved three times, never, and an odd number of times.
@pytest.mark.parametrize("shape", [(256, 384), (96, 1100), (130, 257)])
@pytest.mark.parametrize("format", ["int8", "int4", "f8_e4m3fn", "bfp8", "mxfp4"])
def test_a_conversion_takes_no_memory_of_its_own(format: str, shape: tuple[int, int]) -> None:
    """Where tiles are even, no float32 values are written to memory; and what is found is the largest of each tile."""
    values = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    values *= np.exp2(np.random.default_rng(8).integers(-9, 9, shape))
    weight = Weight.plain(jnp.asarray(values, jnp.bfloat16))
    stored = find_format(format)
    assert as_bytes(np.asarray(requantize(weight, stored).codes)).any()
    compiled = jax.jit(lambda weight: quantize(dequantize(weight, F32), stored)).lower(weight).compile()
    if all(size % 8 == 0 for size in stored.tile) and shape[1] % 128 == 0:
        assert compiled.memory_analysis().temp_size_in_bytes < values.nbytes / 8
    back = np.asarray(dequantize(requantize(weight, stored), F32))
    rounded = np.asarray(weight.codes).astype(np.float32)
    height, width = (size or whole for size, whole in zip(stored.tile, shape, strict=True))
    for row in range(0, shape[0], height):
        for column in range(0, shape[1], width):
            tile = np.s_[row : row + height, column : column + width]
            largest = np.abs(rounded[tile]).max()
            assert np.abs(np.abs(back[tile]).max() / largest - 1) <= 0.25 if largest else not back[tile].any()


def test_only_the_program_of_a_conversion_is_kept() -> None:
    """JAX would keep what it lowered as well, a megabyte each."""
    for rows in (31, 33):
        weight = Weight.plain(jnp.ones((rows, 24), jnp.bfloat16))
        gc.collect()
        before = ir.Context._get_live_count()
        assert requantize(weight, find_format("int8")).shape == (rows, 24)
        gc.collect()
    assert ir.Context._get_live_count() == before


def test_a_conversion_stays_where_its_weight_is() -> None:
    """And an array that is bound to no device still is bound to none."""
    weight = Weight.plain(jnp.ones((5, 24), jnp.bfloat16))
    bound = jax.device_put(weight, jax.devices()[0])
    for stored, committed in ((weight, False), (bound, True), (weight, False)):
        assert requantize(stored, find_format("int8")).codes.committed is committed


def test_a_conversion_within_a_program() -> None:
    """Is part of that."""
    weight = Weight.plain(jnp.asarray(example("tiles", (3, 5))))
    found = jax.jit(lambda weight: requantize(weight, find_format("int8")))(weight)
    np.testing.assert_array_equal(found.codes, requantize(weight, find_format("int8")).codes)

"""A stored weight in another format."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from every_format import F32, as_bytes, example, parts_of

from bombus.kernels import dequantize, quantize, requantize
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

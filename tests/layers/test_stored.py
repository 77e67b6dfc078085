"""What a cache keeps of a vector: codes, scales and zero points against float64 NumPy; rings; bytes."""

from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy_cache import RANGES, stored_values

from bombus.layers.stored import Stored, empty_stored

RANDOM = np.random.default_rng(5)
X, T, H = 3, 5, 6
NEW = (RANDOM.standard_normal((X, T, H)) * RANDOM.uniform(0.1, 9, (X, T, 1)) + 1).astype(np.float32)
F32 = jnp.dtype(jnp.float32)


def _empty(format: str | None, slots: int, *, zero_points: bool = True, fixed: list[float] | None = None) -> Stored:
    fixed_X = None if fixed is None else jnp.asarray(fixed, jnp.float32)
    return empty_stored(format, (X, slots, H), F32, zero_points=zero_points, fixed_X=fixed_X)


def _values(stored: Stored) -> np.ndarray:
    """The vectors, from the products with unit vectors."""
    units = np.asarray(stored.units(F32), np.float64)
    assert stored.scale is not None
    scale = np.asarray(stored.scale, np.float64).reshape(X, -1)
    zero = 0.0 if stored.zero is None else np.asarray(stored.zero, np.float64)[..., None]
    return units * scale[..., None] + zero


@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("format", RANGES)
def test_every_slot_has_the_nearest_codes(format: str, zero_points: bool) -> None:
    """Of its own scale: the largest magnitude is the largest code, or the range is that of all codes."""
    stored = _empty(format, T, zero_points=zero_points).encoded(jnp.asarray(NEW))
    assert (stored.zero is not None) == (zero_points and format != "f8_e4m3fn")
    expected = stored_values(NEW, format, zero_points=zero_points)
    np.testing.assert_allclose(_values(stored), expected, atol=1e-5)
    assert stored.scale.shape == (X, T)
    if format != "f8_e4m3fn":
        # At most half a step away, and all codes are in use where there are zero points.
        steps = np.abs(_values(stored) - NEW) / np.asarray(stored.scale)[..., None]
        assert steps.max() <= 0.5001
        codes = np.asarray(stored.units(F32))
        low, high = RANGES[format]
        assert (codes.max(-1) == high).all() or not zero_points
        assert (codes.min(-1) == low).all() == zero_points


@pytest.mark.parametrize("format", RANGES)
def test_a_fixed_scale_saturates(format: str) -> None:
    """One of each head, of which larger values are cut off and are never NaN."""
    stored = _empty(format, T, fixed=[0.5, 2.0, 30.0]).encoded(jnp.asarray(NEW))
    assert (stored.scale.shape, stored.zero) == ((X,), None)
    fixed = np.array([0.5, 2.0, 30.0])[:, None]
    expected = stored_values(NEW, format, zero_points=False, fixed=fixed)
    np.testing.assert_allclose(_values(stored), expected, atol=1e-5)
    assert np.abs(expected[0]).max() <= 0.5 * 8 / 7 < np.abs(NEW[0]).max()


def test_int4_packs_two_codes_a_byte() -> None:
    """All pairs: the low half of a byte is a dimension of the first half, the high half one of the second."""
    codes = np.arange(-8, 8)
    pairs = np.stack(np.meshgrid(codes, codes, indexing="ij"), -1).reshape(1, 256, 2).astype(np.float32)
    empty = empty_stored("int4", (1, 256, 2), F32, zero_points=False, fixed_X=jnp.asarray([7.0]))
    stored = empty.encoded(jnp.asarray(pairs))
    assert (stored.codes.dtype, stored.codes.shape) == (jnp.uint8, (1, 256, 1))
    expected = (pairs[0, :, 0] + 8 + 16 * (pairs[0, :, 1] + 8)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(stored.codes)[0, :, 0], expected)
    np.testing.assert_array_equal(stored.units(F32), pairs)


@pytest.mark.parametrize("format", RANGES)
def test_e4m3fn_and_integers_keep_constants_and_zeros(format: str) -> None:
    """A vector of one value has no range, and one of zeros no size; neither divides by zero."""
    constant = jnp.broadcast_to(jnp.asarray([0.0, 3.0, -0.25])[:, None, None], (X, 1, H))
    stored = _empty(format, 1).encoded(constant)
    np.testing.assert_allclose(_values(stored), constant, rtol=1e-6)


def test_every_code_of_e4m3fn_is_read_exactly() -> None:
    """Subnormal ones too, in bfloat16 as in float32."""
    bits = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    codes = jnp.asarray(bits.view(ml_dtypes.float8_e4m3fn).reshape(1, 127, 2))
    stored = Stored(codes=codes, scale=jnp.ones((1,)))
    expected = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32).reshape(1, 127, 2)
    for dtype in (jnp.float32, jnp.bfloat16):
        np.testing.assert_array_equal(stored.units(jnp.dtype(dtype)).astype(jnp.float32), expected)


def test_plain_formats_round_and_never_overflow() -> None:
    """bf16 to nearest; f16 stops at its largest number."""
    assert _empty("bf16", 2).codes.dtype == jnp.bfloat16
    stored = _empty("f16", 1).encoded(jnp.full((X, 1, H), -1e9, jnp.float32))
    np.testing.assert_array_equal(stored.codes, np.full((X, 1, H), -65504, np.float16))
    third = _empty("bf16", 1).encoded(jnp.full((X, 1, H), 1 / 3, jnp.float32))
    assert (third.format, float(third.codes[0, 0, 0])) == ("bf16", 0.333984375)


@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
@pytest.mark.parametrize("length", [0, 2, 7])
def test_a_ring_holds_the_last_slots(tokens: int, length: int) -> None:
    """Slot s at s % size, whatever was there before; older slots stay where no new one comes."""
    size = 4
    old = np.full((X, size, H), -1.0, np.float32)
    for slot in range(length):
        old[:, slot % size] = slot
    new = np.broadcast_to(np.arange(length, length + tokens, dtype=np.float32)[None, :, None], (X, tokens, H))
    ring = Stored(codes=jnp.asarray(old)).written_around(Stored(codes=jnp.asarray(new)), jnp.int32(length))
    expected = old.copy()
    for slot in range(length, length + tokens):
        expected[:, slot % size] = slot
    np.testing.assert_array_equal(ring.codes, expected)


def test_writing_quantized_slots_writes_their_scales() -> None:
    """And zero points; a fixed scale stays, and so does every other slot."""
    encoded = _empty("int8", 2).encoded(jnp.asarray(NEW[:, :2]))
    whole = _empty("int8", 7).written(encoded, jnp.int32(4))
    for name in ("codes", "scale", "zero"):
        old, new = np.asarray(getattr(whole, name)), np.asarray(getattr(encoded, name))
        np.testing.assert_array_equal(old[:, 4:6], new)
        assert not old[:, :4].any()
        assert not old[:, 6:].any()
    around = _empty("int4", 3).written_around(_empty("int4", 2).encoded(jnp.asarray(NEW[:, :2])), jnp.int32(5))
    expected = _empty("int4", 2).encoded(jnp.asarray(NEW[:, :2])).scale
    np.testing.assert_array_equal(around.scale, np.stack([expected[:, 1], np.zeros(X), expected[:, 0]], 1))
    fixed = _empty("int8", 3, fixed=[1.0, 2.0, 3.0])
    np.testing.assert_array_equal(
        fixed.written_around(fixed.encoded(jnp.asarray(NEW)), jnp.int32(1)).scale, fixed.scale
    )

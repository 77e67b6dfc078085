"""Norms and rotary positions by the C++ kernels: against float64, and under JAX's transformations."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from native_weights import KERNELS, REASON

from bombus.kernels.native_rows import rms_norm, rotate, rotate_together

pytestmark = pytest.mark.skipif(not KERNELS, reason=REASON)
BF16 = ml_dtypes.bfloat16
TYPES = pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
# Half a unit of the last place of what is rounded once, and the rounding of float32 before.
BOUND = {"float32": 6e-7, "bfloat16": 2.0**-8}


def drawn(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(found: Any, expected: np.ndarray, size: float | np.ndarray = 1.0) -> None:
    """Equal up to the rounding of the type, of values that have been about as large as `size`."""
    bound = BOUND[found.dtype.name] * np.abs(expected) + 6e-7 * np.abs(size)
    assert (np.abs(np.asarray(found, np.float64) - expected) <= bound).all()


def normal(x: np.ndarray, scale: np.ndarray, epsilon: float, offset: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * (offset + scale.astype(np.float64))


def tables(batch: int, tokens: int, pairs: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    angles = np.random.default_rng(seed).uniform(-9, 9, (batch, tokens, 1, 1, pairs))
    both = np.sin(angles) * np.array([-1.0, 1.0])[:, None]
    return np.cos(angles).astype(np.float32), both.astype(np.float32)


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """As complex numbers."""
    pairs = cos.shape[-1]
    found = x.astype(np.float64)
    one = (slice(0, 2 * pairs, 2), slice(0, pairs))[not interleaved]
    other = (slice(1, 2 * pairs, 2), slice(pairs, 2 * pairs))[not interleaved]
    unit = cos[:, :, :, 0].astype(np.float64) + 1j * sin[:, :, :, 1].astype(np.float64)
    made = (found[..., one] + 1j * found[..., other]) * unit
    found[..., one], found[..., other] = made.real, made.imag
    return found


@TYPES
@pytest.mark.parametrize("size", [1, 7, 16, 50, 128, 1024, 1030, 40000])
def test_norm_is_float64s(size: int, dtype: Any) -> None:
    for rows, scale_type, out_type, offset in (
        ((), np.float32, dtype, 0.0),
        ((3,), dtype, np.float32, 1.0),
        ((2, 5), BF16, BF16, 0.0),
    ):
        x, scale = drawn((*rows, size), dtype), drawn((size,), scale_type, 1)
        run = jax.jit(lambda x, s, o=out_type, f=offset: rms_norm(x, s, epsilon=1e-3, offset=f, dtype=jnp.dtype(o)))
        assert "bombus_norm" in run.lower(x, scale).as_text()
        expected = normal(x, scale, 1e-3, offset)
        close(run(x, scale), expected, expected)


def test_norm_of_many_rows_on_threads() -> None:
    x, scale = drawn((700, 128), np.float32), drawn((128,), np.float32, 1)
    expected = normal(x, scale, 1e-6, 0.0)
    close(jax.jit(lambda x: rms_norm(x, scale, epsilon=1e-6, offset=0.0, dtype=x.dtype))(x), expected, expected)


def test_norm_of_what_is_no_number_or_nothing() -> None:
    """A row keeps to itself; zeros stay zeros; nothing gives nothing."""
    run = jax.jit(lambda x: rms_norm(x, jnp.ones(20), epsilon=1e-6, offset=0.0, dtype=jnp.dtype(BF16)))
    x = drawn((4, 20), np.float32)
    clean = np.asarray(run(x))
    x[1, 3], x[2] = np.nan, 0.0
    found = np.asarray(run(x))
    assert np.isnan(found[1].astype(np.float32)).all()
    assert (found[2] == 0).all()
    np.testing.assert_array_equal(found[[0, 3]], clean[[0, 3]])
    assert run(x[:0]).shape == (0, 20)


@TYPES
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_rotation_is_float64s(interleaved: bool, dtype: Any) -> None:
    for batch, tokens, heads, size, pairs in ((1, 1, 2, 8, 4), (2, 3, 3, 20, 5), (1, 400, 8, 128, 64), (2, 1, 1, 7, 1)):
        x, (cos, sin) = drawn((batch, tokens, heads, size), dtype), tables(batch, tokens, pairs)
        run = jax.jit(lambda x, cos, sin: rotate(x, (cos, sin), interleaved=interleaved))
        assert "bombus_rotate" in run.lower(x, cos, sin).as_text()
        found = run(x, cos, sin)
        assert found.dtype == x.dtype
        close(found, turned(x, cos, sin, interleaved), np.abs(x.astype(np.float64)).max())
        np.testing.assert_array_equal(np.asarray(found)[..., 2 * pairs :], x[..., 2 * pairs :])


@TYPES
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_heads_are_normed_and_turned_in_one_call(interleaved: bool, dtype: Any) -> None:
    """Bit for bit as one after the other; heads with a norm beside some without; under vmap and in derivatives too."""
    cos, sin = tables(2, 3, 5)
    types = (dtype, dtype, np.float32)  # each head has its own
    heads = tuple(drawn((2, 3, count, 12), kind, count) for count, kind in zip((4, 2, 1), types, strict=True))
    scales, norms = (drawn((12,), dtype, 7), None, drawn((12,), np.float32, 8)), ((1e-3, 1.0), None, (1e-6, 0.0))

    def alone(heads: Any, scales: Any) -> list[jax.Array]:
        normed = [
            x if norm is None else rms_norm(x, scale, epsilon=norm[0], offset=norm[1], dtype=x.dtype)
            for x, scale, norm in zip(heads, scales, norms, strict=True)
        ]
        return [rotate(x, (cos, sin), interleaved=interleaved) for x in normed]

    def together(heads: Any, scales: Any) -> tuple[jax.Array, ...]:
        return rotate_together(heads, (cos, sin), scales, norms=norms, interleaved=interleaved)

    run = jax.jit(together)
    text = run.lower(heads, scales).as_text()
    assert text.count("bombus_rotate") == 1
    assert "bombus_norm" not in text
    for found, expected, kind in zip(run(heads, scales), jax.jit(alone)(heads, scales), types, strict=True):
        assert found.dtype == kind
        np.testing.assert_array_equal(found, expected)
    many = tuple(np.stack([x, 2 * x]) for x in heads)
    for found, one, x in zip(jax.vmap(together, (0, None))(many, scales), alone(heads, scales), heads, strict=True):
        close(found[0], np.asarray(one, np.float64), 8.0)
        assert found.shape == (2, *x.shape)
    if dtype == np.float32:
        slopes = [
            jax.grad(lambda h, s, f=f: sum((y**2).sum() for y in f(h, s)))(heads, scales) for f in (together, alone)
        ]
        for ours, theirs in zip(*slopes, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_one_table_for_all_rows() -> None:
    x, (cos, sin) = drawn((3, 4, 2, 8), np.float32), tables(1, 4, 4)
    found = jax.jit(lambda x: rotate(x, (jnp.asarray(cos), jnp.asarray(sin))))(x)
    close(found, turned(x, cos, sin, False), 4.0)


@TYPES
def test_other_types_and_derivatives_are_those_of_xla(dtype: Any) -> None:
    """Central differences in float32; under vmap over x, over both, and over neither."""
    x, scale = drawn((3, 24), np.float32), drawn((24,), np.float32, 1)
    way, along = drawn((3, 24), np.float32, 2), drawn((24,), np.float32, 3)

    def loss(x: jax.Array, scale: jax.Array) -> jax.Array:
        y = rms_norm(x, scale, epsilon=1e-6, offset=1.0, dtype=jnp.dtype(np.float32))
        cos, sin = map(jnp.asarray, tables(1, 3, 5))
        return (jnp.tanh(rotate(y.reshape(1, 3, 2, 12), (cos, sin))) ** 2).sum()

    slopes = jax.jit(jax.grad(loss, (0, 1)))(x, scale)
    step = 1e-2
    ends = [jax.jit(loss)(x + sign * step * way, scale + sign * step * along) for sign in (1, -1)]
    expected = float(ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose((slopes[0] * way).sum() + (slopes[1] * along).sum(), expected, rtol=2e-3)
    many, scales = drawn((4, 3, 24), dtype, 4), drawn((4, 24), dtype, 5)
    one = partial(rms_norm, epsilon=1e-6, offset=0.0, dtype=jnp.dtype(dtype))
    close(jax.jit(jax.vmap(one, (0, None)))(many, scales[0]), normal(many, scales[0], 1e-6, 0.0), 4.0)
    close(jax.jit(jax.vmap(one))(many, scales), normal(many, scales[:, None], 1e-6, 0.0), 4.0)


def test_under_shard_map() -> None:
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
    x, scale = drawn((6, 24), np.float32), drawn((24,), np.float32, 1)
    one = partial(rms_norm, epsilon=1e-6, offset=0.0, dtype=x.dtype)
    run = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(rows, whole), out_specs=rows))
    expected = normal(x, scale, 1e-6, 0.0)
    close(run(x, scale), expected, expected)


def test_float16_is_xlas() -> None:
    x = jnp.asarray(drawn((2, 24), np.float16))
    run = jax.jit(lambda x: rms_norm(x, jnp.ones(24), epsilon=1e-6, offset=0.0, dtype=x.dtype))
    assert "bombus_norm" not in run.lower(x).as_text()
    np.testing.assert_allclose(
        np.asarray(run(x), np.float64), normal(np.asarray(x), np.ones(24), 1e-6, 0.0), rtol=1e-3, atol=1e-4
    )

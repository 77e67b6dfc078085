"""fp8_aware_dense and Dense."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bombus import Policy, fp8_aware_dense
from bombus.layers import Dense

KERNEL = np.arange(15, dtype=np.float32).reshape(3, 5) / 4 - 1
X = np.array([[1.0, -2.0, 0.5, 3.0, 1.0], [0.0, 1.0, 1.0, -1.0, 2.0]], np.float32)


def fp8(values: np.ndarray) -> jax.Array:
    """Codes of values that e4m3fn holds exactly."""
    codes = jnp.asarray(values).astype(jnp.float8_e4m3fn)
    np.testing.assert_array_equal(np.asarray(codes.astype(jnp.float32)), values)
    return codes


def test_without_scales_it_is_a_plain_dense() -> None:
    """Identity fallback: a float32 kernel, with and without bias."""
    np.testing.assert_allclose(fp8_aware_dense(X, KERNEL), X @ KERNEL.T, rtol=1e-6)
    bias = np.array([1.0, 2.0, 3.0], np.float32)
    np.testing.assert_allclose(fp8_aware_dense(X, KERNEL, bias=bias), X @ KERNEL.T + bias, rtol=1e-6)


def test_scales_multiply_per_tile_in_the_kernels_orientation() -> None:
    """3x5 in tiles of 2x2 has a 2x3 grid whose last row and column are partial; every scale is distinct."""
    kernel = np.round(KERNEL * 4) / 4
    scale = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], np.float32)
    expected = kernel.copy()
    for row in range(3):
        for column in range(5):
            expected[row, column] *= scale[row // 2, column // 2]
    found = fp8_aware_dense(X, fp8(kernel), scale, block_shape=(2, 2))
    np.testing.assert_allclose(found, X @ expected.T, rtol=1e-6)


def test_doubled_scales_double_the_result() -> None:
    """And scales of one change nothing."""
    kernel, one = fp8(np.round(KERNEL * 4) / 4), np.ones((1, 1), np.float32)
    plain = fp8_aware_dense(X, np.round(KERNEL * 4) / 4)
    np.testing.assert_allclose(fp8_aware_dense(X, kernel, one), plain, rtol=1e-6)
    np.testing.assert_allclose(fp8_aware_dense(X, kernel, 2 * one), 2 * plain, rtol=1e-6)


def test_types_in_and_out() -> None:
    """The result has the type of x, computed in `compute_type`."""
    x = jnp.full((1, 5), 1 / 3, jnp.float32)
    rounded = float(jnp.bfloat16(1 / 3))
    found = fp8_aware_dense(x, jnp.ones((1, 5), jnp.float32), compute_type=jnp.bfloat16)
    assert found.dtype == jnp.float32
    assert float(found[0, 0]) == pytest.approx(5 * rounded, rel=1e-6)
    assert fp8_aware_dense(x.astype(jnp.bfloat16), jnp.ones((1, 5), jnp.float32)).dtype == jnp.bfloat16
    assert fp8_aware_dense(x, jnp.ones((1, 5), jnp.float32), output_type=jnp.bfloat16).dtype == jnp.bfloat16


def test_codes_and_scales_belong_together() -> None:
    """Codes without scales, scales without codes and a grid of another shape are refused with what is wrong."""
    codes, scale = fp8(np.ones((3, 5), np.float32)), np.ones((1, 1), np.float32)
    with pytest.raises(TypeError, match="float8_e4m3fn kernel needs scale_inv"):
        fp8_aware_dense(X, codes)
    with pytest.raises(TypeError, match="float32 kernel takes no scale_inv"):
        fp8_aware_dense(X, KERNEL, scale)
    with pytest.raises(ValueError, match=r"kernel \(3, 5\) in tiles of \(2, 2\) must be \(2, 3\), not \(3, 2\)"):
        fp8_aware_dense(X, codes, np.ones((3, 2), np.float32), block_shape=(2, 2))


def test_dense_follows_its_policies() -> None:
    """compute rounds the inputs, output is returned, a bias is added in its own compute type."""
    layer = Dense(5, 3, bias=True)
    layer.bias.set_value(jnp.array([1.0, 2.0, 1 / 3]))
    third = jnp.full((1, 5), 1 / 3, jnp.float32)
    layer.kernel.set_value(jnp.ones((3, 5), jnp.float32))
    exact = layer(third)
    np.testing.assert_allclose(exact[0], 5 / 3 + np.array([1.0, 2.0, 1 / 3]), rtol=1e-6)
    policy = Policy(compute={"kernel": "bf16", "bias": "bf16"}, output="f16")
    layer.set_policies({"kernel": policy, "bias": policy})
    rounded = float(jnp.bfloat16(1 / 3))
    found = layer(third)
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found[0], 5 * rounded + np.array([1.0, 2.0, rounded]), rtol=1e-3)
    assert abs(float(found[0, 0]) - float(exact[0, 0])) > 1e-3

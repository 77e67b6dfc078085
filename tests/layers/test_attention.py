"""Attention, rotary positions, norm and cache against float64 NumPy."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from bombus.layers import Llama3Scaling, RMSNorm, Rotary, attend, empty_cache, rotate
from bombus.layers.cache import heads_first, write
from bombus.layers.feed_forward import ACTIVATIONS

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 2), (4, 4), (3, 1)])
def test_attend_shares_key_value_heads(num_heads: int, num_kv_heads: int) -> None:
    """Query head n reads key/value head n // G, in every row, under the row's own mask."""
    batch, tokens, slots, size = 2, 3, 5, 8
    q = RANDOM.standard_normal((batch, tokens, num_heads, size)).astype(np.float32)
    k, v = (RANDOM.standard_normal((batch, slots, num_kv_heads, size)).astype(np.float32) for _ in "kv")
    mask = RANDOM.random((batch, tokens, slots)) < 0.7
    mask[..., 0] = True
    found = np.asarray(attend(q, heads_first(jnp.asarray(k)), heads_first(jnp.asarray(v)), jnp.asarray(mask)))
    for row in range(batch):
        for head in range(num_heads):
            shared = head // (num_heads // num_kv_heads)
            scores = q[row, :, head].astype(np.float64) @ k[row, :, shared].T / math.sqrt(size)
            weights = np.exp(scores) * mask[row]
            expected = weights / weights.sum(-1, keepdims=True) @ v[row, :, shared]
            np.testing.assert_allclose(found[row, :, head], expected, atol=2e-6)


def test_a_query_without_keys_is_finite() -> None:
    """Padding must not spread NaN."""
    q = jnp.ones((1, 1, 2, 4), jnp.float32)
    kv = jnp.ones((2, 3, 4), jnp.float32)
    assert np.isfinite(np.asarray(attend(q, kv, kv, jnp.zeros((1, 1, 3), jnp.bool_)))).all()


def test_write_puts_tokens_into_their_slots() -> None:
    """Two tokens at slot 3 of every row and head; the rest stays."""
    cache = empty_cache(1, 2, 6, num_kv_heads=2, head_dim=3, dtype=jnp.dtype(jnp.bfloat16))
    assert cache.capacity == 6
    new = RANDOM.standard_normal((2, 2, 2, 3)).astype(np.float32)
    found = np.asarray(write(cache.keys[0], heads_first(jnp.asarray(new)), jnp.int32(3)).astype(jnp.float32))
    expected = np.zeros((2, 2, 6, 3), np.float32)
    expected[:, :, 3:5] = new.transpose(0, 2, 1, 3).astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found.reshape(2, 2, 6, 3), expected)


def test_rotate_turns_each_pair_by_its_angle() -> None:
    """As complex numbers: (x_i + j x_{i+H/2}) e^{j p f_i}, for positions of each row."""
    rotary = Rotary(theta=100.0)
    x = RANDOM.standard_normal((2, 3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2], [5, 100, 7]], np.int32)
    found = np.asarray(rotate(jnp.asarray(x), rotary.tables(jnp.asarray(positions), 8)))
    frequencies = 100.0 ** (-np.arange(4) / 4)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * positions[..., None, None] * frequencies)
    np.testing.assert_allclose(found, np.concatenate((turned.real, turned.imag), -1), atol=2e-5)


def test_llama3_frequencies() -> None:
    """Fast pairs stay, slow pairs are 8 times slower, pairs between are blended (Llama 3.1's published rule)."""
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    plain, scaled = Rotary(theta=500000.0).frequencies(128), Rotary(theta=500000.0, scaling=scaling).frequencies(128)
    turns = 8192 * plain / (2 * math.pi)
    np.testing.assert_allclose(scaled[turns >= 4], plain[turns >= 4], rtol=1e-6)
    np.testing.assert_allclose(scaled[turns <= 1], plain[turns <= 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.sum() >= 3
    share = (turns[between] - 1) / 3
    np.testing.assert_allclose(scaled[between], (1 - share) * plain[between] / 8 + share * plain[between], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norm_is_float32_and_rounded_once(dtype: type) -> None:
    """The statistics of a bf16 input are those of float64, to bf16's rounding."""
    x = (RANDOM.standard_normal((3, 64)) * 50).astype(dtype)
    layer = RMSNorm(64, epsilon=1e-5)
    layer.scale.set_value(jnp.asarray(RANDOM.standard_normal(64).astype(np.float32)))
    exact = x.astype(np.float64)
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(layer.scale.get_value())
    found = layer(jnp.asarray(x))
    assert found.dtype == dtype
    tolerance = 2e-6 if dtype == jnp.float32 else 2.0**-8
    np.testing.assert_allclose(np.asarray(found.astype(jnp.float32)), expected, rtol=tolerance, atol=1e-6)


def test_activations() -> None:
    """Values at two points, from their definitions."""
    x = 0.7
    tanh = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    expected = {
        "silu": x / (1 + math.exp(-x)),
        "swish": x / (1 + math.exp(-x)),
        "gelu": 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
        "gelu_new": tanh,
        "gelu_pytorch_tanh": tanh,
        "relu": x,
    }
    assert {name: pytest.approx(float(run(jnp.float32(x))), abs=1e-6) for name, run in ACTIVATIONS.items()} == expected
    assert float(ACTIVATIONS["relu"](jnp.float32(-1.0))) == 0.0

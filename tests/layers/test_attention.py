"""Attention, rotary positions, norm and cache against float64 NumPy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_attention import attention, fill

import bombus
from bombus.kernels.native_write import heads_first
from bombus.layers import (
    Attention,
    AttentionContext,
    CacheShape,
    Llama3Scaling,
    RMSNorm,
    Rotary,
    attend,
    empty_cache,
    rotate,
)
from bombus.layers.feed_forward import ACTIVATIONS
from bombus.policies.formats import find_format

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


D, N, K, H, T, EPSILON = 20, 6, 2, 8, 9, 0.02
# What the layer is told, and what the definition is.
OPTIONS: dict[str, tuple[dict, dict]] = {
    "plain": ({}, {}),
    "biases": ({"bias": True, "output_bias": True}, {}),
    "window": ({"window": 3}, {"window": 3}),
    "window of one": ({"window": 1}, {"window": 1}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "sinks": ({"sinks": True}, {}),
    "scale": ({"scale": 0.7}, {"scale": 0.7}),
    "rotary": ({"rotary": Rotary(theta=31.0)}, {"rotary": (31.0, 8)}),
    "half rotary": ({"rotary": Rotary(theta=31.0, fraction=0.5)}, {"rotary": (31.0, 4)}),
    "interleaved": (
        {"rotary": Rotary(theta=31.0), "interleaved": True},
        {"rotary": (31.0, 8), "interleaved": True},
    ),
    "norms over heads": (
        {"query_norm": RMSNorm(H, epsilon=EPSILON), "key_norm": RMSNorm(H, epsilon=EPSILON)},
        {"norm": ("head", EPSILON)},
    ),
    "norms over all": (
        {
            "query_norm": RMSNorm(N * H, epsilon=EPSILON),
            "key_norm": RMSNorm(K * H, epsilon=EPSILON),
            "norm_over": "all",
        },
        {"norm": ("all", EPSILON)},
    ),
    "all at once": (
        {
            "rotary": Rotary(theta=31.0, fraction=0.75),
            "window": 4,
            "softcap": 2.5,
            "sinks": True,
            "scale": 0.9,
            "query_norm": RMSNorm(H, epsilon=EPSILON),
            "key_norm": RMSNorm(H, epsilon=EPSILON),
            "bias": True,
        },
        {"rotary": (31.0, 6), "window": 4, "softcap": 2.5, "scale": 0.9, "norm": ("head", EPSILON)},
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_its_definition(option: str) -> None:
    """Whole, padded on the left, and through a cache in steps of 4, 1 and the rest."""
    told, defined = OPTIONS[option]
    layer = Attention(D, N, K, H, **{"rotary": None, **told})
    values = fill(layer)
    x = RANDOM.standard_normal((2, T, D)).astype(np.float32)
    expected = [attention(values, row.astype(np.float64), heads=(N, K), head_dim=H, **defined) for row in x]
    for found in jax.jit(lambda x: _in_three_ways(layer, x))(x):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def _in_three_ways(layer: Attention, x: jax.Array) -> tuple[jax.Array, ...]:
    positions = jnp.broadcast_to(jnp.arange(T), (2, T))
    context = AttentionContext(positions_BT=positions, keys_BS=jnp.ones((2, T), jnp.bool_))
    whole, nothing = layer(x, context)
    assert nothing is None

    keys = jnp.broadcast_to(jnp.arange(T + 3) >= 3, (2, T + 3))
    context = AttentionContext(positions_BT=jnp.maximum(jnp.cumsum(keys, 1) - 1, 0), keys_BS=keys)
    padded = layer(jnp.concatenate((jnp.ones((2, 3, D), x.dtype), x), axis=1), context)[0][:, 3:]

    cached = empty_cache([None], 2, T + 2, shape=CacheShape(K, H, H), dtype=x.dtype).layers[0]
    start, parts = 0, []
    for size in (4, 1, T - 5):
        keys = jnp.broadcast_to(jnp.arange(T + 2) < start + size, (2, T + 2))
        now = slice(start, start + size)
        context = AttentionContext(positions_BT=positions[:, now], keys_BS=keys, length=jnp.int32(start))
        part, cached = layer(x[:, now], context, cached)
        parts.append(part)
        start += size
    return whole, padded, jnp.concatenate(parts, 1)


def test_tables_and_masks_are_made_once() -> None:
    """For each kind of rotary positions and each window, whichever layer asks."""
    context = AttentionContext(positions_BT=jnp.arange(4)[None], keys_BS=jnp.ones((1, 4), jnp.bool_))
    first, second = Rotary(theta=10.0), Rotary(theta=20.0)
    assert context.tables(first, 8)[0] is context.tables(Rotary(theta=10.0), 8)[0]
    assert context.tables(first, 8)[0] is not context.tables(second, 8)[0]
    assert context.tables(first, 8)[0].shape != context.tables(first, 4)[0].shape
    assert context.mask(2) is context.mask(2)
    assert context.mask(2) is not context.mask()
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(context.mask(2)[0], np.asarray(expected, bool))


def test_sinks_are_float32_and_follow_their_policy() -> None:
    """A sink is rounded to what its policy computes in, and the softmax is of float32 also where x is bfloat16."""
    layer = Attention(D, N, K, H, rotary=None, sinks=True)
    fill(layer)
    x = jnp.asarray(RANDOM.standard_normal((1, T, D)), jnp.float32)

    def call(x: jax.Array) -> jax.Array:
        context = AttentionContext(positions_BT=jnp.arange(T)[None], keys_BS=jnp.ones((1, T), jnp.bool_))
        return layer(x, context)[0]

    assert jax.eval_shape(call, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    layer.store_as("sinks", find_format("bf16"))
    assert layer.sinks.get_value().dtype == jnp.bfloat16

    def run(sinks: jax.Array, compute: str | None) -> jax.Array:
        layer.sinks.set_value(sinks)
        layer.set_policies({"sinks": bombus.create_policy(compute=compute)})
        return jax.jit(lambda x: call(x))(x)  # a function of its own: traced again

    third = jnp.full((N,), 1 / 3, jnp.float32)
    exact, computed = run(third, None), run(third, "bf16")
    rounded = run(third.astype(jnp.bfloat16).astype(jnp.float32), None)
    assert np.abs(exact - rounded).max() > 0
    np.testing.assert_array_equal(computed, rounded)


def test_a_query_without_keys_is_finite() -> None:
    """Padding must not spread NaN."""
    q = jnp.ones((1, 1, 2, 4), jnp.float32)
    kv = jnp.ones((2, 3, 4), jnp.float32)
    assert np.isfinite(np.asarray(attend(q, kv, kv, jnp.zeros((1, 1, 3), jnp.bool_)))).all()


def test_write_puts_tokens_into_their_slots() -> None:
    """Two tokens at slot 3 of every row and head; the rest stays."""
    cache = empty_cache([None], 2, 6, shape=CacheShape(2, 3, 4), dtype=jnp.dtype(jnp.bfloat16))
    keys, values = cache.layers[0].keys, cache.layers[0].values
    assert values.codes.shape == (4, 6, 4)
    assert cache.capacity == 6
    new = RANDOM.standard_normal((2, 2, 2, 3)).astype(np.float32)
    written = keys.written(keys.encoded(heads_first(jnp.asarray(new))), jnp.int32(3))
    found = np.asarray(written.codes.astype(jnp.float32))
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


def test_activations() -> None:
    """Values at a point on either side, from their definitions."""
    for x in (0.7, -1.3):
        exact = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
        tanh = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        silu = x / (1 + math.exp(-x))
        expected = {
            "silu": silu,
            "swish": silu,
            "gelu": exact,
            "gelu_python": exact,
            **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), tanh),
            "quick_gelu": x / (1 + math.exp(-1.702 * x)),
            "relu": max(x, 0.0),
            "relu2": max(x, 0.0) ** 2,
            "relu6": min(max(x, 0.0), 6.0),
            "leaky_relu": max(x, 0.01 * x),
            "linear": x,
            "tanh": math.tanh(x),
            "hardswish": x * min(max(x + 3, 0), 6) / 6,
            "sigmoid": 1 / (1 + math.exp(-x)),
            "mish": x * math.tanh(math.log1p(math.exp(x))),
        }
        found = {name: pytest.approx(float(run(jnp.float32(x))), abs=1e-6) for name, run in ACTIVATIONS.items()}
        assert found == expected

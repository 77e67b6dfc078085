"""Latent attention against float64 NumPy of its definition, in which keys and values are written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy_attention import fill, latent_attention

from bombus.kernels import dequantize, quantize
from bombus.layers import AttentionContext, CacheShape, LatentAttention, Rotary, empty_cache
from bombus.policies.formats import find_format

T = 9
SIZES: dict[str, Any] = {
    "num_heads": 6,
    "nope_dim": 20,
    "rope_dim": 8,
    "value_dim": 26,
    "key_value_rank": 140,
    "epsilon": 0.02,
    "theta": 31.0,
    "scale": 28**-0.5,
}
X = np.random.default_rng(1).standard_normal((2, T, 20)).astype(np.float32)


def _layer(*, query_rank: int | None = None, bias: bool = False, scale: float | None = None) -> LatentAttention:
    sizes = {name: SIZES[name] for name in ("nope_dim", "rope_dim", "value_dim", "key_value_rank")}
    rotary = Rotary(theta=SIZES["theta"])
    return LatentAttention(
        20,
        SIZES["num_heads"],
        query_rank=query_rank,
        **sizes,
        rotary=rotary,
        norm_epsilon=SIZES["epsilon"],
        bias=bias,
        scale=scale,
    )


def _whole(layer: LatentAttention, x: np.ndarray) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(T), (2, T))
    context = AttentionContext(positions_BT=positions, keys_BS=jnp.ones((2, T), jnp.bool_))
    return jax.jit(lambda x: layer(x, context)[0])(x)


def _expected(values: dict[str, np.ndarray], **changes: Any) -> np.ndarray:
    return np.stack([latent_attention(values, row, SIZES | changes) for row in X.astype(np.float64)])


@pytest.mark.parametrize("query_rank", [None, 12])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [None, 0.4])
def test_latent_attention_is_its_definition(query_rank: int | None, bias: bool, scale: float | None) -> None:
    """With and without a rank for queries, biases and a scale."""
    layer = _layer(query_rank=query_rank, bias=bias, scale=scale)
    values = fill(layer)
    queries = {"query"} if query_rank is None else {"query_down", "query_norm", "query_up"}
    rest = {"key_value_down", "key_value_norm", "key_value_up", "output"}
    assert {path.partition(".")[0] for path in values} == queries | rest
    with_bias = {"key_value_down", "output"} | ({"query_down"} if query_rank else set())
    assert {path.removesuffix(".bias") for path in values if path.endswith(".bias")} == (with_bias if bias else set())
    changes = {} if scale is None else {"scale": scale}
    expected = _expected(values, **changes)
    np.testing.assert_allclose(_whole(layer, X), expected, atol=1e-5 * np.abs(expected).max())


def test_the_cache_holds_latents_alone_and_decoding_equals_prefill() -> None:
    """One head of rank + rotary dimensions a token and no values; steps of 4, 1 and the rest; slots that are free."""
    layer = _layer(query_rank=12)
    expected = _expected(fill(layer))
    width = SIZES["key_value_rank"] + SIZES["rope_dim"]

    @jax.jit
    def decode(x: jax.Array) -> Any:
        shape = CacheShape(num_kv_heads=1, key_dim=width, value_dim=0)
        cached: Any = empty_cache([None], 2, T + 3, shape=shape, dtype=jnp.dtype(jnp.float32)).layers[0]
        start, parts = 0, []
        for size in (4, 1, T - 5):
            positions = jnp.broadcast_to(jnp.arange(start, start + size), (2, size))
            keys = jnp.broadcast_to(jnp.arange(T + 3) < start + size, (2, T + 3))
            context = AttentionContext(positions_BT=positions, keys_BS=keys, length=jnp.int32(start))
            part, cached = layer(x[:, start : start + size], context, cached)
            parts.append(part)
            start += size
        return jnp.concatenate(parts, 1), cached

    found, cached = decode(X)
    assert (cached.keys.codes.shape, cached.values) == ((2, T + 3, width), None)
    assert not np.asarray(cached.keys.codes[:, T:]).any()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("tokens", [1, 2, T])
def test_it_computes_in_bf16(tokens: int) -> None:
    """XLA:CPU has products of bfloat16 for some orders of the dimensions only."""
    layer = _layer(query_rank=12)
    fill(layer)

    def run(x: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(tokens), (2, tokens))
        context = AttentionContext(positions_BT=positions, keys_BS=jnp.ones((2, tokens), jnp.bool_))
        return layer(x, context)[0]

    wide, narrow = (
        np.asarray(jax.jit(run)(jnp.asarray(X[:, :tokens], dtype)), np.float32) for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_allclose(narrow, wide, atol=0.05 * np.abs(wide).max())


@pytest.mark.parametrize("format", ["f8_e4m3fn", "int4", "mxfp4", "bf16"])
def test_key_value_up_in_every_kind_of_storage(format: str) -> None:
    """Values are those of the stored weight; 6 * 46 rows of 140 are several tiles and partial ones."""
    layer = _layer()
    values = fill(layer)
    stored = quantize(jnp.asarray(values["key_value_up.kernel"], jnp.float32), find_format(format))
    values["key_value_up.kernel"] = np.asarray(dequantize(stored, jnp.dtype(jnp.float32)), np.float64)
    expected = _expected(values)
    layer.key_value_up.store_as("kernel", find_format(format))
    layer.key_value_up.kernel.set_value(stored.codes)
    for name, part in stored.parts.items():
        getattr(layer.key_value_up, name).set_value(part)
    np.testing.assert_allclose(_whole(layer, X), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("format", "compute"), [("f8_e4m3fn", jnp.bfloat16), ("f32", jnp.float32)])
def test_a_loop_holds_no_copy_of_the_weights(format: str, compute: Any) -> None:
    """Of four layers in a loop: temporaries below two of their `key_value_up`, converted or taken apart by rows."""
    layers, width, steps = 4, 256, 4

    def build() -> LatentAttention:
        return LatentAttention(
            width,
            8,
            query_rank=None,
            key_value_rank=512,
            nope_dim=64,
            rope_dim=16,
            value_dim=64,
            rotary=Rotary(theta=100.0),
            norm_epsilon=1e-6,
        )

    stored = find_format(format)
    built = [build() for _ in range(layers)]
    for layer in built:
        layer.key_value_up.store_as("kernel", stored)
    graphs, states = zip(*(nnx.split(layer) for layer in built), strict=True)

    def run(states: Any, x: jax.Array, cached: Any) -> jax.Array:
        modules = [nnx.merge(graph, state) for graph, state in zip(graphs, states, strict=True)]

        def step(index: jax.Array, carry: Any) -> Any:
            x, cached = carry
            keys = (jnp.arange(steps) <= index)[None]
            context = AttentionContext(positions_BT=index[None, None], keys_BS=keys, length=index)
            new = []
            for module, own in zip(modules, cached, strict=True):
                y, own = module(x, context, own)
                x, new = x + y, [*new, own]
            return x, tuple(new)

        return jax.lax.fori_loop(0, steps, step, (x, cached))[0]

    shape = CacheShape(num_kv_heads=1, key_dim=528, value_dim=0)
    cached = jax.eval_shape(lambda: empty_cache([None] * layers, 1, steps, shape=shape, dtype=compute).layers)
    program = jax.jit(run).lower(states, jax.ShapeDtypeStruct((1, 1, width), compute), cached).compile()
    one = 8 * 128 * 512 * jnp.dtype(compute).itemsize
    assert program.memory_analysis().temp_size_in_bytes < 2 * one

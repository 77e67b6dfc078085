"""Attention over every kind of cache, in steps of any size, against float64 NumPy that goes query by query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_cache import cached_attention, stored_values

from bombus.layers import AttentionContext, Cache, CacheFormat, CacheShape, LayerCache, attend_to, empty_cache

RANDOM = np.random.default_rng(3)
B, T, H, V, SPARE = 2, 11, 6, 10, 2
PADDING = 3  # of the second row, on the left
REAL = np.arange(T) >= np.array([[0], [PADDING]])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of cache, and the numbers of tokens of the calls that fill it."""

    heads: tuple[int, int] = (4, 2)
    window: int | None = None
    lookback: int = 0
    steps: tuple[int, ...] = (5, 1, 4, 1)
    format: CacheFormat = field(default_factory=CacheFormat)
    slots: int = T + SPARE


LARGEST = (1.4, 0.9, 2.2)  # what codes of fixed scales reach, by head; less than some values
CASES = {
    "plain": Case(),
    "one head": Case(heads=(3, 1), format=CacheFormat(keys="int8", values="int8")),
    "as many heads": Case(heads=(3, 3), format=CacheFormat(keys="int8", values="int4")),
    "without zero points": Case(format=CacheFormat(keys="int4", values="int8", zero_points=False)),
    "float8": Case(format=CacheFormat(keys="f8_e4m3fn", values="f8_e4m3fn")),
    "keys alone": Case(format=CacheFormat(keys="int4")),
    "values alone, keys in bf16": Case(format=CacheFormat(keys="bf16", values="int4")),
    "scales of heads": Case(
        heads=(6, 3),
        format=CacheFormat(keys="int8", values="int4", scales="head", head_scales=((LARGEST, LARGEST[::-1]),)),
    ),
    "scales of heads in float8": Case(
        heads=(6, 3),
        window=4,
        slots=4,
        format=CacheFormat(keys="f8_e4m3fn", scales="head", head_scales=((LARGEST, LARGEST),)),
    ),
    "recent": Case(format=CacheFormat(keys="int4", values="int4", recent=3)),
    "recent of one": Case(format=CacheFormat(keys="int4", values="int4", recent=1), lookback=2),
    "ring": Case(window=4, slots=4),
    "ring, all at once": Case(window=4, steps=(T,), slots=4),
    "ring, one by one": Case(window=4, steps=(1,) * T, slots=4),
    "ring of one": Case(window=1, slots=1),
    "ring with lookback": Case(window=4, lookback=3, slots=7),
    "window that the lookback fills up": Case(window=T, lookback=5),
    "quantized ring": Case(window=5, format=CacheFormat(keys="int8", values="int4"), slots=5),
    "quantized ring with recent": Case(window=6, format=CacheFormat(keys="int4", values="int8", recent=2), slots=6),
    "recent as long as the window": Case(window=4, format=CacheFormat(keys="int4", recent=4), slots=4),
}


def _random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def _empty(case: Case) -> Cache:
    return empty_cache(
        [case.window],
        B,
        T + SPARE,
        shape=CacheShape(case.heads[1], H, V),
        dtype=jnp.dtype(jnp.float32),
        format=case.format,
        lookback=case.lookback,
    )


def _fill(case: Case, arrays: Any, real: jax.Array) -> tuple[jax.Array, LayerCache]:
    layer, parts, start = _empty(case).layers[0], [], 0
    for size in case.steps:
        now = slice(start, start + size)
        keys_BS = jnp.pad(real, ((0, 0), (0, SPARE))) & (jnp.arange(T + SPARE) < start + size)
        positions = jnp.zeros((B, size), jnp.int32)
        context = AttentionContext(positions_BT=positions, keys_BS=keys_BS, length=jnp.int32(start))
        q, k, v = (array[:, now] for array in arrays)
        layer, sources = layer.updated(k, v, context, case.window)
        parts.append(attend_to(q, sources))
        start += size
    return jnp.concatenate(parts, 1), layer


@pytest.mark.parametrize("name", CASES)
def test_every_query_reads_what_the_cache_says(name: str) -> None:
    """Whatever the sizes of the steps; padding on the left is never read."""
    case = CASES[name]
    query_heads, heads = case.heads
    q, k, v = _random(B, T, query_heads, H), _random(B, T, heads, H), _random(B, T, heads, V)
    fixed: Any = (None, None)
    if case.format.scales == "head":
        fixed = tuple(np.asarray(largest) for largest in case.format.head_scales[0])
    kept = tuple(
        stored_values(array, format, zero_points=case.format.zero_points, fixed=largest)
        for array, format, largest in zip((k, v), (case.format.keys, case.format.values), fixed, strict=True)
    )
    recent = case.format.recent
    expected = cached_attention(q, (k, v), kept, REAL, window=case.window, recent=recent)
    found, layer = jax.jit(lambda arrays, real: _fill(case, arrays, real))((q, k, v), REAL)
    assert layer.keys.slots == layer.values.slots == case.slots
    # Scores of bf16 keys are products with bf16 queries; NumPy does not round these.
    bound = 1e-2 if case.format.keys == "bf16" else 2e-5
    np.testing.assert_allclose(np.asarray(found)[REAL], expected[REAL], atol=bound)
    if case.format.is_quantized and recent < (case.window or T):
        exact = cached_attention(q, (k, v), (k, v), REAL, window=case.window)
        assert np.abs(found[REAL] - exact[REAL]).max() > 1e-3


def test_layers_of_one_call_get_masks_of_their_own() -> None:
    """By window, by what is left out, and by the size of their ring; the query is of slot 4."""
    positions, keys = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 6), jnp.bool_)
    context = AttentionContext(positions_BT=positions, keys_BS=keys, length=jnp.int32(4))
    masks = [context.mask(), context.mask(skip=2), context.mask(3), context.mask(3, skip=1)]
    masks += [context.mask(3, place="after", size=size) for size in (3, 4)]
    found = [np.flatnonzero(mask[0, 0]).tolist() for mask in masks]
    assert found == [[0, 1, 2, 3, 4], [0, 1, 2], [2, 3, 4], [2, 3], [0, 1, 2], [0, 2, 3]]


def test_parts_of_a_quantized_cache() -> None:
    """Codes of the format, scales of each slot or head, zero points of integers, a recent part in full precision."""
    layer = _empty(CASES["quantized ring with recent"]).layers[0]
    assert (layer.keys.codes.shape, layer.keys.codes.dtype) == ((4, 6, 3), jnp.uint8)
    assert (layer.values.codes.shape, layer.values.codes.dtype) == ((4, 6, V), jnp.int8)
    assert layer.keys.scale.shape == layer.values.zero.shape == (4, 6)
    assert (layer.recent_keys.codes.shape, layer.recent_values.codes.shape) == ((4, 2, H), (4, 2, V))
    assert layer.recent_keys.codes.dtype == jnp.float32
    longer = _empty(CASES["recent of one"]).layers[0]
    assert (longer.keys.slots, longer.recent_keys.slots) == (T + SPARE, 3)
    fixed = _empty(CASES["scales of heads"]).layers[0]
    assert fixed.keys.zero is None
    np.testing.assert_allclose(fixed.keys.scale, np.tile(LARGEST, B) / 127, rtol=1e-6)
    np.testing.assert_allclose(fixed.values.scale, np.tile(LARGEST[::-1], B) / 7, rtol=1e-6)
    # A query reads nothing but recent slots of this one.
    whole = _empty(CASES["recent as long as the window"]).layers[0]
    assert (whole.keys.scale, whole.recent_keys, whole.keys.codes.dtype) == (None, None, jnp.float32)


def test_bf16_products_of_codes_are_accumulated_in_float32() -> None:
    """Of a model that computes in bf16; the result is in its type."""
    case = Case(heads=(3, 3), format=CacheFormat(keys="int8", values="int8"))
    arrays = [_random(B, T, 3, size) for size in (H, H, V)]
    narrow = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    wide = [np.asarray(array.astype(jnp.float32)) for array in narrow]
    kept = (stored_values(wide[1], "int8"), stored_values(wide[2], "int8"))
    expected = cached_attention(wide[0], (wide[1], wide[2]), kept, REAL)
    found = jax.jit(lambda arrays, real: _fill(case, arrays, real))(narrow, REAL)[0]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found.astype(jnp.float32))[REAL], expected[REAL], atol=0.03)

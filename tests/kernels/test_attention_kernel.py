"""Attention by the C++ kernels against float64, in every format and on every instruction set of this machine."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from attention_cases import TYPES, Drawn, drawn, exact_attention
from native_weights import KERNELS, REASON

from bombus.kernels import native
from bombus.kernels.native_attention import ReadVectors, attention, attention_runs
from bombus.layers import attend_to
from bombus.layers.layer_cache import Source
from bombus.layers.stored import Stored

pytestmark = pytest.mark.skipif(not KERNELS, reason=REASON)
QUERIES: tuple[Any, ...] = (np.float32, ml_dtypes.bfloat16, np.float16)
# Of the largest result: float32's rounding, and that of the type that is returned.
BOUNDS = {"float32": 3e-6, "bfloat16": 4e-3, "float16": 5e-4}


def queries(batch: int, tokens: int, heads: int, size: int, random: np.random.Generator, dtype: Any) -> np.ndarray:
    return (2 * random.standard_normal((batch, tokens, heads, size))).astype(dtype)


def assert_attention(q: np.ndarray, sources: list[Drawn], case: Any = "", **options: Any) -> None:
    """Every instruction set comes to what float64 comes to."""
    sinks = options.pop("sinks", None)
    options = {"scale": q.shape[-1] ** -0.5, "softcap": None, **options}
    expected = exact_attention(q, sources, sinks=sinks, **options)
    run = jax.jit(partial(attention, **options))
    for kernels in KERNELS:
        with native.using_kernels(kernels):
            found = np.asarray(run(q, [source.arrays for source in sources], sinks))
        assert (found.dtype, found.shape) == (q.dtype, expected.shape)
        atol = BOUNDS[str(q.dtype)] * max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=atol, err_msg=f"{kernels} {case}")


@pytest.mark.parametrize("values", TYPES)
@pytest.mark.parametrize("keys", TYPES)
def test_every_format(keys: str, values: str) -> None:
    """Keys and values in formats of their own, of which some are scaled by head and some have zero points."""
    random = np.random.default_rng([*keys.encode(), *values.encode()])
    for index, (group, slots, fixed, zero) in enumerate([(2, 130, False, True), (7, 67, True, False)]):
        mask = random.random((2, 1, slots)) < 0.7
        source = drawn((keys, values), (4, slots, 64), mask, random, zero=zero, fixed=fixed)
        assert_attention(queries(2, 1, 2 * group, 64, random, QUERIES[index]), [source], (group, slots))


@pytest.mark.parametrize("size", [2, 16, 24, 64, 80, 96, 128, 192, 256, 576])
def test_every_size(size: int) -> None:
    """Whole blocks of the decoders and parts of one, and values of another size."""
    random = np.random.default_rng(size)
    for format in TYPES:
        source = drawn(
            (format, format), (2, 33, size), np.ones((1, 1, 33), bool), random, value_size=size // 2 * 2 + 16
        )
        assert_attention(queries(1, 1, 6, size, random, np.float32), [source], format)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 16, 131])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 16])
def test_tokens_and_heads(tokens: int, group: int) -> None:
    """Each token sees slots of its own, and some none."""
    random = np.random.default_rng([tokens, group])
    for format in ("bf16", "int8"):
        mask = random.random((3, tokens, 70)) < np.linspace(0, 1, tokens + 1)[:tokens, None]
        source = drawn((format, format), (6, 70, 32), mask, random)
        assert_attention(queries(3, tokens, 2 * group, 32, random, np.float32), [source], format)


@pytest.mark.parametrize("slots", [1, 3, 63, 64, 65, 127, 128, 129, 1000])
def test_slots_and_several_sources(slots: int) -> None:
    """Sources of different lengths and formats, windows in the middle of them, and one that nobody sees."""
    random = np.random.default_rng(slots)
    at = np.arange(slots)
    window = np.broadcast_to((at >= slots // 3) & (at <= slots // 2), (2, 2, slots))
    sources = [
        drawn(("int4", "int8"), (2, slots, 64), window, random, zero=True),
        drawn(("bf16", "bf16"), (2, 17, 64), random.random((2, 2, 17)) < 0.5, random),
        drawn(("f8_e4m3fn", "f32"), (2, 40, 64), np.zeros((2, 2, 40), bool), random),
    ]
    for count in (1, 2, 3):
        assert_attention(queries(2, 2, 3, 64, random, np.float32), sources[:count], count)


@pytest.mark.parametrize("softcap", [None, 1e-3, 2.0, 50.0])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_options(softcap: float | None, has_sinks: bool) -> None:
    random = np.random.default_rng(7)
    source = drawn(("f32", "f32"), (4, 90, 32), random.random((2, 1, 90)) < 0.5, random)
    q = queries(2, 1, 6, 32, random, np.float32)
    sinks = 3 * random.standard_normal(6).astype(np.float32) if has_sinks else None
    for scale in (0.01, 1.0, 5.0):
        bound = scale if softcap is None else min(scale, softcap)
        # Scores of hundreds carry float32's rounding into the exponent.
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(BOUNDS, "float32", 3e-6 * max(1.0, 20 * bound))
            assert_attention(q, [source], (softcap, scale), softcap=softcap, scale=scale, sinks=sinks)


def test_largest_scores_come_late_and_far_apart() -> None:
    """Each block of slots is larger than all before by more than exp can tell; and none, or all, underflow."""
    random = np.random.default_rng(3)
    source = drawn(("f32", "f32"), (1, 256, 4), np.ones((1, 1, 256), bool), random)
    for growth in (0.5, 30.0, -30.0):
        keys = np.zeros((1, 256, 4), np.float32)
        keys[..., 0] = growth * (np.arange(256) // 32) - 1000
        changed = Drawn(
            arrays=source.arrays._replace(keys=source.arrays.keys._replace(codes=keys)),
            keys=keys.astype(np.float64),
            values=source.values,
        )
        q = np.ones((1, 1, 2, 4), np.float32)
        assert_attention(q, [changed], growth, scale=1.0)


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    """With sinks and without; and among others that see something."""
    random = np.random.default_rng(4)
    mask = np.zeros((2, 2, 50), bool)
    mask[1, 1, 7] = True
    source = drawn(("bf16", "int8"), (2, 50, 16), mask, random)
    q = queries(2, 2, 4, 16, random, np.float32)
    for sinks in (None, np.ones(4, np.float32)):
        assert_attention(q, [source], sinks=sinks)
        found = np.asarray(attention(q, [source.arrays], sinks, scale=1.0, softcap=None))
        assert not found[0].any()
        assert not found[1, 0].any()
        assert found[1, 1].all()


@pytest.mark.parametrize("format", TYPES)
def test_slots_that_are_not_seen_may_hold_anything(format: str) -> None:
    """NaN and infinities in codes, scales and zero points of free slots change nothing."""
    random = np.random.default_rng(5)
    mask = random.random((2, 1, 150)) < 0.4
    source = drawn((format, format), (4, 150, 64), mask, random, zero=format not in ("f32", "bf16", "f16"))
    free = ~np.repeat(mask[:, 0], 2, axis=0)

    def spoilt(array: Any) -> Any:
        if array is None:
            return None
        array = np.array(array)
        array[free] = (
            np.full((), 0xFF, np.uint8).view(np.int8) if array.dtype.kind in "iu" else np.array(np.nan, array.dtype)
        )
        return array

    arrays = source.arrays
    both = [type(side)(*(spoilt(part) for part in side)) for side in (arrays.keys, arrays.values)]
    q = queries(2, 1, 4, 64, random, np.float32)
    assert_attention(q, [Drawn(arrays=ReadVectors(*both, mask), keys=source.keys, values=source.values)])


@pytest.mark.parametrize("format", ["f32", "bf16", "f16", "f8_e4m3fn"])
@pytest.mark.parametrize("heads", [2, 40])
def test_what_is_no_number_shows(format: str, heads: int) -> None:
    """In a key everywhere in its row; in a value in that dimension; and nowhere else."""
    random = np.random.default_rng(6)
    for side, clean in (("keys", np.s_[:0]), ("values", np.s_[:])):
        source = drawn((format, format), (2, 70, 64), np.ones((2, 1, 70), bool), random)
        vectors = getattr(source.arrays, side)
        codes = np.array(vectors.codes)
        codes[1, 66, 5] = np.nan
        arrays = source.arrays._replace(**{side: vectors._replace(codes=codes)})
        q = queries(2, 1, heads, 64, random, np.float32)
        for kernels in KERNELS:
            with native.using_kernels(kernels):
                found = np.asarray(attention(q, [arrays], None, scale=0.1, softcap=None))
            assert np.isfinite(found[0]).all()
            assert np.isnan(found[1, ..., 5]).all(), kernels
            assert np.isfinite(np.delete(found[1], 5, axis=-1)[..., clean]).all()
            assert side == "values" or np.isnan(found[1]).all()


def test_parts_of_many_threads_come_together() -> None:
    """One head with many slots is cut by slots, many heads are not; both are the same twice."""
    random = np.random.default_rng(8)
    for heads, slots in ((1, 9000), (40, 300)):
        mask = random.random((1, 1, slots)) < 0.8
        source = drawn(("bf16", "f8_e4m3fn"), (heads, slots, 128), mask, random)
        q = queries(1, 1, 2 * heads, 128, random, np.float32)
        assert_attention(q, [source], heads)
        first, second = (attention(q, [source.arrays], None, scale=0.1, softcap=None) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_keys_that_are_the_values() -> None:
    """Latent attention: one buffer, and many heads that read it."""
    random = np.random.default_rng(9)
    for format in ("bf16", "int8"):
        source = drawn((format, format), (2, 100, 576), random.random((2, 1, 100)) < 0.8, random)
        shared = Drawn(arrays=source.arrays._replace(values=source.arrays.keys), keys=source.keys, values=source.keys)
        for heads in (2, 16):
            assert_attention(queries(2, 1, heads, 576, random, np.float32), [shared], heads, scale=0.03)


def stored(side: Any) -> Stored:
    return Stored(**{name: None if part is None else jnp.asarray(part) for name, part in side._asdict().items()})


def source_of(case: Drawn) -> Source:
    return Source(stored(case.arrays.keys), stored(case.arrays.values), jnp.asarray(case.arrays.mask))


@pytest.mark.parametrize("tokens", [129, 260])
def test_prompts(tokens: int) -> None:
    """Each token sees those before it, after padding, and what a cache holds already: parts of tokens in turn."""
    random = np.random.default_rng(tokens)
    at = np.arange(tokens)
    padding = np.array([0, 37])[:, None, None]
    causal = (at[:, None] >= at) & (at >= padding)
    for group in (1, 3):
        before = np.broadcast_to(random.random((2, 1, 70)) < 0.8, (2, tokens, 70))
        sources = [
            drawn(("int8", "f8_e4m3fn"), (4, 70, 32), before, random),
            drawn(("bf16", "bf16"), (4, tokens, 32), causal, random),
        ]
        assert_attention(queries(2, tokens, 2 * group, 32, random, np.float32), sources, group)


@pytest.mark.parametrize("size", [1, 2, 33, 80, 128])
@pytest.mark.parametrize("window", [None, 50])
def test_prompts_of_bfloat16(size: int, window: int | None) -> None:
    """Queries and keys whose pairs are multiplied: what comes out is what float32 rounds to, or next to it at a tie.

    Whole pairs and a half, vectors of them and parts of one, tiles of queries and what is left of them.
    """
    random = np.random.default_rng(size)
    for tokens, group, heads in ((9, 1, 2), (70, 3, 2), (131, 2, 1)):
        at = np.arange(tokens)
        seen = (at[:, None] >= at) & (at[:, None] - at < (window or tokens))
        seen = np.stack((seen, seen & (at >= 37)))
        before = np.broadcast_to(random.random((2, 1, 75)) < 0.8, (2, tokens, 75))
        sources = [
            drawn(("bf16", "f32"), (2 * heads, 75, size), before, random, value_size=48),
            drawn(("bf16", "bf16"), (2 * heads, tokens, size), seen, random, value_size=48),
        ]
        q = queries(2, tokens, heads * group, size, random, ml_dtypes.bfloat16)
        for options in ({}, {"softcap": 2.0, "sinks": random.standard_normal(heads * group).astype(np.float32)}):
            chosen = sources if options else sources[1:]
            options = {"scale": 0.7 * size**-0.5, "softcap": None, "sinks": None, **options}
            expected = exact_attention(q, chosen, **options)
            sinks = options.pop("sinks")
            # Half of what one bfloat16 is from the next.
            rounding = np.exp2(np.floor(np.log2(np.maximum(np.abs(expected), 1e-30))) - 8)
            for kernels in KERNELS:
                with native.using_kernels(kernels):
                    found = np.asarray(attention(q, [source.arrays for source in chosen], sinks, **options))
                wrong = np.abs(found.astype(np.float64) - expected) - rounding
                assert wrong.max() <= BOUNDS["float32"] * np.abs(expected).max(), f"{kernels} {tokens}"


def test_layers_take_the_kernels() -> None:
    """attend_to lowers to them for every format and any number of tokens, and nowhere but on CPU."""
    random = np.random.default_rng(10)
    for format in TYPES:
        for tokens in (1, 200):
            case = drawn((format, format), (2, 30, 16), np.ones((1, tokens, 30), bool), random)
            q = queries(1, tokens, 4, 16, random, np.float32)
            traced = jax.jit(attend_to).trace(q, [source_of(case)])
            assert traced.lower(lowering_platforms=("cpu",)).as_text().count("@bombus_attention") == 1
            assert "@bombus_attention" not in traced.lower(lowering_platforms=("cuda",)).as_text()
            assert attention_runs(q, [case.arrays])
    assert not attention_runs(np.zeros((1, 1, 0, 16), np.float32), [case.arrays])


def test_vmap() -> None:
    """Over queries, over what they read, over both and over sinks."""
    random = np.random.default_rng(11)
    cases = [drawn(("int8", "bf16"), (4, 20, 16), random.random((2, 2, 20)) < 0.7, random) for _ in range(3)]
    q = queries(3 * 2, 2, 6, 16, random, np.float32).reshape(3, 2, 2, 6, 16)
    sinks = random.standard_normal((3, 6)).astype(np.float32)
    stack = jax.tree.map(lambda *arrays: np.stack(arrays), *(case.arrays for case in cases))
    run = partial(attention, scale=0.25, softcap=None)
    exact = partial(exact_attention, scale=0.25)
    ways = [
        (((0, None, None)), (q, [cases[0].arrays], sinks[0]), [exact(one, cases[:1], sinks=sinks[0]) for one in q]),
        ((None, 0, None), (q[0], [stack], sinks[0]), [exact(q[0], [case], sinks=sinks[0]) for case in cases]),
        ((0, 0, None), (q, [stack], None), [exact(one, [case]) for one, case in zip(q, cases, strict=True)]),
        ((None, None, 0), (q[0], [cases[0].arrays], sinks), [exact(q[0], cases[:1], sinks=one) for one in sinks]),
    ]
    for axes, arguments, expected in ways:
        found = jax.jit(jax.vmap(run, axes))(*arguments)
        np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-5, err_msg=str(axes))


def test_derivatives_are_those_of_xla() -> None:
    """In queries, plain keys and values, and sinks: central differences of float64 agree."""
    random = np.random.default_rng(12)
    case = drawn(("f32", "f32"), (2, 9, 8), random.random((1, 2, 9)) < 0.9, random)
    q, sinks = queries(1, 2, 4, 8, random, np.float32), random.standard_normal(4).astype(np.float32)
    back = random.standard_normal(q.shape)

    def energy(q: Any, keys: Any, values: Any, sinks: Any) -> jax.Array:
        source = Source(Stored(codes=keys), Stored(codes=values), jnp.asarray(case.arrays.mask))
        return (attend_to(q, [source], softcap=3.0, scale=0.4, sinks_N=sinks) * back).sum()

    def exact(q: Any, keys: Any, values: Any, sinks: Any) -> float:
        changed = Drawn(arrays=case.arrays, keys=keys, values=values)
        return float((exact_attention(q, [changed], softcap=3.0, scale=0.4, sinks=sinks) * back).sum())

    given = (q, case.arrays.keys.codes, case.arrays.values.codes, sinks)
    slopes = jax.jit(jax.grad(energy, (0, 1, 2, 3)))(*given)
    for index, slope in enumerate(slopes):
        for _ in range(3):
            way = random.standard_normal(given[index].shape)
            ends = [
                exact(*(a.astype(np.float64) + (step * way if at == index else 0.0) for at, a in enumerate(given)))
                for step in (1e-5, -1e-5)
            ]
            np.testing.assert_allclose(
                (np.asarray(slope) * way).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-4
            )

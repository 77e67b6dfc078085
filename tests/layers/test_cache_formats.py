"""CacheFormat: how it is spelled, what it refuses, and what caches of it take."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.layers import CacheFormat, CacheShape, as_cache_format, empty_cache

SHAPE = CacheShape(num_kv_heads=2, key_dim=6, value_dim=10)
SCALES = tuple(((1.0 + layer, 2.0), (3.0, 4.5)) for layer in range(3))


def _cache(format: Any = None, *, windows: Any = (None, 4, None), shape: CacheShape = SHAPE, lookback: int = 0) -> Any:
    arguments = {"shape": shape, "dtype": jnp.dtype(jnp.bfloat16), "lookback": lookback}
    return jax.eval_shape(lambda: empty_cache(windows, 3, 12, format=as_cache_format(format), **arguments))


def test_a_format_is_spelled_in_many_ways() -> None:
    """None, a name for both, a mapping, a CacheFormat; and survives JSON."""
    assert as_cache_format(None) == CacheFormat()
    assert as_cache_format("int8") == CacheFormat(keys="int8", values="int8")
    assert as_cache_format("bfloat16").keys == "bf16"
    format = CacheFormat(keys="int8", scales="head", full_layers=(0, -1), recent=7, head_scales=SCALES)
    assert as_cache_format(format) is format
    assert as_cache_format({"keys": "int4", "full_layers": [0]}) == CacheFormat(keys="int4", full_layers=(0,))
    plain = format.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert CacheFormat.from_json(json.dumps(plain)) == format == CacheFormat.from_json(plain)
    assert hash(CacheFormat.from_json(plain)) == hash(format)


REFUSED: list[tuple[Any, str]] = [
    ("int9", "keys and values: int9: is not a cache format. The closest are 'int8', 'int4'"),
    ({"keys": "int4(group=64)"}, "keys: int4(group=64): is not a cache format (expected int4 without options)"),
    (
        {"values": "mxfp4"},
        "values: mxfp4: is not a cache format (expected f32, bf16, f16, f8_e4m3fn, int8, int4)",
    ),
    ({"key": "int8"}, "setting 'key': does not exist. The closest are 'keys'"),
    ({"bombus_cache_format": 2}, "bombus_cache_format: is not known (expected 1, found 2)"),
    (
        {"recent": 3},
        "recent: changes nothing: neither keys nor values are quantized. "
        "Give keys or values as f8_e4m3fn, int8 or int4",
    ),
    (
        {"full_layers": [1]},
        "full_layers: changes nothing: neither keys nor values are quantized. "
        "Give keys or values as f8_e4m3fn, int8 or int4",
    ),
    ({"keys": "int8", "recent": -1}, "recent: must count slots (expected 0 or more, found -1)"),
    ({"keys": "int8", "zero_points": 1}, "zero_points: is not known (expected yes or no, found 1)"),
    ({"keys": "int8", "scales": "layer"}, "scales: is not known (expected token or head, found 'layer')"),
    ({"keys": "int8", "full_layers": ["0"]}, "full_layers: must be numbers of layers (expected whole numbers, found"),
    (
        {"keys": "int8", "scales": "head"},
        "scales: of heads are fixed by calibration. Measure head_scales with calibrate_cache",
    ),
    ({"keys": "int8", "head_scales": SCALES}, 'head_scales: are for scales of heads. Give scales="head"'),
    (
        {"keys": "int8", "scales": "head", "head_scales": [[[-1.0], [2.0]]]},
        "head_scales: must be a pair of keys and values for each layer, of the numbers of its heads "
        "(expected finite numbers, 0 or more)",
    ),
]


@pytest.mark.parametrize(("format", "message"), REFUSED)
def test_what_is_no_format_is_refused(format: Any, message: str) -> None:
    """With the nearest that is one."""
    with pytest.raises(bombus.PolicyError) as caught:
        as_cache_format(format)
    assert str(caught.value).startswith(f"cache format: {message}")


UNFIT: list[tuple[Any, CacheShape, str]] = [
    ({"keys": "int8", "full_layers": [0, 3, -4]}, SHAPE, "2 problems\n  - full_layers: layer 3: does not exist"),
    (
        {"values": "int4"},
        CacheShape(2, 6, 5),
        "values: int4: holds two codes a byte, so that heads need an even size (found 5). Take int8",
    ),
    (
        {"keys": "int8", "values": "int4"},
        CacheShape(1, 6, 0),
        "values: int4: cannot differ from keys: this model's keys are its values as well (expected int8)",
    ),
    (
        {"keys": "int8", "scales": "head", "head_scales": SCALES[:2]},
        SHAPE,
        "head_scales: are of another model (expected 3 layers of 2 keys and 2 values, "
        "found 2 layers of 2 keys and 2 values)",
    ),
]


@pytest.mark.parametrize(("format", "shape", "message"), UNFIT)
def test_what_does_not_fit_the_model_is_refused(format: Any, shape: CacheShape, message: str) -> None:
    """Before any array is made."""
    with pytest.raises(bombus.PolicyError) as caught:
        _cache(format, shape=shape)
    assert str(caught.value).startswith(f"cache format: {message}")


def test_bytes_are_those_of_the_arrays() -> None:
    """Codes, scales and zero points of all slots, rings and full layers; per token they are of one slot of a row."""
    assert _cache(windows=(None,)).bytes_per_token == 2 * (6 + 10) * 2
    assert _cache("int8", windows=(None,)).bytes_per_token == 2 * (6 + 4 + 4 + 10 + 4 + 4)
    assert _cache({"keys": "int4", "values": "f8_e4m3fn"}, windows=(None,)).bytes_per_token == 2 * (3 + 8 + 10 + 4)
    whole = _cache({"keys": "int8", "full_layers": [-3, 1, -1]}, windows=(None,) * 3)
    assert whole.bytes_per_token == 3 * _cache(windows=(None,)).bytes_per_token
    cache = _cache({"keys": "int4", "values": "int8", "full_layers": [-1], "recent": 2}, lookback=1)
    quantized, full, recent = 2 * (3 + 8 + 10 + 8), 2 * 2 * 16, 2 * 2 * 16 * 3
    expected = 3 * (12 * quantized + recent + 5 * quantized + recent + 12 * full)
    assert cache.nbytes == expected == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers))
    assert cache.bytes_per_token == cache.report.bytes_per_token == expected / 36


def test_the_report_says_what_is_kept_and_what_it_takes() -> None:
    """Layers that are alike in one row; the settings that are in force, not those that were asked for."""
    cache = _cache({"keys": "int4", "values": "int8", "full_layers": [-1], "recent": 2, "zero_points": False})
    assert str(cache.report).splitlines() == [
        "cache of 3 x 12 slots",
        "layers  keys            values          slots  recent  bytes  bytes per token",
        "0       int4 per token  int8 per token     12       2  1,896             52.7",
        "1       int4 per token  int8 per token      4       2    888             24.7",
        "2       bf16            bf16               12       0  2,304               64",
        "all                                                    5,088            141.3",
    ]
    latent = _cache("int8", shape=CacheShape(1, 6, 0), windows=(None, 3, None)).report
    assert [(layer["keys"], layer["values"]) for layer in latent.layers] == [
        ("int8 per token with zero points", "the keys")
    ] * 3
    assert str(latent).splitlines()[2].startswith("0, 2    int8")
    assert latent.to_json()["bytes"] == latent.nbytes == 3 * (12 + 3 + 12) * (6 + 8)


def test_rows_are_taken_with_all_their_parts() -> None:
    """In any order, more than once, more or fewer; scales of heads are the same for each."""
    format = CacheFormat(keys="int8", values="f8_e4m3fn", recent=2)
    cache = empty_cache([None, 4], 3, 5, shape=SHAPE, dtype=jnp.dtype(jnp.bfloat16), format=format)
    random = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten(cache)
    values = [jnp.asarray(random.integers(0, 100, leaf.shape), leaf.dtype) for leaf in leaves]
    cache = jax.tree.unflatten(tree, values)
    for rows in ([2, 0], [1, 1, 2, 0]):
        taken = jax.jit(lambda cache, rows: cache.take_rows(rows))(cache, jnp.asarray(rows))
        assert taken.capacity == 5
        for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(taken), strict=True):
            old, new = np.asarray(old, np.float32), np.asarray(new, np.float32)
            if old.ndim:
                old = old.reshape(3, -1)[np.asarray(rows)]
            np.testing.assert_array_equal(new.reshape(old.shape), old)
    fixed = empty_cache(
        [None] * 3,
        2,
        5,
        shape=SHAPE,
        dtype=jnp.dtype(jnp.float32),
        format=CacheFormat(keys="int8", scales="head", head_scales=SCALES),
    ).take_rows(jnp.asarray([1, 0, 1]))
    np.testing.assert_allclose(fixed.layers[2].keys.scale, np.tile([3, 2], 3) / 127, rtol=1e-6)


def test_rewinding_needs_lookback_where_a_layer_is_a_ring() -> None:
    """Positions go back by the real tokens of each row; more than a ring has kept is refused."""
    cache = empty_cache([None, 4], 2, 9, shape=SHAPE, dtype=jnp.dtype(jnp.float32), lookback=2)
    mask = np.arange(9) < np.array([[6], [6]])
    mask[1, :5] = False  # the second row began late
    used = type(cache)(
        layers=cache.layers,
        mask=jnp.asarray(mask),
        length=jnp.int32(6),
        positions=jnp.asarray([6, 1], jnp.int32),
        lookback=2,
    )
    back = jax.jit(lambda cache, slots: cache.rewound(slots))(used, 2)
    assert int(back.length) == 4
    np.testing.assert_array_equal(back.positions, [4, 0])
    np.testing.assert_array_equal(back.mask, mask & (np.arange(9) < 4))
    with pytest.raises(bombus.GenerationError) as caught:
        used.rewound(3)
    assert str(caught.value) == (
        "cache: cannot be rewound so far: some layers hold the last slots only (expected at most 2 slots, found 3). "
        "Make the cache with a larger lookback"
    )
    near = CacheFormat(keys="int8", recent=2)  # a ring too
    with pytest.raises(bombus.GenerationError, match="at most 1 slots, found 2"):
        empty_cache([None], 2, 9, shape=SHAPE, dtype=jnp.dtype(jnp.float32), format=near, lookback=1).rewound(2)
    whole = empty_cache([None], 2, 9, shape=SHAPE, dtype=jnp.dtype(jnp.float32))
    assert int(whole.rewound(0).length) == 0
    assert int(type(whole)(**{**vars(whole), "length": jnp.int32(8)}).rewound(5).length) == 3

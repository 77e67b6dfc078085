"""Models over every kind of cache: decoding is prefill, rings are the window, taking back is never having written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bombus
from bombus.layers import Cache, CacheFormat, as_cache_format
from bombus.models.calibration import calibrate_cache

T, SLOTS, WINDOW = 12, 15, 5
TOKENS = np.random.default_rng(2).integers(3, 200, (2, T)).astype(np.int32)
MASK = np.arange(T) >= np.array([[0], [4]])
SIZES: dict[str, dict[str, Any]] = {
    "qwen3": {"num_blocks": 2, "hidden_size": 48, "intermediate_size": 64, "num_heads": 4, "head_dim": 16},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ("sliding_attention", "full_attention")},
    "deepseek_v3": {"num_dense_blocks": 2},  # a router would choose other experts, and logits would jump
}
FORMATS: dict[str, Any] = {
    "full": None,
    "bf16": "bf16",
    "f8_e4m3fn": "f8_e4m3fn",
    "int8": "int8",
    "int4": "int4",
    "heads": None,  # calibrated below
    "mixed": {"keys": "int8", "values": "int4", "zero_points": False, "recent": 3, "full_layers": [0]},
}
USED = {"qwen3": tuple(FORMATS), "gemma3_text": ("full", "int8", "mixed"), "deepseek_v3": ("full", "heads", "mixed")}
# How far the logits may be from those of the full cache, of the largest.
NEAR = {"full": 1e-5, "bf16": 0.03, "f8_e4m3fn": 0.2, "int8": 0.03, "int4": 0.5, "mixed": 0.3, "heads": 0.05}


class Decoded:
    """A model, and what it gives in one prefill and token by token, by format."""

    def __init__(self, folder: Path, used: tuple[str, ...]) -> None:
        self.loaded = bombus.load_model(folder)
        self.model, self.params = self.loaded.model, self.loaded.params
        latent = self.model.spec.cache_shape.value_dim == 0
        formats = {name: as_cache_format(format) for name, format in FORMATS.items()}
        if latent:  # keys are values
            formats["mixed"] = CacheFormat(keys="int4", recent=3, full_layers=(0,))
        self.measured = calibrate_cache(self.model, self.params, TOKENS, mask=MASK, format="int8")
        formats["heads"] = self.measured
        self.formats = formats
        self.plain = np.asarray(jax.jit(self.model.apply)(self.params, TOKENS, mask=MASK).logits)
        run = jax.jit(lambda params, tokens, mask: {name: self.both(params, tokens, mask, name) for name in used})
        self.found = jax.device_get(run(self.params, TOKENS, MASK))

    def empty(self, name: str, batch: int = 2, lookback: int = 0) -> Cache:
        return self.model.init_cache(batch, SLOTS, format=self.formats[name], lookback=lookback)

    def both(self, params: Any, tokens: jax.Array, mask: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
        first = self.model.apply(params, tokens, mask=mask, cache=self.empty(name)).logits
        return first, self.one_by_one(params, tokens, mask, self.empty(name))[0]

    def one_by_one(self, params: Any, tokens: jax.Array, mask: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        def step(cache: Cache, new: tuple[jax.Array, jax.Array]) -> tuple[Cache, jax.Array]:
            output = self.model.apply(params, new[0][:, None], mask=new[1][:, None], cache=cache)
            return output.cache, output.logits[:, 0]

        cache, logits = lax.scan(step, cache, (tokens.T, mask.T))
        return logits.transpose(1, 0, 2), cache


@pytest.fixture(scope="module", params=SIZES)
def decoded(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Decoded:
    """Of a model with full attention, one with windows in most blocks, and one that caches latents."""
    return Decoded(tiny(request.param, "f32", **SIZES[request.param]), USED[request.param])


def test_decoding_is_one_prefill_in_every_format(decoded: Decoded) -> None:
    """The same logits and the same best token; no farther from no cache than the format is coarse, but not the same."""
    largest = np.abs(decoded.plain[MASK]).max()
    for name, (whole, steps) in decoded.found.items():
        np.testing.assert_allclose(steps[MASK], whole[MASK], atol=1e-4 * largest, err_msg=name)
        np.testing.assert_array_equal(steps[MASK].argmax(-1), whole[MASK].argmax(-1), err_msg=name)
        far = np.abs(whole[MASK] - decoded.plain[MASK]).max() / largest
        assert far <= NEAR[name], name
        assert name == "full" or far > 1e-4, name


def test_layers_with_a_window_keep_no_more(decoded: Decoded) -> None:
    """And `lookback` more where it is asked for; others keep all slots."""
    windows = [decoded.model.spec.window_of(index) for index in range(decoded.model.spec.num_blocks)]
    assert windows in ([None, None], [WINDOW, None])
    for lookback in (0, 2, 100):
        cache = jax.eval_shape(lambda lookback=lookback: decoded.empty("int8", lookback=lookback))
        expected = [SLOTS if window is None else min(SLOTS, window + lookback) for window in windows]
        assert [layer.keys.slots for layer in cache.layers] == expected


def test_calibration_measures_the_largest_of_every_head(decoded: Decoded) -> None:
    """Of keys after rotary and of values, at real tokens alone."""
    empty = decoded.model.init_cache(2, T, lookback=T)
    cache = jax.jit(decoded.model.apply)(decoded.params, TOKENS, mask=MASK, cache=empty).cache
    for layer, (keys, values) in zip(cache.layers, decoded.measured.head_scales, strict=True):
        for stored, found in ((layer.keys, keys), (layer.values, values)):
            if stored is None:
                assert found == ()
                continue
            heads = np.abs(np.asarray(stored.codes)).reshape(2, -1, T, stored.codes.shape[-1]).max(-1)
            np.testing.assert_allclose(found, np.where(MASK[:, None], heads, 0).max((0, 2)), rtol=1e-5)
            assert len(found) == 1 or len(set(found)) > 1


def test_what_is_taken_back_was_never_there(decoded: Decoded) -> None:
    """Wrong tokens are drafted at once, all but one taken back; then rows are taken, and go on as if alone."""
    known, draft, kept = 8, 4, 1
    name = list(decoded.found)[-1]

    @jax.jit
    def run(params: Any, tokens: jax.Array, mask: jax.Array, rows: jax.Array, back: jax.Array) -> Any:
        def prefill() -> Cache:
            cache = decoded.empty(name, lookback=draft - kept)
            return decoded.model.apply(params, tokens[:, :known], mask=mask[:, :known], cache=cache).cache

        wrong = jnp.concatenate((tokens[:, known : known + kept], tokens[:, : draft - kept] + 1), 1)
        cache = decoded.model.apply(params, wrong, cache=prefill()).cache.rewound(back).take_rows(rows)
        rest = (tokens[rows, known + kept :], mask[rows, known + kept :])
        return decoded.one_by_one(params, *rest, cache)

    rows = np.array([1, 0, 1])
    logits, cache = run(decoded.params, TOKENS, MASK, rows, jnp.int32(draft - kept))
    expected = decoded.found[name][0][rows, known + kept :]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    assert int(cache.length) == T
    np.testing.assert_array_equal(cache.positions, MASK.sum(1)[rows])
    np.testing.assert_array_equal(cache.mask, np.pad(MASK[rows], ((0, 0), (0, SLOTS - T))))

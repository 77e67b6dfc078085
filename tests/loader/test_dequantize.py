"""dequantize a model in memory: exact values, the same logits, and nothing that is plain is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from converted import GATE, MIXED, SIZES, as_bytes, formats, shared, values64

import bombus
from bombus.loader.convert import dequantize, quantize
from bombus.models.model import flat
from bombus.policies.formats import find_format

Load = Callable[..., bombus.LoadedModel]


@pytest.fixture(scope="module")
def load(tiny: Callable[..., Path]) -> Load:
    """`load(weights, **options)`: a tiny Qwen3 of this type, loaded."""
    return lambda weights, **options: bombus.load_model(tiny("qwen3", weights, **SIZES), **options)


STORED = [
    *("f8_e4m3fn(tile=16x24)", "f8_e5m2(tile=channel, scale=bf16)", "int8(group=16)", "int4(group=8, zero_points)"),
    *("bfp8(axis=out)", "bfp4", "mxfp8", "mxfp4", "nvfp4"),
]


@pytest.mark.parametrize("dtype", [None, "f32"])
def test_dequantize_gives_the_exact_values(dtype: str | None, load: Load) -> None:
    """A weight of every kind, computed in float32 and rounded once to the model's type, or to the one asked for."""
    weights = [path for path in formats(load("bf16")) if path.endswith((".kernel", ".embedding"))]
    rules = dict(zip(weights, STORED, strict=False))
    loaded = load("bf16", policy=rules)
    found = dequantize(loaded, dtype)
    plain = dtype or "bf16"
    assert formats(found) == {path: plain if path in rules else "bf16" for path in formats(loaded)}
    assert flat(found.params).keys() == formats(found).keys()
    for path in rules:
        expected = values64(loaded, path).astype(np.float32).astype(find_format(plain).dtype)
        np.testing.assert_array_equal(np.asarray(flat(found.params)[path]), expected, err_msg=rules[path])
    assert shared(found, loaded) == {path for path in formats(loaded) if path not in rules}


def logits(loaded: bombus.LoadedModel) -> np.ndarray:
    tokens = np.random.default_rng(3).integers(0, 34, (1, 9))
    return np.asarray(jax.jit(loaded.model.apply)(loaded.params, tokens).logits)


def test_a_dequantized_model_computes_the_same(load: Load) -> None:
    """In float32 to 1e-5, the head that is the embedding included."""
    policy = {
        "feed_forward": {"params": "int4(group=16)", "compute": "f32"},
        "default": {"params": "int8", "compute": "f32"},
    }
    loaded = load("bf16", policy=policy)
    expected = logits(loaded)
    found = logits(dequantize(loaded, "f32"))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(logits(load("bf16", policy="f32")) - expected).max() > 1e-3 * np.abs(expected).max()


def test_dequantize_does_not_change_what_is_computed_in_what(load: Load) -> None:
    """The embedding's type is that of the residual stream: as float32 values it would make everything float32."""
    loaded = load("bf16", policy="int8")
    found = dequantize(loaded, "f32")
    before, after = (
        {entry.path: entry.computed.name for entry in made.report.plan.entries} for made in (loaded, found)
    )
    assert before[GATE] == "bfloat16"
    assert after == before
    tokens = np.zeros((1, 3), np.int32)
    assert jax.eval_shape(found.model.apply, found.params, tokens).hidden_state.dtype.name == "bfloat16"


@pytest.mark.parametrize(
    "options",
    [{}, {"policy": MIXED, "keep": ("f16", "f32")}, {"preserve_source_types": True, "policy": "f16"}],
    ids=["as it is", "some of it", "preserved"],
)
def test_dequantize_changes_nothing_that_is_plain(options: dict, load: Load) -> None:
    kept = options.get("keep")
    loaded = load("bf16", **{name: value for name, value in options.items() if name != "keep"})
    found = dequantize(loaded)
    plain = {path for path, format in formats(loaded).items() if kept is None or format in kept}
    assert {path for path in plain if formats(found)[path] == formats(loaded)[path]} == plain
    assert shared(found, loaded) == plain
    assert {path: found.model.decisions[path] for path in plain} == {
        path: loaded.model.decisions[path] for path in plain
    }


def test_dequantize_takes_a_type_that_arithmetic_is_done_in(load: Load) -> None:
    with pytest.raises(bombus.PolicyError) as caught:
        dequantize(load("bf16"), "int8")
    assert str(caught.value) == (
        "type int8: is a storage format; nothing is computed in it (expected f32, bf16 or f16)"
    )


def test_a_dequantized_model_can_be_quantized_again(load: Load) -> None:
    """To dequantize is no policy, with which a later one could be in conflict."""
    loaded = load("f8_e4m3fn", preserve_source_types=True)
    found = quantize(dequantize(loaded, "f32"), {"*.kernel": "int4(group=16)"})
    expected = quantize(loaded, {"*.kernel": "int4(group=16)"})
    assert formats(found) == formats(expected)
    assert as_bytes(found.params) == as_bytes(expected.params)

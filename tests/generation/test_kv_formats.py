"""Quantized caches with the model that ships, on text that it was not trained on: how far off, and how many bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.models import Model, Params

NAME = "bombus/tiny-shakespeare-fp8"
WINDOWS, T = 16, 128
LAYERS, HEADS, SIZE = 6, 2, 64
GRID = 2 * 4  # bytes of a slot's scale and zero point
# name -> (what a cache is asked for, bytes of a key and of a value of one head)
FORMATS: dict[str, tuple[Any, int, int]] = {
    "full": (None, 4 * SIZE, 4 * SIZE),
    "f8_e4m3fn": ("f8_e4m3fn", SIZE + 4, SIZE + 4),
    "int8": ("int8", SIZE + GRID, SIZE + GRID),
    "keys int8, values int4": ({"keys": "int8", "values": "int4"}, SIZE + GRID, SIZE // 2 + GRID),
    "keys int4, values int8": ({"keys": "int4", "values": "int8"}, SIZE // 2 + GRID, SIZE + GRID),
    "int4": ("int4", SIZE // 2 + GRID, SIZE // 2 + GRID),
}
MEASURED = ("full", "int8", "keys int8, values int4", "int4")


@pytest.fixture(scope="module")
def shipped() -> bombus.LoadedModel:
    """The model, computed in float32: what a divergence says is the cache's doing."""
    return bombus.load_model(NAME, policy=bombus.create_policy(compute="f32"), progress=False)


@pytest.fixture(scope="module")
def windows(data: Path) -> np.ndarray:
    """Windows (B, T), spread over the tenth of the text that was held out."""
    text = (data / "texts" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    ids = np.asarray(bombus.load_tokenizer(NAME).encode(text[len(text) * 9 // 10 :]), np.int32)
    starts = np.linspace(0, len(ids) - T, WINDOWS).astype(int)
    return ids[starts[:, None] + np.arange(T)]


@pytest.fixture(scope="module")
def nats(shipped: bombus.LoadedModel, windows: np.ndarray) -> dict[str, float]:
    """The mean divergence of the next token's distribution from the one with a full cache, by format."""
    logs = {name: log_probabilities(shipped.model, shipped.params, windows, name) for name in MEASURED}
    exact = np.asarray(logs["full"], np.float64)
    return {name: float((np.exp(exact) * (exact - found)).sum(-1).mean()) for name, found in logs.items()}


@partial(jax.jit, static_argnames=("model", "name"))
def log_probabilities(model: Model, params: Params, tokens_BT: jax.Array, name: str) -> jax.Array:
    """(B, T, V), of tokens that read those before them from the cache."""
    cache = model.init_cache(*tokens_BT.shape, format=FORMATS[name][0])
    logits_BTV = model.apply(params, tokens_BT, cache=cache).logits
    return jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)


def test_int8_is_within_a_thousandth_of_a_nat(nats: dict[str, float]) -> None:
    assert 1e-6 < nats["int8"] < 1e-3


def test_fewer_bits_are_farther_from_the_full_cache(nats: dict[str, float]) -> None:
    assert nats["full"] == 0
    assert nats["int8"] < nats["keys int8, values int4"] < nats["int4"] < 0.05


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_per_token_are_those_of_the_arrays(shipped: bombus.LoadedModel, name: str) -> None:
    format, key, value = FORMATS[name]
    cache = shipped.model.init_cache(WINDOWS, T, format=format)
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
    assert cache.nbytes == cache.report.nbytes == arrays
    assert cache.bytes_per_token == cache.report.bytes_per_token == arrays / (WINDOWS * T)
    assert cache.bytes_per_token == LAYERS * HEADS * (key + value)

"""The best token of each row, where nothing else is asked for: what the kernel finds, and XLA's operations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from native_weights import KERNELS, REASON

import bombus
from bombus.generation.next_token import next_token
from bombus.generation.sampling import _argmax_in_passes, argmax, make_sampling
from bombus.kernels import native


def logits(size: int) -> np.ndarray:
    """64 rows with ties, infinities of both signs, and what is no number."""
    random = np.random.default_rng(size)
    made = random.integers(-3, 4, (64, size)).astype(np.float32)
    places = random.integers(0, size, (64, 2))
    for row, value in enumerate([np.nan, np.inf, -np.inf, 0.0] * 16):
        if row < 60:
            made[row, places[row]] = value
    made[60] = -np.inf
    made[61, 0] = -0.0
    made[62] = np.nan
    return made


def greedy(x: np.ndarray) -> np.ndarray:
    settings = make_sampling(
        bombus.GenerationConfig(),
        batch=len(x),
        vocab_size=x.shape[1],
        steps=1,
        max_new_tokens=1,
        stop_ids=(),
        seeds=[0] * len(x),
    )
    return np.asarray(next_token(x, settings, jnp.int32(0)))


@pytest.mark.skipif(not KERNELS, reason=REASON)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", [1, 2, 15, 37, 1000, 1025, 16_385, 50_000])
def test_the_kernel_finds_the_first_of_the_largest(size: int, kernels: str) -> None:
    """As jnp.argmax, over blocks, parts and rows; one row by itself."""
    x = logits(size)
    expected = np.asarray(jnp.argmax(x, axis=-1))
    with native.using_kernels(kernels):
        found = greedy(x)
        alone = greedy(x[7:8])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(alone, expected[7:8])


@pytest.mark.parametrize("size", [1, 2, 37, 1000])
def test_argmax_in_passes_is_the_same(size: int) -> None:
    """What CPUs do without the kernels."""
    x = logits(size)
    for run in (jax.jit(_argmax_in_passes), jax.jit(argmax)):
        found = np.asarray(run(x))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, np.asarray(jnp.argmax(x, axis=-1)))

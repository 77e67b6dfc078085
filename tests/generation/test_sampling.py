"""Sampling against NumPy: what the filters keep, and how often each token is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bombus.generation.sampling import Sampling, sample

LOGITS = np.array([2.0, -1.0, 0.5, 1.5, -3.0, 0.0, 1.0, -0.5], np.float32)
DRAWS = 20000


def draw(logits: np.ndarray, draws: int = DRAWS, **options: float) -> np.ndarray:
    """Tokens of `draws` rows of the same logits, each with its own seed."""
    sampling = Sampling(
        temperature=jnp.full((draws,), options.get("temperature", 1.0), jnp.float32),
        top_k=jnp.full((draws,), options.get("top_k", 0), jnp.int32),
        top_p=jnp.full((draws,), options.get("top_p", 1.0), jnp.float32),
        seed=jnp.arange(draws, dtype=jnp.uint32),
    )
    rows = jnp.broadcast_to(jnp.asarray(logits), (draws, len(logits)))
    return np.asarray(jax.jit(sample)(rows, sampling, jnp.int32(options.get("step", 0))))


def expected(logits: np.ndarray, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """Probabilities by sorting: temperature, then the k best, then the shortest head of mass top_p."""
    order = np.argsort(-logits, kind="stable")
    weights = np.exp(logits.astype(np.float64) / temperature)
    keep = np.zeros(len(logits), bool)
    keep[order[: top_k or None]] = True
    weights = np.where(keep, weights, 0)
    weights /= weights.sum()
    count = int(np.searchsorted(np.cumsum(weights[order]), top_p, side="left")) + 1
    keep = np.zeros(len(logits), bool)
    keep[order[:count]] = True
    weights = np.where(keep, weights, 0)
    return weights / weights.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.6},
        {"top_p": 0.95},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    ],
)
def test_the_distribution_is_numpys(options: dict) -> None:
    """Chi-squared over 20,000 draws, below the 0.999 quantile; tokens outside the filters never come."""
    probabilities = expected(LOGITS, **options)
    counts = np.bincount(draw(LOGITS, **options), minlength=len(LOGITS))
    assert counts[probabilities == 0].sum() == 0
    kept = probabilities > 0
    statistic = ((counts - DRAWS * probabilities)[kept] ** 2 / (DRAWS * probabilities[kept])).sum()
    assert statistic < [np.inf, 10.8, 13.8, 16.3, 18.5, 20.5, 22.5, 24.3][kept.sum() - 1]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.0, "top_k": 3}]
)
def test_greedy(options: dict) -> None:
    """Temperature 0, one best token, and no mass at all leave the most probable one."""
    assert set(draw(LOGITS, 50, **options)) == {0}


def test_top_k_keeps_exactly_k_of_many() -> None:
    """A bitwise search for the k-th of 1,000 logits, negative ones and infinities among them."""
    random = np.random.default_rng(0)
    logits = random.standard_normal(1000).astype(np.float32)
    logits[random.integers(0, 1000, 50)] = -np.inf
    best = set(np.argsort(-logits)[:37])
    assert set(draw(logits, 4000, top_k=37, temperature=5.0)) == best


def test_a_row_depends_on_its_seed_and_step_alone() -> None:
    """The same row gives the same token in every batch; another step or seed gives others."""
    tokens = draw(LOGITS, 200)
    np.testing.assert_array_equal(draw(LOGITS, 10), tokens[:10])
    assert (draw(LOGITS, 200, step=1) != tokens).mean() > 0.3
    assert len(set(tokens)) > 4

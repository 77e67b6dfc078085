"""Rotary positions of every type against float64 NumPy written from their definitions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bombus.layers import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rotary,
    Scaling,
    YarnScaling,
    rotate,
)
from bombus.layers.rotary_scaling import yarn_magnitude

SIZE = 64
THETA = 10_000.0
RANDOM = np.random.default_rng(0)
PLAIN = np.array([THETA ** (-2 * pair / SIZE) for pair in range(SIZE // 2)])
SHORT = tuple(1 + 0.03 * pair for pair in range(SIZE // 2))
LONG = tuple(1.5 + 0.25 * pair for pair in range(SIZE // 2))


def frequencies(scaling: Scaling | None, length: int | None = None, theta: float = THETA) -> np.ndarray:
    found = Rotary(theta=theta, scaling=scaling).frequencies(SIZE, length)
    assert found.dtype == np.float32
    return np.asarray(found)


def angles_of(tables: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin), (B, T, R), from the tables."""
    cos, signed = (np.asarray(table) for table in tables)
    np.testing.assert_array_equal(signed[..., 0, :], -signed[..., 1, :])
    return cos[:, :, 0, 0], signed[:, :, 0, 1]


def test_plain_frequencies_are_powers_of_theta() -> None:
    np.testing.assert_allclose(frequencies(None), PLAIN, rtol=1e-6)


def test_linear_positions_count_less() -> None:
    """Position p counts p/factor."""
    np.testing.assert_allclose(frequencies(LinearScaling(factor=3.0)), PLAIN / 3, rtol=1e-6)


@pytest.mark.parametrize("length", [None, 1, 99, 100])
def test_dynamic_is_plain_within_the_original_length(length: int | None) -> None:
    np.testing.assert_array_equal(
        frequencies(DynamicScaling(factor=3.0, original_max_positions=100), length), frequencies(None)
    )


@pytest.mark.parametrize("length", [101, 250, 5000])
def test_dynamic_base_grows_with_the_length(length: int) -> None:
    """The slowest pair turns as often as if positions counted less by s*L/O - (s - 1); the fastest stays."""
    found = frequencies(DynamicScaling(factor=3.0, original_max_positions=100), length)
    stretch = 3 * length / 100 - 2
    base = THETA * stretch ** (SIZE / (SIZE - 2))
    np.testing.assert_allclose(found, [base ** (-2 * pair / SIZE) for pair in range(SIZE // 2)], rtol=2e-6)
    np.testing.assert_allclose(found[-1], PLAIN[-1] / stretch, rtol=2e-6)
    assert found[0] == 1


def test_llama3_bands() -> None:
    """Turns per context decide: 4 and more stay, 1 and fewer are 8 times slower, between them a straight line."""
    scaling = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=512)
    expected, between = [], 0
    for frequency in PLAIN:
        turns = 512 * frequency / (2 * math.pi)
        share = min(max((turns - 1) / 3, 0), 1)
        between += 0 < share < 1
        expected.append((1 - share) * frequency / 8 + share * frequency)
    assert between >= 3
    np.testing.assert_allclose(frequencies(scaling), expected, rtol=2e-6)


def yarn(factor: float, original: int, *, fast: float, slow: float, truncate: bool) -> np.ndarray:
    """YaRN's "NTK by parts" from the paper: a ramp over pairs between those that turn `fast` and `slow` times."""
    # theta^(-2d/SIZE) * original / 2 pi = turns, solved for the pair d.
    ends = [SIZE / 2 * math.log(original / (2 * math.pi * turns), THETA) for turns in (fast, slow)]
    if truncate:
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0), min(ends[1], SIZE - 1)
    ramp = np.clip((np.arange(SIZE // 2) - first) / (last - first), 0, 1)
    assert np.count_nonzero((ramp > 0) & (ramp < 1)) >= 3
    return (1 - ramp) * PLAIN + ramp * PLAIN / factor


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("fast", "slow"), [(32.0, 1.0), (16.0, 2.5)])
@pytest.mark.parametrize("original", [100, 4096])
def test_yarn_bands(original: int, fast: float, slow: float, truncate: bool) -> None:
    scaling = YarnScaling(
        factor=5.0, original_max_positions=original, beta_fast=fast, beta_slow=slow, truncate=truncate
    )
    expected = yarn(5.0, original, fast=fast, slow=slow, truncate=truncate)
    np.testing.assert_allclose(frequencies(scaling), expected, rtol=3e-6)


def test_yarn_defaults_are_the_papers() -> None:
    found = frequencies(YarnScaling(factor=5.0, original_max_positions=4096))
    np.testing.assert_allclose(found, yarn(5.0, 4096, fast=32, slow=1, truncate=True), rtol=3e-6)


def test_yarn_without_a_band_is_a_step() -> None:
    """Both ends of the blend at pair 0: only the first pair stays."""
    found = frequencies(YarnScaling(factor=5.0, original_max_positions=6, beta_fast=1.0, beta_slow=1.0))
    np.testing.assert_allclose(found, [PLAIN[0], *PLAIN[1:] / 5], rtol=2e-6)


@pytest.mark.parametrize(
    ("given", "magnitude"),
    [
        ({}, 0.1 * math.log(40) + 1),
        ({"factor": 0.5}, 1.0),
        ({"attention_factor": 1.25, "mscale": 3.0, "mscale_all_dim": 2.0}, 1.25),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.707, "mscale_all_dim": 1.5}, (0.0707 * math.log(40) + 1) / (0.15 * math.log(40) + 1)),
        ({"mscale": 0.707}, 0.1 * math.log(40) + 1),
        ({"mscale_all_dim": 0.707}, 0.1 * math.log(40) + 1),
    ],
)
def test_yarn_magnitude(given: dict[str, float], magnitude: float) -> None:
    scaling = YarnScaling(**{"factor": 40.0, "original_max_positions": 4096} | given)
    assert scaling.magnitude == pytest.approx(magnitude, rel=1e-12)
    cos, sin = angles_of(Rotary(theta=THETA, scaling=scaling).tables(jnp.array([[0, 7]]), SIZE))
    np.testing.assert_allclose(cos**2 + sin**2, np.full_like(cos, magnitude**2), rtol=1e-5)


def test_yarn_magnitude_of_deepseek() -> None:
    assert yarn_magnitude(40.0, 1.0) == pytest.approx(1.3688879454113936)
    assert yarn_magnitude(1.0, 5.0) == 1.0


@pytest.mark.parametrize(("length", "factors"), [(None, SHORT), (100, SHORT), (101, LONG)])
def test_longrope_chooses_by_the_length(length: int | None, factors: tuple[float, ...]) -> None:
    scaling = LongScaling(short_factor=SHORT, long_factor=LONG, original_max_positions=100, attention_factor=1.2)
    np.testing.assert_allclose(frequencies(scaling, length), PLAIN / factors, rtol=1e-6)


SCALINGS = {
    "default": None,
    "linear": LinearScaling(factor=3.0),
    "dynamic": DynamicScaling(factor=3.0, original_max_positions=50),
    "llama3": Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=50),
    "yarn": YarnScaling(factor=4.0, original_max_positions=50),
    "longrope": LongScaling(short_factor=SHORT, long_factor=LONG, original_max_positions=50, attention_factor=1.2),
}


@pytest.mark.parametrize("last", [49, 50])
@pytest.mark.parametrize("kind", SCALINGS)
def test_tables_are_of_the_largest_position_of_the_row(kind: str, last: int) -> None:
    """Under jit, every row decides for itself; one position more than the original length switches."""
    rotary = Rotary(theta=THETA, scaling=SCALINGS[kind])
    positions = np.array([[0, 3, 5], [2, 11, last]], np.int32)
    found = rotary.frequencies(SIZE, last + 1)
    magnitude = {"yarn": 0.1 * math.log(4) + 1, "longrope": 1.2}.get(kind, 1.0)
    cos, sin = angles_of(jax.jit(lambda given: rotary.tables(given, SIZE))(positions))
    each = np.stack([rotary.frequencies(SIZE, 6), found]).astype(np.float64)
    angles = positions[..., None] * each[:, None]
    np.testing.assert_allclose(cos, magnitude * np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(sin, magnitude * np.sin(angles), atol=1e-5)
    changes = not np.array_equal(np.asarray(found), np.asarray(rotary.frequencies(SIZE)))
    assert changes == (kind in ("dynamic", "longrope") and last == 50)


def test_rotaries_are_hashable() -> None:
    rotaries = [Rotary(theta=THETA, scaling=scaling) for scaling in SCALINGS.values()]
    assert len({*rotaries, *rotaries, Rotary(theta=THETA, fraction=0.5)}) == len(SCALINGS) + 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.4])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotate_turns_pairs_and_passes_the_rest(interleaved: bool, fraction: float, dtype: type) -> None:
    """As complex numbers, (x_a + j x_b) e^{j p f}; the frequencies are those of the rotated size."""
    head, size = 20, round(20 * fraction)
    rotary = Rotary(theta=100.0, fraction=fraction)
    assert rotary.size(head) == size
    x = RANDOM.standard_normal((2, 3, 2, head)).astype(dtype)
    positions = np.array([[0, 1, 2], [5, 100, 7]], np.int32)
    tables = rotary.tables(jnp.asarray(positions), head)
    found = rotate(jnp.asarray(x), tables, interleaved=interleaved)
    assert found.dtype == dtype
    exact = x.astype(np.float64)
    first, second = (
        (slice(0, size, 2), slice(1, size, 2)) if interleaved else (slice(size // 2), slice(size // 2, size))
    )
    turns = np.exp(1j * positions[..., None, None] * 100.0 ** (-2 * np.arange(size // 2) / size))
    turned = (exact[..., first] + 1j * exact[..., second]) * turns
    expected = exact.copy()
    expected[..., first], expected[..., second] = turned.real, turned.imag
    np.testing.assert_allclose(
        np.asarray(found.astype(jnp.float32)), expected, atol=3e-5 if dtype == jnp.float32 else 0.02
    )
    np.testing.assert_array_equal(np.asarray(found)[..., size:], x[..., size:])


@pytest.mark.parametrize(
    ("rotary", "head_dim", "problems"),
    [
        (Rotary(theta=THETA), 64, []),
        (
            Rotary(theta=THETA, fraction=0.25),
            20,
            ["rotary positions: must rotate an even number of a head's dimensions (found 5 (0.25 of 20))"],
        ),
        (
            Rotary(theta=THETA, fraction=0.01),
            20,
            ["rotary positions: must rotate an even number of a head's dimensions (found 0 (0.01 of 20))"],
        ),
        (
            Rotary(theta=THETA, scaling=SCALINGS["dynamic"], fraction=0.5),
            4,
            ["rotary positions: of type 'dynamic' need more than one rotated pair (found 2 dimensions (0.5 of 4))"],
        ),
        (Rotary(theta=THETA, scaling=SCALINGS["linear"], fraction=0.5), 4, []),
        (Rotary(theta=THETA, scaling=SCALINGS["longrope"]), 64, []),
        (Rotary(theta=THETA, scaling=SCALINGS["longrope"], fraction=0.5), 128, []),
        (
            Rotary(
                theta=THETA,
                scaling=LongScaling(
                    short_factor=SHORT, long_factor=LONG[1:], original_max_positions=50, attention_factor=1.0
                ),
            ),
            64,
            [
                "field 'rope_scaling.long_factor': must have one number for each rotated pair "
                "(expected 32 numbers, found 31)"
            ],
        ),
        (
            Rotary(theta=THETA, scaling=SCALINGS["longrope"], fraction=0.75),
            64,
            [
                "field 'rope_scaling.short_factor': must have one number for each rotated pair "
                "(expected 24 numbers, found 32)",
                "field 'rope_scaling.long_factor': must have one number for each rotated pair "
                "(expected 24 numbers, found 32)",
            ],
        ),
    ],
)
def test_what_does_not_fit_a_head_is_named(rotary: Rotary, head_dim: int, problems: list[str]) -> None:
    assert [str(problem) for problem in rotary.problems(head_dim)] == problems

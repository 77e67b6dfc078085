"""How far stored values are from given ones: bounds for every value, and published figures."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy_formats as model
import pytest
from every_format import (
    CASES,
    F32,
    LARGE,
    SHAPES,
    codes_of,
    example,
    in_every_format,
    model_options,
    parts_of,
    stored_example,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from bombus.kernels import dequantize, quantize
from bombus.policies.formats import find_format


def allowed(values: np.ndarray, case: str) -> np.ndarray:
    """The largest error of every value: half a step of its tile, or what saturates, from the tile's largest value."""
    options = model_options(case)
    name = options.pop("name")
    result = np.zeros(values.shape)
    for _, tile in model.tiles(name, values.shape, options):
        w = np.abs(values[tile].astype(np.float64))
        result[tile] = _allowed(w, values[tile], np.abs(values).max(), name, options)
    return result * (1 + 1e-6)


def _allowed(w: np.ndarray, tile: np.ndarray, whole: float, name: str, options: dict[str, Any]) -> np.ndarray | float:
    largest = w.max()
    binade = 2.0 ** np.floor(np.log2(largest)) if largest else 0
    if name == "int4" and options.get("zero_points"):
        # Both ends are rounded to the grid: where both go up, one of them is cut off by half a step.
        return (max(tile.max(), 0) - min(tile.min(), 0)) / 15 * 0.57
    if name in ("int8", "int4"):
        return largest / (127 if name == "int8" else 7) * 0.5 * (1 + 2**-8)
    if name in ("bfp8", "bfp4"):
        step = binade / (64 if name == "bfp8" else 4)
        nearest = np.maximum(step / 2, w - step * (127 if name == "bfp8" else 7))
        # The search may cut off more of one value, for less error in all.
        return nearest if options.get("scale_rule") != "search" else np.sqrt((nearest**2).sum())
    top, top_exponent, mantissa_bits, least = model.ELEMENTS[model.element_of(name, options)]
    low = high = largest / top
    if name in ("mxfp8", "mxfp4"):
        low = binade / 2**top_exponent
        high = low if options.get("scale_rule", "floor") == "floor" else 2 * low
    elif name == "nvfp4":
        # Scales have three bits; where they are subnormal their step is 2^-9, over the scale of the tensor.
        step = 2.0**-9 * whole / (448 * 6)
        low, high = low - max(low / 16, step / 2), high + max(high / 16, step)
    elif options.get("scale") is not None:
        low, high = low * (1 - 2**-8), high * (2 if options["scale"] == "e8m0" else 1 + 2**-8)
    return np.maximum(np.maximum(w / 2 ** (mantissa_bits + 1), high * least / 2), w - low * top)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**32 - 1),
    magnitude=st.integers(-20, 20),
    spread=st.floats(0, 8),
)
def test_no_error_is_above_half_a_step(shape: tuple[int, int], seed: int, magnitude: int, spread: float) -> None:
    """Every value in every format, whatever the magnitude of the weight and of its rows."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape) * 2.0**magnitude * np.exp2(random.uniform(-spread, spread, (shape[0], 1)))
    values = values.astype(np.float32)
    for case, (_, found) in in_every_format(values).items():
        if "=f16" in case:
            continue  # float16 has fewer bits for small scales, and none for large ones
        worst = (np.abs(found.astype(np.float64) - values) - allowed(values, case)).max()
        assert worst <= 0, f"{case}: {worst} above the bound"


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    case=st.sampled_from([case for case in CASES if "=f16" not in case]),
    shape=st.tuples(st.integers(1, 140), st.integers(1, 140)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape(case: str, shape: tuple[int, int], seed: int) -> None:
    """Whole and partial tiles of any shape: sizes and errors are as the format says."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    weight = quantize(jnp.asarray(values), find_format(case))
    assert sum(part.nbytes for part in (weight.codes, *weight.parts.values())) == find_format(case).nbytes(shape)
    found = model.decode(codes_of(weight), parts_of(weight), **model_options(case))
    assert (np.abs(found - values) <= allowed(values, case)).all()


@pytest.mark.parametrize("case", ["bfp8", "bfp4"])
def test_the_search_never_gives_more_error(case: str) -> None:
    """In no block, and less in some."""
    values = example("tiles", LARGE).astype(np.float64)
    stored = stored_example("tiles", LARGE)
    errors = [(stored[name][1] - values) ** 2 for name in (case, f"{case}(scale_rule=search)")]
    blocks = [tile for _, tile in model.tiles(case, values.shape, {})]
    plain, searched = (np.array([error[block].sum() for block in blocks]) for error in errors)
    assert (searched <= plain * (1 + 1e-6)).all()
    assert (searched < plain * 0.99).any()


# Relative root-mean-square errors in percent, measured with other code: Gaussian and Student's t(4), 512 x 2048.
PUBLISHED = {
    "bfp8": (0.73, 0.89),
    "bfp4": (11.7, 14.0),
    "bfp4(scale_rule=search)": (11.1, 13.4),
    "mxfp8": (2.9, 3.2),
    "mxfp8(element=f8_e5m2)": (5.4, 5.5),
    "mxfp4": (11.5, 13.1),
    "nvfp4": (9.5, 9.2),
    "int8": (0.83, 2.4),
    "int8(group=32)": (0.54, 0.74),
    "int4": (11.7, 19.2),
    "int4(group=32)": (9.7, 13.1),
    "int4(group=64, zero_points)": (9.0, 11.8),
    "f8_e4m3fn": (2.64, 2.63),
}


@jax.jit
def _relative_errors(values: jax.Array) -> dict[str, jax.Array]:
    size = jnp.sqrt((values**2).sum())
    stored = {case: dequantize(quantize(values, find_format(case)), F32) for case in PUBLISHED}
    return {case: 100 * jnp.sqrt(((found - values) ** 2).sum()) / size for case, found in stored.items()}


@functools.cache
def relative_errors(distribution: str) -> dict[str, float]:
    """case -> percent."""
    random = np.random.default_rng(0)
    gaussian, heavy = random.standard_normal((512, 2048)), random.standard_t(4, (512, 2048))
    found = _relative_errors(jnp.asarray(gaussian if distribution == "gaussian" else heavy, jnp.float32))
    return {case: float(error) for case, error in found.items()}


@pytest.mark.parametrize("case", PUBLISHED)
@pytest.mark.parametrize("distribution", ["gaussian", "student"])
def test_errors_are_the_published_ones(case: str, distribution: str) -> None:
    """Within a tenth."""
    expected = PUBLISHED[case][distribution == "student"]
    assert relative_errors(distribution)[case] == pytest.approx(expected, rel=0.1)

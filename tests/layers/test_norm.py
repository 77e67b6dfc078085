"""Norms against float64 NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from numpy_attention import fill

from bombus.layers import LayerNorm, RMSNorm

RANDOM = np.random.default_rng(0)
EPSILON = 0.02


def _exact(x: np.ndarray, layer: RMSNorm | LayerNorm, values: dict[str, np.ndarray]) -> np.ndarray:
    scale = values["scale"] + (1 if isinstance(layer, RMSNorm) and layer.plus_one else 0)
    centred = x - (x.mean(-1, keepdims=True) if isinstance(layer, LayerNorm) else 0)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * scale + values.get("bias", 0.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [
        RMSNorm(64, epsilon=EPSILON),
        RMSNorm(64, epsilon=EPSILON, plus_one=True),
        LayerNorm(64, epsilon=EPSILON),
        LayerNorm(64, epsilon=EPSILON, bias=False),
    ],
    ids=["rms", "plus one", "layer", "without bias"],
)
def test_norm_is_float32_and_rounded_once(layer: RMSNorm | LayerNorm, dtype: type) -> None:
    """The statistics of a bf16 input, small or large and off centre, are those of float64, to bf16's rounding."""
    values = fill(layer, size=1.0)
    assert set(values) == {"scale"} | ({"bias"} if getattr(layer, "bias", None) is not None else set())
    for size in (0.1, 50.0):
        x = ((RANDOM.standard_normal((3, 64)) + 0.5) * size).astype(dtype)
        found = layer(jnp.asarray(x))
        assert found.dtype == dtype
        tolerance = 2e-6 if dtype == jnp.float32 else 2.0**-8
        expected = _exact(x.astype(np.float64), layer, values)
        np.testing.assert_allclose(np.asarray(found.astype(jnp.float32)), expected, rtol=tolerance, atol=2e-6)

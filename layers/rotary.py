"""Rotary position embedding (Su et al. 2021, "RoFormer"), with Llama 3's frequency scaling.

Shapes: B batch, T tokens, N heads, H head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the slow frequencies: `factor` times below `low_freq_factor` turns per context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """How positions turn queries and keys: `theta` is the base of the frequencies, `scaling` None or Llama 3's."""

    theta: float
    scaling: Llama3Scaling | None = None

    def frequencies(self, head_dim: int) -> np.ndarray:
        """The angle per position of each pair, (H/2,), float32."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = 1.0 / np.float32(self.theta) ** exponents
        if self.scaling is None:
            return frequencies.astype(np.float32)
        scaling = self.scaling
        wavelengths = 2 * math.pi / frequencies
        turns = scaling.original_max_positions / wavelengths
        blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return ((1 - blend) * frequencies / scaling.factor + blend * frequencies).astype(np.float32)

    def tables(self, positions_BT: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """(cos, signed sin) of every pair's angle, (B, T, 1, 2, H/2) in float32; built once per call of a model."""
        angles = positions_BT[:, :, None, None, None].astype(jnp.float32) * self.frequencies(head_dim)
        signs = jnp.array([-1.0, 1.0], jnp.float32)[:, None]
        return jnp.cos(angles), jnp.sin(angles) * signs


def rotate(x_BTNH: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x with each pair (i, i + H/2) turned by its angle, in float32, rounded to the type of x."""
    cos, signed_sin = tables
    # The two halves as an axis that is flipped: a concatenation takes XLA:CPU ten times as long to compile.
    halves = x_BTNH.astype(jnp.float32).reshape(*x_BTNH.shape[:-1], 2, -1)
    turned = halves * cos + jnp.flip(halves, axis=-2) * signed_sin
    return turned.astype(x_BTNH.dtype).reshape(x_BTNH.shape)

"""Normalization, in float32 whatever the stored type."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bombus.layers.layer import Layer, declare


class RMSNorm(Layer):
    """x (..., D) / rms(x) * `scale` (D,), computed in float32 and rounded once to the type of x.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """

    def __init__(self, size: int, *, epsilon: float) -> None:
        self.scale = declare((size,), jnp.dtype(jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normal = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        scaled = normal * self.scale.get_value().astype(jnp.float32)
        return scaled.astype(self.output_type_of("scale", x.dtype))

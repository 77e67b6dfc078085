"""Normalization, in float32 whatever the stored type."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bombus.kernels import Normed
from bombus.kernels.native_rows import rms_norm
from bombus.layers.layer import Layer, declare
from bombus.policies.formats import DType

Norm = Callable[[jax.Array], jax.Array]


def normed(norm: Norm | None, x: jax.Array) -> jax.Array:
    """norm(x), or x where there is none."""
    return x if norm is None else norm(x)


class RMSNorm(Layer):
    """x (..., D) / rms(x) * `scale` (D,), computed in float32 and rounded once to the type of x.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization". `plus_one` multiplies by 1 + `scale` (Gemma).
    """

    def __init__(self, size: int, *, epsilon: float, plus_one: bool = False) -> None:
        self.scale = declare((size,), jnp.dtype(jnp.float32))
        self.epsilon = epsilon
        self.plus_one = plus_one

    def before(self, dtype: DType) -> Normed:
        """This, as what an x of that type becomes before a product."""
        return Normed(self.scale.get_value(), *self.numbers, self.output_type_of("scale", dtype))

    @property
    def numbers(self) -> tuple[float, float]:
        """(epsilon, what is added to the scale)."""
        return self.epsilon, 1.0 if self.plus_one else 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, epsilon, offset, dtype = self.before(x.dtype)
        return rms_norm(x, scale, epsilon=epsilon, offset=offset, dtype=dtype)


class LayerNorm(Layer):
    """(x - mean(x)) / deviation(x) * `scale` (D,) + `bias` (D,) of x (..., D), in float32 and rounded once.

    Ba et al. 2016, "Layer Normalization". `bias=False` leaves the bias out.
    """

    def __init__(self, size: int, *, epsilon: float, bias: bool = True) -> None:
        self.scale = declare((size,), jnp.dtype(jnp.float32))
        self.bias = declare((size,), jnp.dtype(jnp.float32)) if bias else None
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)
        scaled = normal * self.scale.get_value().astype(jnp.float32)
        if self.bias is not None:
            scaled = scaled + self.bias.get_value().astype(jnp.float32)
        return scaled.astype(self.output_type_of("scale", x.dtype))

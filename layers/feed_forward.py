"""Feed-forwards: plain, gated (Shazeer 2020, "GLU variants improve transformer") and a mixture of gated experts.

Shapes: D hidden, F feed-forward, T tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.layers.activations import ACTIVATIONS, check_activation
from bombus.layers.dense import Dense, dense_together
from bombus.layers.experts import ClampedSwish, Experts
from bombus.layers.norm import Norm, normed
from bombus.layers.router import Router

__all__ = ["ACTIVATIONS", "FeedForward", "GatedFeedForward", "MixtureFeedForward", "check_activation"]


class FeedForward(nnx.Module):
    """x (..., D) -> output(activation(intermediate(x))), (..., D)."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, activation: str, bias: bool = True) -> None:
        check_activation(activation)
        self.intermediate = Dense(hidden_size, intermediate_size, bias=bias)
        self.output = Dense(intermediate_size, hidden_size, bias=bias)
        self.activation = activation

    def __call__(self, x: jax.Array, *, norm: Norm | None = None, residual: jax.Array | None = None) -> jax.Array:
        """Of norm(x), and added to `residual` where there is one."""
        (active,) = dense_together(x, (self.intermediate,), norm=norm, activation=ACTIVATIONS[self.activation])
        return self.output(active, residual=residual)


class GatedFeedForward(nnx.Module):
    """x (..., D) -> output(activation(gate(x)) * intermediate(x)), (..., D)."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, activation: str, bias: bool = False) -> None:
        check_activation(activation)
        self.gate = Dense(hidden_size, intermediate_size, bias=bias)
        self.intermediate = Dense(hidden_size, intermediate_size, bias=bias)
        self.output = Dense(intermediate_size, hidden_size, bias=bias)
        self.activation = activation

    def __call__(self, x: jax.Array, *, norm: Norm | None = None, residual: jax.Array | None = None) -> jax.Array:
        """Of norm(x), and added to `residual` where there is one."""
        both = (self.gate, self.intermediate)
        (gated,) = dense_together(x, both, norm=norm, activation=ACTIVATIONS[self.activation])
        return self.output(gated, residual=residual)


class MixtureFeedForward(nnx.Module):
    """x (..., D) -> what the experts that `router` chooses return, by its weights, and a `shared` one for all rows."""

    def __init__(
        self,
        hidden_size: int,
        moe_intermediate_size: int,
        num_experts: int,
        *,
        router: Router,
        activation: str | ClampedSwish,
        shared: GatedFeedForward | None = None,
        bias: bool = False,
    ) -> None:
        self.router = router
        self.experts = Experts(
            hidden_size, moe_intermediate_size, experts=num_experts, activation=activation, bias=bias
        )
        self.shared = shared

    def __call__(self, x: jax.Array, *, norm: Norm | None = None, residual: jax.Array | None = None) -> jax.Array:
        """Of norm(x), and added to `residual` where there is one."""
        x = normed(norm, x)
        x_TD = x.reshape(-1, x.shape[-1])
        weights_TK, experts_TK = self.router(x_TD)
        y = self.experts(x_TD, experts_TK, weights_TK).reshape(x.shape)
        if self.shared is not None:
            y = (y.astype(jnp.float32) + self.shared(x).astype(jnp.float32)).astype(y.dtype)
        return y if residual is None else residual + y.astype(residual.dtype)

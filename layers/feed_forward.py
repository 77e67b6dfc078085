"""Gated feed-forward (Shazeer 2020, "GLU variants improve transformer").

Shapes: D hidden, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
from flax import nnx

from bombus.layers.dense import Dense
from bombus.policies.errors import Problem, SpecError, closest

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def check_activation(name: str) -> None:
    """Raise SpecError, with the closest known names, when there is no such activation."""
    if name not in ACTIVATIONS:
        raise SpecError(
            Problem(subject=f"activation {name!r}", message="is not supported", remedy=closest(name, ACTIVATIONS))
        )


class GatedFeedForward(nnx.Module):
    """x (..., D) -> output(activation(gate(x)) * intermediate(x)), (..., D)."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, activation: str, bias: bool = False) -> None:
        check_activation(activation)
        self.gate = Dense(hidden_size, intermediate_size, bias=bias)
        self.intermediate = Dense(hidden_size, intermediate_size, bias=bias)
        self.output = Dense(intermediate_size, hidden_size, bias=bias)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = self.gate(x)
        return self.output(ACTIVATIONS[self.activation](gate) * self.intermediate(x).astype(gate.dtype))

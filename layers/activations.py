"""Activations by the names that configs give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from bombus.policies.errors import Problem, SpecError, closest

_gelu = partial(jax.nn.gelu, approximate=False)
_gelu_tanh = partial(jax.nn.gelu, approximate=True)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _rounded_once(activation: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The activation of 16-bit values in float32, as torch has it; JAX's own would round after every operation."""
    return lambda x: activation(x.astype(jnp.float32)).astype(x.dtype)


# The names and what they mean are transformers' (activations.py).
_PLAIN: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "hardswish": jax.nn.hard_swish,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    name: _rounded_once(activation) for name, activation in _PLAIN.items()
}


def check_activation(name: str) -> None:
    """Raise SpecError, with the closest known names, when there is no such activation."""
    if name not in ACTIVATIONS:
        raise SpecError(
            Problem(subject=f"activation {name!r}", message="is not supported", remedy=closest(name, ACTIVATIONS))
        )

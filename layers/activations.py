"""Activations by the names that configs give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from bombus.kernels import Activation
from bombus.policies.errors import Problem, SpecError, closest

_gelu = partial(jax.nn.gelu, approximate=False)
_gelu_tanh = partial(jax.nn.gelu, approximate=True)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


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
_NATIVE = {jax.nn.silu: 1, _gelu_tanh: 2}
ACTIVATIONS: Mapping[str, Activation] = {
    name: Activation(function=function, native=_NATIVE.get(function, 0)) for name, function in _PLAIN.items()
}


def check_activation(name: str) -> None:
    """Raise SpecError, with the closest known names, when there is no such activation."""
    if name not in ACTIVATIONS:
        raise SpecError(
            Problem(subject=f"activation {name!r}", message="is not supported", remedy=closest(name, ACTIVATIONS))
        )

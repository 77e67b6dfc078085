"""Products with what comes right before and behind them: one call where the C++ kernels do all of it.

XLA:CPU makes a fusion of each of these steps, which it compiles for every layer, and between which the memory waits.
Shapes: R rows of x, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from bombus.kernels import native
from bombus.kernels.native_rows import TYPES, rms_norm
from bombus.kernels.product import products
from bombus.kernels.weight import Weight
from bombus.policies.formats import DType


@dataclass(frozen=True, kw_only=True)
class Activation:
    """`function` of values in float32, rounded once, as torch has it; JAX's own would round after every operation.

    native: its number in kernels/cpp/rows.h; 0 where it is not there.
    """

    function: Callable[[jax.Array], jax.Array]
    native: int = 0

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x.astype(jnp.float32)).astype(x.dtype)


class Normed(NamedTuple):
    """What x (..., I) becomes before a product: `rms_norm` of it with these."""

    scale: jax.Array
    epsilon: float
    offset: float
    dtype: DType


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """What is known when a product is traced."""

    compute_type: jnp.dtype
    output_types: tuple[jnp.dtype, ...]
    norm: tuple[float, float, jnp.dtype] | None
    activation: Activation | None


class _Arrays(NamedTuple):
    x: jax.Array
    weights: tuple[Weight, ...]
    scale: jax.Array | None
    biases: tuple[jax.Array | None, ...]
    residual: jax.Array | None


def fused_products(
    x: jax.Array,
    weights: Sequence[Weight],
    *,
    compute_type: DType,
    output_types: Sequence[DType],
    biases: Sequence[jax.Array | None] | None = None,
    norm: Normed | None = None,
    activation: Activation | None = None,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """x (..., I) times each of some stored weights (O, I), as `products`, and what comes before and behind: (..., O).

    norm: x is normed first. biases: (O,) of each, or None, added in float32; the sum is rounded to the output type.
    activation: of the first, times the second where there are two; there is one result then. residual: (..., O), to
    which every result is added in its type.
    """
    steps = _Steps(
        compute_type=jnp.dtype(compute_type),
        output_types=tuple(map(jnp.dtype, output_types)),
        norm=None if norm is None else (*norm[1:3], jnp.dtype(norm.dtype)),
        activation=activation,
    )
    scale = None if norm is None else norm.scale
    biases = (None,) * len(weights) if biases is None else biases
    return _run(_Arrays(x, tuple(weights), scale, tuple(biases), residual), steps)


# Traced once for all layers.
@partial(jax.jit, static_argnames="steps")
def _run(arrays: _Arrays, steps: _Steps) -> tuple[jax.Array, ...]:
    if not _runs(arrays, steps):
        return _apart(steps, arrays)
    return lax.platform_dependent(arrays, cpu=partial(_together, steps), default=partial(_apart, steps))


def combined(
    made: Sequence[jax.Array], activation: Activation | None, residual: jax.Array | None
) -> tuple[jax.Array, ...]:
    """Products in their output types, and what `fused_products` does with them then."""
    if activation is not None:
        first, *others = made
        made = [activation(first)]
        for other in others:
            made = [made[0] * other.astype(first.dtype)]
    return tuple(y if residual is None else residual + y.astype(residual.dtype) for y in made)


def _apart(steps: _Steps, arrays: _Arrays) -> tuple[jax.Array, ...]:
    x, weights, scale, biases, residual = arrays
    if steps.norm is not None and scale is not None:
        epsilon, offset, dtype = steps.norm
        x = rms_norm(x, scale, epsilon=epsilon, offset=offset, dtype=dtype)
    made = products(x, weights, compute_type=steps.compute_type)
    with_biases = [y if bias is None else y + bias.astype(jnp.float32) for y, bias in zip(made, biases, strict=True)]
    rounded = [y.astype(dtype) for y, dtype in zip(with_biases, steps.output_types, strict=True)]
    return combined(rounded, steps.activation, residual)


def _runs(arrays: _Arrays, steps: _Steps) -> bool:
    """Whether the kernels do all of it."""
    if not all(native.runs(weight, steps.compute_type) for weight in arrays.weights):
        return False
    types = {*steps.output_types, *(part.dtype for part in (*arrays.biases, arrays.residual) if part is not None)}
    outputs = {weight.shape[0] for weight in arrays.weights}
    if arrays.scale is not None and steps.norm is not None:
        types |= {arrays.x.dtype, arrays.scale.dtype, steps.norm[2]}
        if steps.norm[2] != steps.compute_type:
            return False
    if steps.activation is not None:
        together = len(arrays.weights) <= 2 and len(outputs) == len(set(steps.output_types)) == 1
        if not (steps.activation.native and together):
            return False
    if arrays.residual is not None and {arrays.residual.shape} != {(*arrays.x.shape[:-1], size) for size in outputs}:
        return False
    return {dtype.name for dtype in types} <= set(TYPES)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _together(steps: _Steps, arrays: _Arrays) -> tuple[jax.Array, ...]:
    leaves, tree = jax.tree.flatten(arrays)

    @custom_vmap
    def call(*leaves: jax.Array) -> tuple[jax.Array, ...]:
        return _called(steps, jax.tree.unflatten(tree, leaves))

    @call.def_vmap
    def batched(size: int, moving: Any, *leaves: jax.Array) -> tuple[Any, Any]:
        def apart(*leaves: jax.Array) -> tuple[jax.Array, ...]:
            return _apart(steps, jax.tree.unflatten(tree, leaves))

        found = jax.vmap(apart, tuple(0 if moves else None for moves in moving), axis_size=size)(*leaves)
        return found, (True,) * len(found)

    made: tuple[jax.Array, ...] = call(*leaves)
    return made


@_together.defjvp
def _together_jvp(steps: _Steps, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_apart, steps), primals, tangents)


def _called(steps: _Steps, arrays: _Arrays) -> tuple[jax.Array, ...]:
    x, weights, scale, biases, residual = arrays
    x_RI = x.reshape(-1, x.shape[-1])
    before, after = native.NO_NORM, native.NOTHING
    if steps.norm is None or scale is None:
        x_RI = x_RI.astype(steps.compute_type)
    else:
        *numbers, dtype = steps.norm
        normed = jax.ShapeDtypeStruct(x_RI.shape, dtype)
        before = native.Step(numbers=np.array(numbers, np.float32), arrays=[scale], results=[normed])
    given = [part.reshape(-1) for part in (*biases, residual) if part is not None]
    types = steps.output_types if residual is None else (residual.dtype,) * len(weights)
    if given or steps.activation is not None or set(types) != {jnp.dtype(jnp.float32)}:
        numbers = [
            0 if steps.activation is None else steps.activation.native,
            steps.activation is not None and len(weights) == 2,
            residual is not None,
            *(dtype == jnp.bfloat16 for dtype in steps.output_types),
            *(bias is not None for bias in biases),
        ]
        made = [
            jax.ShapeDtypeStruct((x_RI.shape[0], weight.shape[0]), dtype)
            for weight, dtype in zip(weights, types, strict=True)
        ]
        last = len(made) if steps.activation is None else 1
        after = native.Step(numbers=np.array(numbers, np.int64), arrays=given, results=made[:last])
    results = native.call_product(x_RI, weights, norm=before, after=after)
    return tuple(y_RO.reshape(*x.shape[:-1], y_RO.shape[-1]) for y_RO in results)

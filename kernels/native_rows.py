"""RMS normalization and rotary positions by the C++ kernels.

XLA:CPU makes several fusions of each norm and rotation, and computes the sines of a position again for every head
that they turn.
Shapes: B batch, T tokens, N heads, H head size, R rotated pairs. Queries and keys are normed and turned in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from bombus.kernels import native
from bombus.policies.formats import DType

TYPES = ("float32", "bfloat16")  # of what lies between products


# Each is traced once for all layers.
@partial(jax.jit, static_argnames=("epsilon", "offset", "dtype"))
def rms_norm(x: jax.Array, scale: jax.Array, *, epsilon: float, offset: float, dtype: DType) -> jax.Array:
    """x (..., D) / sqrt(mean(x * x) + epsilon) * (offset + scale (D,)), in float32 and rounded once to dtype."""

    def call(x: jax.Array, scale: jax.Array) -> jax.Array:
        made = jax.ShapeDtypeStruct(x.shape, dtype)
        numbers = {"epsilon": np.float32(epsilon), "offset": np.float32(offset)}
        return native.varying_as(jax.ffi.ffi_call("bombus_norm", made)(x, scale, **numbers), x, scale)

    return _dispatched(partial(_normed, epsilon, offset, dtype), call, dtype, x, scale)


def _normed(epsilon: float, offset: float, dtype: DType, x: jax.Array, scale: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    normal = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
    scale = scale.astype(jnp.float32)
    return (normal * (offset + scale if offset else scale)).astype(dtype)


def rotate(x_BTNH: jax.Array, tables: tuple[jax.Array, jax.Array], *, interleaved: bool = False) -> jax.Array:
    """x with each pair turned by its angle, in float32, rounded to the type of x.

    tables: (cos, signed sin), (B, T, 1, 1, R) and (B, T, 1, 2, R), see `Rotary.tables`. A pair is (i, i + R), or with
    `interleaved` (2i, 2i + 1). Dimensions from 2R on pass.
    """
    return rotate_together((x_BTNH,), tables, (None,), norms=(None,), interleaved=interleaved)[0]


@partial(jax.jit, static_argnames=("norms", "interleaved"))
def rotate_together(
    heads: tuple[jax.Array, ...],
    tables: tuple[jax.Array, jax.Array],
    scales: tuple[jax.Array | None, ...],
    *,
    norms: tuple[tuple[float, float] | None, ...],
    interleaved: bool = False,
) -> tuple[jax.Array, ...]:
    """`rotate` of each of some heads, in one call; those with a scale (H,) are normed before.

    norms: (epsilon, offset) of each that has a scale, as in `rms_norm`. What is normed is rounded to the type of x.
    """
    cos, signed_sin = tables
    tokens = heads[0].shape[:2]

    def pairs_of(arguments: tuple[jax.Array, ...]) -> Iterator[tuple[jax.Array, jax.Array | None]]:
        left = iter(arguments)
        for norm in norms:
            yield next(left), None if norm is None else next(left)

    def reference(cos: jax.Array, signed_sin: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        turn = partial(_turned, cos=cos, signed_sin=signed_sin, interleaved=interleaved)
        return tuple(
            turn(x_BTNH if norm is None or scale is None else _normed(*norm, x_BTNH.dtype, x_BTNH, scale))
            for norm, (x_BTNH, scale) in zip(norms, pairs_of(arguments), strict=True)
        )

    def call(cos: jax.Array, signed_sin: jax.Array, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        made = [jax.ShapeDtypeStruct(x_BTNH.shape, x_BTNH.dtype) for x_BTNH, _ in pairs_of(arguments)]
        tables = (jnp.broadcast_to(table, (*tokens, *table.shape[2:])) for table in (cos, signed_sin))
        # A negative epsilon: not normed.
        epsilons, offsets = np.array([(-1.0, 0.0) if norm is None else norm for norm in norms], np.float32).T.copy()
        numbers = {"epsilons": epsilons, "offsets": offsets, "interleaved": interleaved}
        results = jax.ffi.ffi_call("bombus_rotate", made)(*tables, *arguments, **numbers)
        return tuple(native.varying_as(result, cos, signed_sin, *arguments) for result in results)

    given = [part for pair in zip(heads, scales, strict=True) for part in pair if part is not None]
    made: tuple[jax.Array, ...] = _dispatched(reference, call, heads[0].dtype, cos, signed_sin, *given)
    return made


def _turned(x_BTNH: jax.Array, cos: jax.Array, signed_sin: jax.Array, interleaved: bool) -> jax.Array:
    pairs = cos.shape[-1]
    rotated = x_BTNH[..., : 2 * pairs].astype(jnp.float32)
    # The two of a pair as an axis that is flipped: a concatenation takes XLA:CPU ten times as long to compile.
    if interleaved:
        cos, signed_sin = jnp.swapaxes(cos, -1, -2), jnp.swapaxes(signed_sin, -1, -2)
        both, axis = rotated.reshape(*x_BTNH.shape[:-1], -1, 2), -1
    else:
        both, axis = rotated.reshape(*x_BTNH.shape[:-1], 2, -1), -2
    turned = both * cos + jnp.flip(both, axis=axis) * signed_sin
    turned_BTNR = turned.astype(x_BTNH.dtype).reshape(rotated.shape)
    if 2 * pairs == x_BTNH.shape[-1]:
        return turned_BTNR
    return lax.dynamic_update_slice_in_dim(x_BTNH, turned_BTNR, 0, axis=-1)


def _dispatched(reference: Callable[..., Any], call: Callable[..., Any], dtype: DType, *arguments: jax.Array) -> Any:
    """The result of the kernel on CPU, and of XLA's operations elsewhere, in derivatives and over other axes."""
    known = {dtype.name, *(argument.dtype.name for argument in arguments)} <= set(TYPES)
    if not known or native.library().loaded is None:
        return reference(*arguments)
    batching = custom_vmap(call)

    @batching.def_vmap
    def batched(size: int, moving: Any, *arguments: jax.Array) -> tuple[Any, Any]:
        axes = tuple(0 if moves else None for moves in moving)
        found = jax.vmap(reference, axes, axis_size=size)(*arguments)
        return found, jax.tree.map(lambda _: True, found)

    @jax.custom_jvp
    def run(*arguments: jax.Array) -> Any:
        return batching(*arguments)

    @run.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        return run(*primals), jax.jvp(reference, primals, tangents)[1]

    return lax.platform_dependent(*arguments, cpu=run, default=reference)

"""RMS normalization and rotary positions by the C++ kernels, one call where XLA:CPU makes several fusions of each.

XLA also computes the sines of a position again for every head that they turn.
Shapes: B batch, T tokens, N heads, H head size, R rotated pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from bombus.kernels import native
from bombus.policies.formats import DType

_TYPES = ("float32", "bfloat16")


# Each is traced once for all layers.
@partial(jax.jit, static_argnames=("epsilon", "offset", "dtype"))
def rms_norm(x: jax.Array, scale: jax.Array, *, epsilon: float, offset: float, dtype: DType) -> jax.Array:
    """x (..., D) / sqrt(mean(x * x) + epsilon) * (offset + scale (D,)), in float32 and rounded once to dtype."""

    def reference(x: jax.Array, scale: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        normal = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
        scale = scale.astype(jnp.float32)
        return (normal * (offset + scale if offset else scale)).astype(dtype)

    def call(x: jax.Array, scale: jax.Array) -> jax.Array:
        made = jax.ShapeDtypeStruct(x.shape, dtype)
        numbers = {"epsilon": np.float32(epsilon), "offset": np.float32(offset)}
        return native.varying_as(jax.ffi.ffi_call("bombus_norm", made)(x, scale, **numbers), x, scale)

    return _dispatched(reference, call, dtype, x, scale)


@partial(jax.jit, static_argnames="interleaved")
def rotate(x_BTNH: jax.Array, tables: tuple[jax.Array, jax.Array], *, interleaved: bool = False) -> jax.Array:
    """x with each pair turned by its angle, in float32, rounded to the type of x.

    tables: (cos, signed sin), (B, T, 1, 1, R) and (B, T, 1, 2, R), see `Rotary.tables`. A pair is (i, i + R), or with
    `interleaved` (2i, 2i + 1). Dimensions from 2R on pass.
    """
    cos, signed_sin = tables
    tokens, pairs = x_BTNH.shape[:2], cos.shape[-1]

    def reference(x_BTNH: jax.Array, cos: jax.Array, signed_sin: jax.Array) -> jax.Array:
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

    def call(x_BTNH: jax.Array, cos: jax.Array, signed_sin: jax.Array) -> jax.Array:
        made = jax.ShapeDtypeStruct(x_BTNH.shape, x_BTNH.dtype)
        tables = (jnp.broadcast_to(table, (*tokens, *table.shape[2:])) for table in (cos, signed_sin))
        result = jax.ffi.ffi_call("bombus_rotate", made)(x_BTNH, *tables, interleaved=interleaved)
        return native.varying_as(result, x_BTNH, cos, signed_sin)

    return _dispatched(reference, call, x_BTNH.dtype, x_BTNH, cos, signed_sin)


def _dispatched(
    reference: Callable[..., jax.Array], call: Callable[..., jax.Array], dtype: DType, *arguments: jax.Array
) -> jax.Array:
    """The result of the kernel on CPU, and of XLA's operations elsewhere, in derivatives and over other axes."""
    known = {dtype.name, *(argument.dtype.name for argument in arguments)} <= set(_TYPES)
    if not known or native.library().loaded is None:
        return reference(*arguments)
    batching = custom_vmap(call)

    @batching.def_vmap
    def batched(size: int, moving: Any, *arguments: jax.Array) -> tuple[jax.Array, bool]:
        return jax.vmap(reference, tuple(0 if moves else None for moves in moving), axis_size=size)(*arguments), True

    @jax.custom_jvp
    def run(*arguments: jax.Array) -> jax.Array:
        return batching(*arguments)

    @run.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        return run(*primals), jax.jvp(reference, primals, tangents)[1]

    return lax.platform_dependent(*arguments, cpu=run, default=reference)

"""Writing new slots into a cache where it is, which XLA:CPU does not do for every type.

Its dynamic_update_slice of bfloat16 or float8, or of their bits, reads and writes the whole buffer every time.
Shapes: B rows, K heads, X = B * K, S slots, T new slots.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from bombus.kernels import native
from bombus.kernels.weight import as_bits, from_bits


@jax.jit
def write_slots(old: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    """old (X, S, ...) with new (X, T, ...) or (B, T, K, ...), of the same type, at slot `first` and after."""
    first = jnp.asarray(first, jnp.int32)
    if old.dtype.itemsize > 2 or not jnp.issubdtype(old.dtype, jnp.floating) or native.library().loaded is None:
        return _with_xla(old, new, first)
    return lax.platform_dependent(old, new, first, cpu=_native, default=_with_xla)


def heads_first(new: jax.Array) -> jax.Array:
    """(B, T, K, ...) as a cache has it, (X, T, ...)."""
    batch, tokens, heads, *rest = new.shape
    return new.swapaxes(1, 2).reshape(batch * heads, tokens, *rest)


def _with_xla(old: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    return from_bits(_plain(as_bits(old), as_bits(new), first), old.dtype)


def _plain(old: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(old, new if new.ndim == old.ndim else heads_first(new), first, axis=1)


@custom_vmap
def _in_place(old: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    made = jax.ShapeDtypeStruct(old.shape, old.dtype)
    write = jax.ffi.ffi_call("bombus_write", made, input_output_aliases={0: 0})
    # In one row: XLA copies an axis of size one for the order of the others.
    result = write(old, new.reshape(-1), first, heads=old.shape[0] // max(new.shape[0], 1))
    return native.varying_as(result, old, new, first)


@_in_place.def_vmap
def _in_place_batch(size: int, moving: Any, *arguments: jax.Array) -> tuple[jax.Array, bool]:
    return jax.vmap(_with_xla, tuple(0 if moves else None for moves in moving), axis_size=size)(*arguments), True


@jax.custom_jvp
def _native(old: jax.Array, new: jax.Array, first: jax.Array) -> jax.Array:
    return _in_place(old, new, first)


@_native.defjvp
def _native_jvp(primals: Any, tangents: Any) -> Any:
    return _native(*primals), jax.jvp(_plain, primals, tangents)[1]

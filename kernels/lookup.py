"""Rows of a table: the embedding of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from bombus.kernels import native
from bombus.kernels.weight import Weight, as_bits, row_values


@jax.jit
def lookup(table: Weight, tokens: jax.Array) -> jax.Array:
    """table[tokens], (..., D), for integer tokens (...). Tokens past the end get the last row.

    In the table's type, or in float32 from a table in low precision, of which only these rows are converted.
    """
    dtype = jnp.dtype(jnp.float32) if table.format.is_low else table.codes.dtype
    rows = native.on_pool(tokens.reshape(-1))  # every model begins here

    def read() -> jax.Array:
        if not table.format.is_low:
            return jnp.take(table.codes, rows, axis=0, mode="clip")
        bits = jnp.take(as_bits(table.codes), rows, axis=0, mode="clip")
        codes = bits if bits.dtype == table.codes.dtype else lax.bitcast_convert_type(bits, table.codes.dtype)
        return row_values(table, jnp.minimum(rows, table.shape[0] - 1), codes)

    # XLA:CPU gathers from bfloat16 by way of a float32 copy of the whole table, which it hoists out of a generation
    # loop and keeps. It does not hoist out of a conditional.
    found = lax.cond(
        jnp.any(rows >= 0),  # always, for tokens
        read,
        lambda: jnp.zeros((rows.size, table.shape[1]), dtype),
    )
    return found.reshape(*tokens.shape, table.shape[1])

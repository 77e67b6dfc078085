"""Rows of a table: the embedding of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


@jax.jit
def lookup(table_VD: jax.Array, tokens: jax.Array) -> jax.Array:
    """table[tokens], (..., D) in the table's type, for integer tokens (...). Tokens past the end get the last row."""
    # XLA:CPU gathers from bfloat16 by way of a float32 copy of the whole table, which it hoists out of a generation
    # loop and keeps. It does not hoist out of a conditional.
    return lax.cond(
        jnp.any(tokens >= 0),  # always, for tokens
        lambda: jnp.take(table_VD, tokens, axis=0, mode="clip"),
        lambda: jnp.zeros((*tokens.shape, table_VD.shape[1]), table_VD.dtype),
    )

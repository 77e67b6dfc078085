"""Token embedding, and its use as a tied head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.kernels import lookup, product
from bombus.layers.layer import Layer
from bombus.policies.formats import DType


class Embedding(Layer):
    """tokens (...) -> (..., D) from an `embedding` (V, D). Its type is the type of the residual stream."""

    def __init__(self, vocab_size: int, hidden_size: int, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab_size, hidden_size), jnp.float32))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        table = self.embedding.get_value()
        # Rows first, then the cast: never a cast of the whole table.
        rows = lookup(table, tokens).astype(self.compute_type("embedding", table.dtype))
        return rows.astype(self.output_type_of("embedding", rows.dtype))

    def attend(self, x: jax.Array, output_type: DType) -> jax.Array:
        """x (..., D) -> logits (..., V), in `output_type` unless the policy says: the head of a tied model."""
        logits = product(x, self.embedding.get_value(), compute_type=self.compute_type("embedding", x.dtype))
        return logits.astype(self.output_type_of("embedding", output_type))

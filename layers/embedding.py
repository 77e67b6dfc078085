"""Token embedding, and its use as a tied head."""

from __future__ import annotations

import jax

from bombus.kernels import lookup, product
from bombus.layers.layer import WeightLayer
from bombus.policies.formats import DType


class Embedding(WeightLayer):
    """tokens (...) -> (..., D) from an `embedding` (V, D). Its type is the type of the residual stream.

    `dequantized_type` is that type where the table is in low precision and no policy says.
    """

    weight_name = "embedding"
    dequantized_type: DType | None = None

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__(vocab_size, hidden_size)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        # Rows first, then the cast: never a cast of the whole table.
        rows = lookup(self.weight, tokens)
        stored = self.dequantized_type if self.format.is_low and self.dequantized_type is not None else rows.dtype
        rows = rows.astype(self.compute_type("embedding", stored))
        return rows.astype(self.output_type_of("embedding", rows.dtype))

    def attend(self, x: jax.Array, output_type: DType) -> jax.Array:
        """x (..., D) -> logits (..., V), in `output_type` unless the policy says: the head of a tied model."""
        logits = product(x, self.weight, compute_type=self.compute_type("embedding", x.dtype))
        return logits.astype(self.output_type_of("embedding", output_type))

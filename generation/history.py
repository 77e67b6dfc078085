"""What each row has read and written so far, for the processors of logits.

Shapes: B batch, L slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class History:
    """Prompts padded on the left to `prompt_slots`, then the new tokens.

    tokens_BL (B, L) int32; real_BL (B, L) says which slots hold a token: padding and slots not yet written do not;
    length () int32 counts the slots used, padding included.
    """

    tokens_BL: jax.Array
    real_BL: jax.Array
    length: jax.Array
    prompt_slots: int = field(metadata={"static": True})

    @property
    def step(self) -> jax.Array:
        """The number of new tokens so far, ()."""
        return self.length - self.prompt_slots

    @property
    def new_BL(self) -> jax.Array:
        """Which slots hold new tokens, (B, L)."""
        return self.real_BL & (jnp.arange(self.real_BL.shape[1]) >= self.prompt_slots)

    @property
    def prompt_length_B(self) -> jax.Array:
        """The number of tokens of each prompt, without its padding, (B,) int32."""
        return self.real_BL[:, : self.prompt_slots].sum(axis=1, dtype=jnp.int32)

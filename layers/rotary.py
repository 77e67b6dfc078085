"""Rotary position embedding (Su et al. 2021, "RoFormer"), of a whole head or of its first dimensions.

Shapes: B batch, T tokens, N heads, H head size, R rotated pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bombus.layers.rotary_scaling import DynamicScaling, LongScaling, Scaling, plain_frequencies
from bombus.policies.errors import Problem


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """How positions turn queries and keys.

    `theta` is the base of the frequencies, `scaling` how they are stretched, `fraction` the share of a head's
    dimensions that is rotated; the rest passes.
    """

    theta: float
    scaling: Scaling | None = None
    fraction: float = 1.0

    def size(self, head_dim: int) -> int:
        """The number of dimensions that are rotated, 2R."""
        return int(head_dim * self.fraction)

    def frequencies(self, head_dim: int, length: jax.Array | int | None = None) -> np.ndarray | jax.Array:
        """The angle per position of each pair, (R,), float32; (B, R) for lengths (B, 1).

        `length` is the largest position plus one; None stands for a length within the original context.
        """
        size = self.size(head_dim)
        if self.scaling is None:
            return plain_frequencies(self.theta, size)
        return self.scaling.frequencies(self.theta, size, length)

    def tables(self, positions_BT: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
        """(cos, signed sin) of every pair's angle, (B, T, 1, 1, R) and (B, T, 1, 2, R) in float32.

        Built once per call of a model. The magnitude of the scaling is in them.
        """
        # An array of its own only where the length matters: constants are folded while compiling.
        frequencies = self.frequencies(head_dim)
        if isinstance(self.scaling, DynamicScaling | LongScaling):
            # Of each row by itself, so that no row depends on those beside it; in transformers the longest decides.
            frequencies = self.frequencies(head_dim, positions_BT.max(axis=1)[:, None] + 1)[:, None, None, None]
        angles = positions_BT[:, :, None, None, None].astype(jnp.float32) * frequencies
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        magnitude = 1.0 if self.scaling is None else self.scaling.magnitude
        if magnitude != 1.0:
            cos, sin = cos * magnitude, sin * magnitude
        return cos, sin * jnp.array([-1.0, 1.0], jnp.float32)[:, None]

    def problems(self, head_dim: int) -> list[Problem]:
        """What is wrong with this for heads of `head_dim`: a size that has no pairs, lists of another length."""
        size = self.size(head_dim)
        if size < 2 or size % 2:
            return [
                Problem(
                    subject="rotary positions",
                    message="must rotate an even number of a head's dimensions",
                    found=f"{size} ({self.fraction} of {head_dim})",
                )
            ]
        if isinstance(self.scaling, DynamicScaling) and size == 2:
            return [
                Problem(
                    subject="rotary positions",
                    message="of type 'dynamic' need more than one rotated pair",
                    found=f"{size} dimensions ({self.fraction} of {head_dim})",
                )
            ]
        if not isinstance(self.scaling, LongScaling):
            return []
        lists = {"short_factor": self.scaling.short_factor, "long_factor": self.scaling.long_factor}
        return [
            Problem(
                subject=f"field 'rope_scaling.{key}'",
                message="must have one number for each rotated pair",
                expected=f"{size // 2} numbers",
                found=str(len(factors)),
            )
            for key, factors in lists.items()
            if len(factors) != size // 2
        ]

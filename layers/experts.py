"""Experts: gated feed-forwards whose kernels are stacked, of which each row uses some.

Shapes: T tokens, K experts of each, P places of their rows in order of the experts (kernels/grouped.py), E experts,
D hidden, F feed-forward, I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.kernels import Groups, group_rows, grouped_product
from bombus.layers.activations import ACTIVATIONS, check_activation
from bombus.layers.layer import WeightLayer, declare


@dataclass(frozen=True, kw_only=True)
class ClampedSwish:
    """The gate of gpt-oss: (intermediate + 1) * gate * sigmoid(alpha * gate), both clamped beforehand.

    gate is at most `limit`, intermediate between -limit and limit.
    """

    limit: float = 7.0
    alpha: float = 1.702

    def __call__(self, gate: jax.Array, intermediate: jax.Array) -> jax.Array:
        """The product of equal shapes and types."""
        gate = jnp.minimum(gate, self.limit)
        intermediate = jnp.clip(intermediate, -self.limit, self.limit)
        return (intermediate + 1) * (gate * jax.nn.sigmoid(self.alpha * gate))


class ExpertDense(WeightLayer):
    """x (P, I), grouped -> (P, O): each row by its expert's part of the `kernel` (E, O, I) and the `bias` (E, O)."""

    weight_name = "kernel"

    def __init__(self, inputs: int, outputs: int, *, experts: int, bias: bool = False) -> None:
        super().__init__(outputs, inputs, experts=experts)
        self.bias = declare((experts, outputs), jnp.dtype(jnp.float32)) if bias else None

    def __call__(self, x_PI: jax.Array, groups: Groups) -> jax.Array:
        compute_type = self.compute_type("kernel", x_PI.dtype)
        y_PO = grouped_product(x_PI, groups, self.weight, compute_type=compute_type)
        if self.bias is not None:
            bias_EO = self.bias.get_value()
            bias_EO = bias_EO.astype(self.compute_type("bias", bias_EO.dtype)).astype(jnp.float32)
            y_PO = y_PO + jnp.repeat(bias_EO[groups.expert_N], groups.rows, axis=0)
        return y_PO.astype(self.output_type_of("kernel", x_PI.dtype))


class Experts(nnx.Module):
    """x (T, D), its experts (T, K) and their weights (T, K) -> the weighted sum of these feed-forwards, (T, D).

    Each is that of GatedFeedForward; `activation` may also be a ClampedSwish.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        experts: int,
        activation: str | ClampedSwish,
        bias: bool = False,
    ) -> None:
        if isinstance(activation, str):
            check_activation(activation)
        self.gate = ExpertDense(hidden_size, intermediate_size, experts=experts, bias=bias)
        self.intermediate = ExpertDense(hidden_size, intermediate_size, experts=experts, bias=bias)
        self.output = ExpertDense(intermediate_size, hidden_size, experts=experts, bias=bias)
        self.activation = activation
        self.num_experts = experts

    def __call__(self, x_TD: jax.Array, experts_TK: jax.Array, weights_TK: jax.Array) -> jax.Array:
        groups = group_rows(experts_TK, self.num_experts)
        x_PD = groups.gather(x_TD)
        gate = self.gate(x_PD, groups)
        intermediate = self.intermediate(x_PD, groups).astype(gate.dtype)
        if isinstance(self.activation, str):
            gated = ACTIVATIONS[self.activation](gate) * intermediate
        else:
            gated = self.activation(gate, intermediate)
        y_PD = self.output(gated, groups)
        return groups.combine(y_PD, weights_TK).astype(y_PD.dtype)

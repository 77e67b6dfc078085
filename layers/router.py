"""Router: which experts a row goes to, and how much each counts.

Shapes: R rows, D hidden, E experts, K experts of a row, G groups of experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from bombus.kernels import product
from bombus.layers.layer import WeightLayer, declare
from bombus.policies.errors import Problem, SpecError

_FLOAT32 = jnp.dtype(jnp.float32)
_LEAST_SUM = 1e-20  # DeepSeek-V3's


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How logits (R, E) become a choice of `top_k` experts and their weights.

    scoring: "softmax" over all experts (Mixtral, Qwen3-MoE), "sigmoid" (DeepSeek-V3), or "chosen_softmax", over the
    logits of the chosen (gpt-oss). normalized: whether the weights of a row are divided by their sum. scale: what they
    are multiplied with at last. groups, top_groups: only experts of the best groups are chosen, a group by the sum of
    its best two scores.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid", "chosen_softmax"] = "softmax"
    normalized: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1

    def check(self, num_experts: int) -> None:
        """Raise SpecError when so many experts cannot be chosen from in this way."""
        problems = []
        if num_experts % self.groups:
            problems.append(
                Problem(
                    subject="router",
                    message=f"cannot cut {num_experts} experts into {self.groups} groups",
                    expected="groups of one size",
                )
            )
        elif self.top_k > num_experts // self.groups * self.top_groups:
            problems.append(
                Problem(
                    subject="router",
                    message=f"cannot choose {self.top_k} experts of {num_experts // self.groups * self.top_groups}",
                )
            )
        if not 1 <= self.top_groups <= self.groups:
            problems.append(
                Problem(subject="router", message=f"cannot choose {self.top_groups} groups of {self.groups}")
            )
        if problems:
            raise SpecError(problems)

    def choose(self, logits_RE: jax.Array, selection_bias_E: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The weights (R, K), float32, and the experts (R, K), int32, for float32 logits; of equals the first.

        selection_bias counts for the choice and not for the weights.
        """
        if self.scoring == "chosen_softmax":
            scores_RE = logits_RE
        else:
            scores_RE = jax.nn.sigmoid(logits_RE) if self.scoring == "sigmoid" else jax.nn.softmax(logits_RE, axis=-1)
        ranked_RE = scores_RE if selection_bias_E is None else scores_RE + selection_bias_E
        if self.top_groups < self.groups:
            ranked_RE = jnp.where(self._in_best_groups(ranked_RE), ranked_RE, -jnp.inf)
        experts_RK = lax.top_k(ranked_RE, self.top_k)[1]
        weights_RK = jnp.take_along_axis(scores_RE, experts_RK, axis=-1)
        if self.scoring == "chosen_softmax":
            weights_RK = jax.nn.softmax(weights_RK, axis=-1)
        elif self.normalized:
            weights_RK = weights_RK / (weights_RK.sum(axis=-1, keepdims=True) + _LEAST_SUM)
        return weights_RK * self.scale, experts_RK.astype(jnp.int32)

    def _in_best_groups(self, ranked_RE: jax.Array) -> jax.Array:
        """Which experts are of the best groups, (R, E)."""
        rows, experts = ranked_RE.shape
        size = experts // self.groups
        best_RG = lax.top_k(ranked_RE.reshape(rows, self.groups, size), min(2, size))[0].sum(axis=-1)
        chosen = lax.top_k(best_RG, self.top_groups)[1]
        is_chosen_RG = (chosen[..., None] == jnp.arange(self.groups)).any(axis=1)
        return jnp.repeat(is_chosen_RG, size, axis=1)


class Router(WeightLayer):
    """x (R, D) -> weights (R, K) and experts (R, K), by a `kernel` (E, D), computed in float32 where no policy says.

    bias: whether logits have one. selection_bias: whether there is one that counts for the choice only.
    """

    weight_name = "kernel"

    def __init__(
        self, hidden_size: int, num_experts: int, routing: Routing, *, bias: bool = False, selection_bias: bool = False
    ) -> None:
        routing.check(num_experts)
        super().__init__(num_experts, hidden_size)
        self.bias = declare((num_experts,), _FLOAT32) if bias else None
        self.selection_bias = declare((num_experts,), _FLOAT32) if selection_bias else None
        self.routing = routing

    def __call__(self, x_RD: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_RE = product(x_RD, self.weight, compute_type=self.compute_type("kernel", _FLOAT32))
        if self.bias is not None:
            logits_RE = logits_RE + self.bias.get_value().astype(_FLOAT32)
        selection_bias = None if self.selection_bias is None else self.selection_bias.get_value().astype(_FLOAT32)
        return self.routing.choose(logits_RE, selection_bias)

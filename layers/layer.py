"""Layer: an nnx module whose parameters each follow a policy."""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx

from bombus.policies.formats import DType
from bombus.policies.policy import Policy, resolve_type


class Layer(nnx.Module):
    """A module that owns parameters. `policies` maps a parameter's name to its Policy; the model sets it.

    Where a policy says nothing (None), the layer computes in the type of its input and returns that type.
    """

    policies: tuple[tuple[str, Policy | None], ...] = ()

    def set_policies(self, policies: Mapping[str, Policy | None]) -> None:
        """Attach the policies, as hashable static data of the module."""
        self.policies = tuple(sorted(policies.items()))

    def compute_type(self, name: str, otherwise: DType) -> DType:
        """The type in which parameter `name` is computed; `otherwise` where its policy leaves it."""
        found = resolve_type(dict(self.policies).get(name), "compute", name)
        return otherwise if found is None else found

    def output_type_of(self, name: str, otherwise: DType) -> DType:
        """The type the layer returns, by the policy of its main parameter `name`; else `otherwise`."""
        found = resolve_type(dict(self.policies).get(name), "output")
        return otherwise if found is None else found

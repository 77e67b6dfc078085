"""Layer: an nnx module whose parameters each follow a policy, and WeightLayer, whose weight has a storage format.

Layers are made of shapes, not of arrays: a model makes the values or reads them, and binds them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from bombus.kernels import Weight, map_experts, quantize
from bombus.policies.formats import PARTS, WEIGHTS, DType, Format, Shape, find_format
from bombus.policies.policy import Policy, resolve_type


def declare(shape: Shape, dtype: DType) -> nnx.Param:
    """A parameter of this shape and type, without values."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))


def initial_values(name: str, key: jax.Array, shape: Shape) -> jax.Array:
    """Float32 values for a parameter of this name: normal(0, 0.02) for weights, ones for scales, else zeros."""
    if name in WEIGHTS:
        # 0.02 is what transformers initialises with (`initializer_range`).
        return 0.02 * jax.random.normal(key, shape, jnp.float32)
    return _CONSTANTS[name](shape, jnp.float32)


def initial_weight(name: str, key: jax.Array, shape: Shape, format: Format) -> Weight:
    """A weight (O, I) of such values in `format`; of a stack (E, O, I) expert by expert, never all in float32."""
    if len(shape) == 2:
        return quantize(initial_values(name, key, shape), format)

    def draw(expert: jax.Array) -> Weight:
        return quantize(initial_values(name, jax.random.fold_in(key, expert), shape[1:]), format)

    return map_experts(draw, jnp.arange(shape[0]))


_CONSTANTS = {"scale": jnp.ones, "bias": jnp.zeros, "selection_bias": jnp.zeros, "sinks": jnp.zeros}


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

    def store_as(self, name: str, format: Format) -> None:
        """Make parameter `name` one of `format`; its shape stays."""
        shape = getattr(self, name).get_value().shape
        setattr(self, name, declare(shape, format.dtype))


class WeightLayer(Layer):
    """A layer with a weight (O, I), in the attribute that `weight_name` says, that may be stored in any format.

    experts: how many of them are stacked, (E, O, I); all in one format, with scales of their own.
    """

    weight_name: ClassVar[str]

    def __init__(self, outputs: int, inputs: int, *, experts: int | None = None) -> None:
        self.shape: Shape = (outputs, inputs) if experts is None else (experts, outputs, inputs)
        self.format = find_format("f32")
        setattr(self, self.weight_name, declare(self.shape, self.format.dtype))
        self.scale_inv: nnx.Param | None = nnx.data(None)
        self.zero_point: nnx.Param | None = nnx.data(None)
        self.global_scale: nnx.Param | None = nnx.data(None)

    def store_as(self, name: str, format: Format) -> None:
        """As for any layer; a weight gets room for the parts of its format."""
        if name != self.weight_name:
            super().store_as(name, format)
            return
        self.format = format
        setattr(self, name, declare(format.codes_shape(self.shape), format.dtype))
        for part, (shape, dtype) in format.parts(self.shape).items():
            setattr(self, part, declare(shape, dtype))

    @property
    def weight(self) -> Weight:
        """The weight as it is stored; of experts the stack."""
        codes = getattr(self, self.weight_name).get_value()
        if not self.format.is_low:
            # The type of the array counts, so that a module works with parameters that a user has cast.
            return Weight.plain(codes)
        parts = {name: part.get_value() for name in PARTS if (part := getattr(self, name)) is not None}
        return Weight(codes=codes, **parts, format=self.format, shape=(self.shape[-2], self.shape[-1]))

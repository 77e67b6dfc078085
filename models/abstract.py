"""A model's module tree with shapes in place of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from flax import nnx

from bombus.layers import Layer
from bombus.models.registry import architecture_of
from bombus.models.spec import DecoderSpec
from bombus.policies.formats import Format


def abstract_module(spec: DecoderSpec, formats: Mapping[str, Format]) -> nnx.Module:
    """The module tree with shapes in place of arrays, stored as `formats` says where it names a parameter."""
    module = nnx.merge(*_built(spec))
    layers = named_layers(module)
    for path, format in formats.items():
        layer, _, name = path.rpartition(".")
        layers[layer].store_as(name, format)
    return module


# Building a module of many layers takes a good part of a second, and a load asks for it more than once.
@lru_cache(maxsize=8)
def _built(spec: DecoderSpec) -> tuple[nnx.GraphDef[Any], nnx.State]:
    return nnx.split(architecture_of(spec).build(spec))


@lru_cache(maxsize=8)
def abstract_shapes(spec: DecoderSpec) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter of a model of `spec`, by path."""
    shapes = {dotted(key): variable.get_value().shape for key, variable in nnx.to_flat_state(_built(spec)[1])}
    return MappingProxyType(shapes)


def named_layers(module: nnx.Module) -> dict[str, Layer]:
    """Every layer that owns parameters, by path."""
    return {dotted(key): part for key, part in nnx.iter_modules(module) if isinstance(part, Layer)}


def dotted(key: tuple[Any, ...]) -> str:
    """A path of nnx as one of ours: "decoder.blocks.0.ffn"."""
    return ".".join(map(str, key))

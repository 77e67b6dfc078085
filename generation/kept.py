"""Programs that an earlier process has traced: read in place of tracing and lowering them again.

What is kept is StableHLO as jax.export writes it, in which nothing is Python. The key is a digest of everything that
decides what is traced; a program that depends on what no digest can tell, a user's function, is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import FunctionType, MappingProxyType
from typing import Any

import flax
import jax
import jaxlib
import ml_dtypes
import numpy as np
from jax import export

from bombus.generation.history import History
from bombus.generation.sampling import Sampling
from bombus.generation.state import Call, Logprobs, Plan, State
from bombus.kernels import native
from bombus.layers import Cache, LayerCache, Stored
from bombus.loader.compiled import keep_lowered, lowered_folder, read_lowered, source_digest
from bombus.models import Model

# What traces programs. JAX's own settings are all in the key but for these, which decide nothing.
_PACKAGES = ("policies", "kernels", "layers", "models", "generation")
_INDIFFERENT = ("jax_compilation_cache", "jax_persistent_cache", "jax_log", "jax_explain")
_VARIABLES = ("BOMBUS_KERNELS", "XLA_", "TF_", "LIBTPU_")


class NotPlain(Exception):
    """Something that no text can stand for."""


def plain(value: Any) -> Any:
    """Plain data that differs where the values do: of constants, containers, our dataclasses and our functions.

    Raises NotPlain for anything else, a user's functions and classes among it.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return ["float", value.hex()]  # which tells -0.0 from 0.0
    if kind in (tuple, list):
        return [kind.__name__, *map(plain, value)]
    if isinstance(value, np.dtype):
        return ["dtype", value.name]
    if kind is FunctionType and _ours(value):
        return ["function", value.__module__, value.__qualname__]
    if isinstance(value, Mapping) and (kind in (dict, MappingProxyType) or _ours(kind)):
        return [kind.__qualname__, *([plain(key), plain(of)] for key, of in value.items())]
    if is_dataclass(value) and _ours(kind):
        return [kind.__module__, kind.__qualname__, {f.name: plain(getattr(value, f.name)) for f in fields(value)}]
    raise NotPlain(kind)


def _ours(value: Any) -> bool:
    """Whether a class or function is this package's, found under its name: no closure, and nobody else's."""
    module = sys.modules.get(value.__module__)
    ours = value.__module__.startswith("bombus.")
    return ours and getattr(module, value.__qualname__, None) is value


def program_key(model: Model, plan: Plan, arguments: Any) -> str | None:
    """The digest that names the programs of a model and a plan for such arguments; None where they are not kept.

    arguments: a tree of jax.ShapeDtypeStruct, whose shardings say where the arrays are.
    """
    if lowered_folder() is None:
        return None
    leaves, tree = jax.tree.flatten(arguments)
    device = jax.devices()[0]
    if jax.config.values["jax_default_device"] is not None:
        return None
    if any(leaf.sharding is not None and leaf.sharding.device_set != {device} for leaf in leaves):
        return None
    try:
        what = [plain(value) for value in (model.spec, model.decisions, model.formats, model.main_type, plan)]
    except NotPlain:
        return None
    # Also makes the kernels known to XLA, which programs call by name.
    about = [*_versions(), device.platform, device.device_kind, native.kernels_in_use()]
    variables = sorted(pair for pair in os.environ.items() if pair[0].startswith(_VARIABLES))
    names = [name for name in sorted(jax.config.values) if not name.startswith(_INDIFFERENT)]
    # As attributes, which `with` blocks may have changed in this thread.
    settings = [[name, repr(getattr(jax.config, name, None))] for name in names]
    shapes = [[leaf.shape, leaf.dtype.name] for leaf in leaves]
    text = json.dumps([about, variables, settings, what, str(tree), shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _versions() -> list[str]:
    versions = [module.__version__ for module in (jax, jaxlib, flax, np, ml_dtypes)]
    folders = [folder for name in _PACKAGES for folder in sys.modules[f"bombus.{name}"].__path__]
    return [sys.version, platform.machine(), *versions, source_digest(folders)]


def traced(
    key: str | None, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], donated: tuple[int, ...] = ()
) -> jax.stages.Traced:
    """The program of a function for such arguments, to be lowered and compiled: as kept, else traced and kept.

    donated: which of the arguments are given away. Without a key nothing is kept.
    """
    if key is None:
        return jax.jit(function, donate_argnums=donated).trace(*arguments)
    _know_nodes()
    # Where the arrays are does not matter to the program, and every array is there. Flat, for trees take long to read.
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    leaves, tree = jax.tree.flatten(bare)
    kept = read_lowered(f"{key}-{name}")
    if kept is not None:
        try:
            return _called(name, export.deserialize(bytearray(kept)), bare, donated)
        except Exception:  # of flatbuffers, MLIR or JAX: whatever it is, there is another way
            pass
    try:
        # Whatever it calls is as stable as its key, in which all versions are.
        stable = [export.DisabledSafetyCheck.custom_call("ALL")]
        flat = jax.jit(lambda *leaves: function(*jax.tree.unflatten(tree, leaves)))
        exported = export.export(flat, disabled_checks=stable)(*leaves)
        keep_lowered(f"{key}-{name}", bytes(exported.serialize()))
    except (ValueError, NotImplementedError):  # what JAX does not export
        return jax.jit(function, donate_argnums=donated).trace(*arguments)
    # What the next process will compile, so that it finds it compiled.
    return _called(name, exported, bare, donated)


def _called(
    name: str, exported: export.Exported, arguments: tuple[Any, ...], donated: tuple[int, ...]
) -> jax.stages.Traced:
    def call(*arguments: Any) -> Any:
        return exported.call(*jax.tree.leaves(arguments))

    call.__name__ = name
    return jax.jit(call, donate_argnums=donated).trace(*arguments)


@cache
def _know_nodes() -> None:
    """Tell jax.export how the static fields of our pytrees are written: all are numbers."""
    # They import the loop, which imports this.
    from bombus.generation.beam import Beams
    from bombus.generation.contrastive import Context
    from bombus.generation.lookup import Drafted
    from bombus.generation.loop import NextLogits

    nodes = (Call, Sampling, State, History, Logprobs, Cache, LayerCache, Stored, NextLogits, Beams, Context, Drafted)
    for node in nodes:
        export.register_pytree_node_serialization(
            node,
            serialized_name=f"{node.__module__}.{node.__qualname__}",
            serialize_auxdata=lambda values: json.dumps(values).encode(),
            deserialize_auxdata=lambda text: tuple(json.loads(text)),
        )

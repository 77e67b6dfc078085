"""Programs that an earlier process has compiled: read in place of tracing, lowering and compiling them again.

The key is a digest of everything that decides what is traced and what it is compiled for; a program that depends on
what no digest can tell, a user's function, is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from types import FunctionType, MappingProxyType
from typing import Any

import flax
import jax
import jaxlib
import ml_dtypes
import numpy as np
from jax.experimental import serialize_executable

from bombus.generation.state import Plan
from bombus.kernels import native
from bombus.loader.compiled import keep_bytes, kept_folder, processor, read_kept, source_digest
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
    if kept_folder() is None:
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
    return [sys.version, platform.machine(), *processor(), *versions, source_digest(folders)]


def read_program(key: str | None, name: str) -> jax.stages.Compiled | None:
    """The program that was kept under a key; None where none was, or what is there cannot be read."""
    contents = None if key is None else read_kept(f"{key}-{name}")
    if contents is None:
        return None
    try:
        payload, taken, given = pickle.loads(contents)
        return serialize_executable.deserialize_and_load(payload, taken, given, execution_devices=jax.devices()[:1])
    except Exception:  # of pickle, JAX or XLA: whatever it is, there is another way
        return None


def keep_program(key: str | None, name: str, program: jax.stages.Compiled) -> None:
    """Keep a program for the next process, where there is a key and JAX can write such a program."""
    if key is None:
        return
    with suppress(ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
        keep_bytes(f"{key}-{name}", pickle.dumps(serialize_executable.serialize(program)))

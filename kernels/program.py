"""Programs that convert one array after another, as a load does, and of which nothing but the program is kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial, wraps
from typing import Any, TypeVar

import jax

_Result = TypeVar("_Result")


def program(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """`function` of a setting, or None, and of trees of arrays, compiled once for each setting and kind of arrays.

    As jax.jit, which would also keep all that it traced and lowered for as long as the process lives: a megabyte for
    every kind of weight in a checkpoint, some ten times the program itself. Traced, it is the function.
    """
    compiled: dict[Hashable, Callable[..., _Result]] = {}

    @wraps(function)
    def run(setting: Hashable, *trees: Any) -> _Result:
        leaves, tree = jax.tree.flatten(trees)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return function(setting, *trees)
        kinds = tuple((leaf.shape, leaf.dtype, leaf.sharding if leaf.committed else None) for leaf in leaves)
        key = (setting, tree, kinds, jax.config.values["jax_default_device"])
        if key not in compiled:
            # A function of its own: JAX finds by it what it has traced, and forgets that with it.
            own: Any = partial(function, setting)
            own.__name__ = function.__name__
            compiled[key] = jax.jit(own).lower(*trees).compile()
        return compiled[key](*trees)

    return run

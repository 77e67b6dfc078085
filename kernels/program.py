"""Programs that convert one array after another, as a load does, and of which nothing but the program is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial, update_wrapper
from typing import Any, Generic, TypeVar

import jax

_Result = TypeVar("_Result")


class program(Generic[_Result]):
    """A function of a setting, or None, and of trees of arrays, compiled once for each setting and kind of arrays.

    As jax.jit, which would also keep all that it traced and lowered for as long as the process lives: a megabyte for
    every kind of weight in a checkpoint, some ten times the program itself. Traced, it is the function.
    """

    def __init__(self, function: Callable[..., _Result]) -> None:
        self._function = function
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}
        update_wrapper(self, function)

    def __call__(self, setting: Hashable, *trees: Any) -> _Result:
        if _are_traced(trees):
            return self._function(setting, *trees)
        result: _Result = self._compile(setting, trees)(*trees)
        return result

    def temporary_bytes(self, setting: Hashable, *trees: Any) -> float:
        """What it would take beside its arrays and its result: nothing, where it is part of another program.

        Infinite where the backend does not say.
        """
        if _are_traced(trees):
            return 0
        analysis = self._compile(setting, trees).memory_analysis()
        return math.inf if analysis is None else analysis.temp_size_in_bytes

    def _compile(self, setting: Hashable, trees: tuple[Any, ...]) -> jax.stages.Compiled:
        leaves, tree = jax.tree.flatten(trees)
        kinds = tuple((leaf.shape, leaf.dtype, leaf.sharding if leaf.committed else None) for leaf in leaves)
        key = (setting, tree, kinds, jax.config.values["jax_default_device"])
        if key not in self._compiled:
            # A function of its own: JAX finds by it what it has traced, and forgets that with it.
            own: Any = partial(self._function, setting)
            own.__name__ = self._function.__name__
            self._compiled[key] = jax.jit(own).lower(*trees).compile()
        return self._compiled[key]


def _are_traced(trees: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))

"""Selection: the outputs of a tensor that are one parameter's, of those that a fused or transposed layer holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bombus.loader.layouts import CODES
from bombus.loader.tensors import empty
from bombus.policies.formats import Format, Shape
from bombus.policies.options import checked_options


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """rows: the numbers of the outputs, of `outputs`; None for all. transposed: the tensor is (in, out)."""

    rows: np.ndarray | None
    outputs: int
    transposed: bool

    def __repr__(self) -> str:
        # Part of the key of the cache.
        rows = None if self.rows is None else self.rows.tolist()
        return f"Selection({rows}, {self.outputs}, {self.transposed})"

    def file_shape(self, shape: Shape) -> Shape:
        """The shape of the tensor of which a parameter of this shape is selected."""
        whole = shape if self.rows is None else (self.outputs, *shape[1:])
        return whole[::-1] if self.transposed else whole

    def format_of(self, found: Format) -> Format | None:
        """The format of what is selected of a weight in format `found`; None where its tiles cannot be cut so.

        A tile of which only some rows are selected becomes several of fewer rows: with its codes and its scale.
        """
        if not found.is_low:
            return found
        tile = found.tile[::-1] if self.transposed else found.tile
        if self.transposed and (found.packed or found.kind.global_scale):
            return None
        rows = math.gcd(tile[0], *self._edges()) if tile[0] and self.rows is not None else tile[0]
        if (rows, tile[1]) == found.tile:
            return found
        if "tile" not in found.kind.options:
            return None
        tile = (0, 0) if found.tile == (0, 0) else (rows, tile[1])
        return Format(found.name, checked_options(found.name, {**dict(found.options), "tile": tile})).canonical

    def _edges(self) -> list[int]:
        """Where runs of rows begin, in the tensor and in the parameter."""
        assert self.rows is not None
        begins = np.flatnonzero(np.diff(self.rows, prepend=-2) != 1)
        return [*begins.tolist(), *self.rows[begins].tolist()]

    def take(self, arrays: Mapping[str, np.ndarray], found: Format, format: Format) -> dict[str, np.ndarray]:
        """leaf -> array of the parameter, of those of the whole tensor in format `found`, in this `format`."""
        taken = {}
        for leaf, array in arrays.items():
            whole = array.T if self.transposed and array.ndim == 2 else array
            if self.rows is None or leaf == "global_scale" or (leaf != CODES and len(whole) == 1):
                taken[leaf] = _own(whole)
            elif leaf == CODES:
                taken[leaf] = _own(whole, self.rows)
            else:
                # One scale for each of the smaller tiles: the one of the tile that its first row was in.
                tile = found.tile[self.transposed]
                taken[leaf] = _own(whole, self.rows[:: format.tile[0]] // tile)
        return taken


def _own(array: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """The rows of an array in a buffer of their own, which XLA on CPU takes over."""
    result = empty(array.shape if rows is None else (len(rows), *array.shape[1:]), array.dtype)
    if rows is None:
        result[...] = array
    else:
        # As integers: NumPy's take knows the types of ml_dtypes, but one value at a time.
        bits = np.dtype(f"u{array.dtype.itemsize}")
        np.take(array.view(bits), rows, axis=0, out=result.view(bits), mode="clip")
    return result

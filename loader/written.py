"""Written: the tensors of one unit as a file has them, their headers beforehand and their values one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from bombus.loader.layouts import CODES, Layout
from bombus.loader.units import Unit
from bombus.models.storage import is_weight, part_paths
from bombus.policies.formats import DType, Format, Shape

_SHAPE = "weight_shape"


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """unit: what is written. stored: its parameters' formats. whole: that of its tensors, which are in `layout`."""

    unit: Unit
    stored: tuple[Format, ...]
    whole: Format
    layout: Layout

    @property
    def is_low(self) -> bool:
        """Whether there are codes and their parts to write."""
        return self.whole.is_low and is_weight(self.unit.paths[0])

    def headers(self) -> dict[str, tuple[Shape, DType]]:
        """name -> (shape, type) of every tensor."""
        unit = self.unit
        if not self.is_low:
            found = {unit.place.tensor: (unit.shape, self.whole.dtype)}
        else:
            leaves = (CODES, *self.whole.parts(unit.shape))
            types = {leaf: self.layout.file_type(leaf, self.whole, unit.shape) for leaf in leaves}
            found = {self.layout.name(unit.place.layer, leaf): types[leaf] for leaf in leaves}
            if self._shape_is_told:
                found[self._name(_SHAPE)] = ((len(unit.shape),), np.dtype(np.int64))
        if unit.place.stacked and unit.experts is not None:
            found = {name: ((unit.experts, *shape), dtype) for name, (shape, dtype) in found.items()}
        return {each: header for name, header in found.items() for each in unit.names(name)}

    def tensors(self, arrays: Mapping[str, jax.Array]) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor with its name, of the arrays of the unit's parameters by path."""
        unit = self.unit
        if not self.is_low:
            whole = unit.join([np.asarray(arrays[path]) for path in unit.paths])
            names = unit.names(unit.place.tensor)
            yield from zip(names, whole if unit.place.by_expert else [whole], strict=True)
            return
        if unit.place.stacked and unit.experts is not None:
            low = [self._low(arrays, number) for number in range(unit.experts)]
            yield from ((self._name(leaf), np.stack([tensors[leaf] for tensors in low])) for leaf in low[0])
            return
        # One expert after the other, so that no copy of all is made.
        for number in range(unit.experts or 1):
            for leaf, tensor in self._low(arrays, None if unit.experts is None else number).items():
                names = unit.names(self._name(leaf))
                yield names[number], tensor

    def _name(self, leaf: str) -> str:
        if leaf == _SHAPE:
            return f"{self.unit.place.layer}.{_SHAPE}"
        return self.layout.name(self.unit.place.layer, leaf)

    def _low(self, arrays: Mapping[str, jax.Array], expert: int | None) -> dict[str, np.ndarray]:
        """leaf -> tensor of a weight in low precision, or of that of one expert."""
        parts = []
        for path, shape, format in zip(self.unit.paths, self.unit.shapes, self.stored, strict=True):
            paths = {CODES: path, **part_paths(path, format, shape)}
            found = {leaf: np.asarray(arrays[part]) for leaf, part in paths.items()}
            parts.append(found if expert is None else {leaf: array[expert] for leaf, array in found.items()})
        tensors = {}
        for leaf, array in self.unit.join_low(parts, self.stored, self.whole).items():
            shape, _ = self.layout.file_type(leaf, self.whole, self.unit.shape)
            tensors[leaf] = self.layout.to_file(leaf, np.ascontiguousarray(array), self.whole).reshape(shape)
        if self._shape_is_told:
            tensors[_SHAPE] = np.array(self.unit.shape, np.int64)
        return tensors

    @property
    def _shape_is_told(self) -> bool:
        return _SHAPE in self.layout.told and self.whole.name.startswith("int")

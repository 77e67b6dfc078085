"""Units of writing: the parameters that one layer of a checkpoint holds, put together as its tensors have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bombus.loader.layouts import CODES
from bombus.loader.selection import Selection
from bombus.models.mapping import EVERY_EXPERT, Place
from bombus.models.registry import architecture_of
from bombus.models.spec import DecoderSpec
from bombus.policies.errors import PlanError, Problem
from bombus.policies.formats import Format, Shape


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """paths: the parameters. places: where each of them lies. shapes: theirs. Fused layers have several, others one.

    Names of tensors have `*` for the number of an expert.
    """

    paths: tuple[str, ...]
    places: tuple[Place, ...]
    shapes: tuple[Shape, ...]

    @property
    def place(self) -> Place:
        """The place of the first, whose names are those of all."""
        return self.places[0]

    @property
    def experts(self) -> int | None:
        """How many experts are stacked, if any."""
        return self.shapes[0][0] if self.place.by_expert or self.place.stacked else None

    @property
    def shape(self) -> Shape:
        """The shape of the tensor, or of that of one expert."""
        return self.selections[0].file_shape(self.shapes[0] if self.experts is None else self.shapes[0][1:])

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What of the tensor each parameter is."""
        return tuple(Selection(rows=it.rows, outputs=it.outputs, transposed=it.transposed) for it in self.places)

    def in_codes(self) -> Unit:
        """The unit as it lies where its weights are in low precision."""
        return replace(self, places=tuple(place.in_codes() for place in self.places))

    def names(self, name: str) -> list[str]:
        """The names of the tensors of all experts, or the name itself."""
        count = self.experts if self.place.by_expert else None
        return [name] if count is None else [name.replace(EVERY_EXPERT, str(number)) for number in range(count)]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The values of the tensor (of every expert: a leading axis), of those of the parameters."""
        if self.place.rows is None:
            whole = parts[0]
        else:
            axis = 0 if self.experts is None else 1
            sizes = list(parts[0].shape)
            sizes[axis] = self.place.outputs
            whole = np.empty(sizes, parts[0].dtype)
            for place, part in zip(self.places, parts, strict=True):
                whole[(slice(None),) * axis + (place.rows,)] = part
        return whole.swapaxes(-1, -2) if self.place.transposed else whole

    def format(self, formats: Mapping[str, Format], main: Mapping[str, Format]) -> Format:
        """The format of the tensor, for parameters that are stored so. `main`: what whole weights are in, by its name.

        Raises PlanError where the parameters are stored differently or nothing holds all of them.
        """
        stored = [formats[path].canonical for path in self.paths]
        first = stored[0]
        if self.place.rows is None and not self.place.transposed:
            return first
        # What was cut when it was loaded is put together again.
        swapped = self.selections[0].format_of(first) if self.place.transposed and first.is_low else first
        for whole in (main.get(first.name, Format(first.name)), *stored, swapped):
            if whole is not None and [self._cut(it, whole) for it in self.selections] == stored:
                return whole
        # What does not fit the tiles of the whole is cut now.
        if len(set(stored)) == 1 and not self.place.transposed:
            cuts = [cut for it in self.selections if (cut := self._cut(it, first)) is not None]
            if len(cuts) == len(stored):
                return min(cuts, key=lambda cut: cut.tile)
        raise _unlike(self, stored)

    @staticmethod
    def _cut(selection: Selection, whole: Format) -> Format | None:
        return selection.format_of(whole) if whole.is_low else whole

    def join_low(
        self, parts: Sequence[Mapping[str, np.ndarray]], stored: Sequence[Format], whole: Format
    ) -> dict[str, np.ndarray]:
        """leaf -> array of the tensor (or that of one expert) in format `whole`, of the parameters' in `stored`.

        Raises PlanError where scales within one tile of the whole differ.
        """
        if self.place.rows is None and not self.place.transposed:
            return dict(parts[0])
        joined = {leaf: self._join_rows(leaf, [part[leaf] for part in parts], stored, whole) for leaf in parts[0]}
        return {leaf: array.T if self.place.transposed and array.ndim == 2 else array for leaf, array in joined.items()}

    def _join_rows(self, leaf: str, parts: list[np.ndarray], stored: Sequence[Format], whole: Format) -> np.ndarray:
        if self.place.rows is None:
            return parts[0]
        if leaf == "global_scale" or (leaf != CODES and stored[0].tile[0] == 0):
            if any(part.tobytes() != parts[0].tobytes() for part in parts):
                raise _unlike(self, stored)
            return parts[0]
        rows = np.empty((self.place.outputs, *parts[0].shape[1:]), parts[0].dtype)
        for place, part, format in zip(self.places, parts, stored, strict=True):
            height = 1 if leaf == CODES else format.tile[0]
            rows[place.rows] = part[np.arange(0 if place.rows is None else len(place.rows)) // height]
        if leaf == CODES:
            return rows
        tile = whole.tile[self.place.transposed]
        kept = rows[::tile]
        if kept.repeat(tile, 0)[: len(rows)].tobytes() != rows.tobytes():
            raise _unlike(self, stored)
        return np.ascontiguousarray(kept)


def make_units(
    spec: DecoderSpec, shapes: Mapping[str, Shape], order: Iterable[str], spell: Callable[[str], str]
) -> list[Unit]:
    """The units of these parameters, in the order of their first."""
    mapping = architecture_of(spec).mapping
    groups: dict[str, list[str]] = {}
    places = {path: mapping.place(path, spec, shapes).spelled(spell) for path in order}
    for path, place in places.items():
        groups.setdefault(place.tensor, []).append(path)
    return [
        Unit(
            paths=tuple(paths),
            places=tuple(places[path] for path in paths),
            shapes=tuple(shapes[path] for path in paths),
        )
        for paths in groups.values()
    ]


def main_formats(units: Iterable[Unit], formats: Mapping[str, Format]) -> dict[str, Format]:
    """name -> the format of that name that most whole weights have."""
    found = Counter(formats[unit.paths[0]].canonical for unit in units if unit.place.rows is None)
    return {format.name: format for format, _ in reversed(found.most_common())}


def _unlike(unit: Unit, stored: Sequence[Format]) -> PlanError:
    message = "cannot hold its parameters as they are stored: they must be alike and in tiles that fit it"
    return PlanError(
        Problem(
            subject=f"tensor {unit.place.tensor}",
            message=message + (", and it lies (in, out)" if unit.place.transposed else ""),
            found=", ".join(f"{path} in {format}" for path, format in zip(unit.paths, stored, strict=True)),
            remedy="give all of them one format, or bombus.dequantize the model before saving it",
        ),
        where="save_model",
    )

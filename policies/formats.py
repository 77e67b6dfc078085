"""Format: a storage format with its options, and how formats are spelled. What each one means is in kinds.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bombus.policies.errors import PolicyError, Problem, closest
from bombus.policies.kinds import (
    FLOATS,
    FORMATS,
    PARTS,
    ROUNDING,
    SCALES,
    WEIGHTS,
    DType,
    Kind,
    Shape,
)
from bombus.policies.options import checked_options, parse_options, shown_option

__all__ = [
    "FORMATS",
    "PARTS",
    "WEIGHTS",
    "DType",
    "Format",
    "Kind",
    "Shape",
    "find_format",
    "find_type",
    "fp8_in_tiles",
    "is_low_precision",
    "type_name",
]


@dataclass(frozen=True)
class Format:
    """A storage format: a name of the registry and the options that were given, defaults not among them.

    Written, in Python, JSON and on the command line, as its name or as "int4(group=64, zero_points)".
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> Kind:
        """What the registry says of the name."""
        return FORMATS[self.name]

    def option(self, name: str) -> Any:
        """The value of an option: as given, else its default."""
        default = self.kind.rules[0] if name == ROUNDING else self.kind.options[name]
        return dict(self.options).get(name, default)

    @property
    def is_low(self) -> bool:
        """Whether codes mean nothing without their parts, so that a bare cast would corrupt them."""
        return self.name not in FLOATS

    @property
    def dtype(self) -> DType:
        """The type of the array of values or codes."""
        return FORMATS[self.option("element")].dtype if "element" in self.kind.options else self.kind.dtype

    @property
    def packed(self) -> bool:
        """Whether a byte holds two codes."""
        return self.kind.bits == 4

    @property
    def tile(self) -> tuple[int, int]:
        """(outputs, inputs) that share a scale; 0 is as long as the weight."""
        options = self.kind.options
        if "tile" in options:
            return self.option("tile")
        if "group" in options:
            return (1, self.option("group"))
        return (self.kind.block, 1) if "axis" in options and self.option("axis") == "out" else (1, self.kind.block)

    @property
    def scale_type(self) -> DType:
        """The type of `scale_inv`."""
        return SCALES[self.option("scale") if "scale" in self.kind.options else self.kind.scale]

    @property
    def scale_rule(self) -> str:
        """How the shared exponent of a block is found."""
        return self.option(ROUNDING)

    @property
    def zero_points(self) -> bool:
        """Whether every tile says which code is zero."""
        return "zero_points" in self.kind.options and self.option("zero_points")

    @cached_property
    def canonical(self) -> Format:
        """This format without what is default or only says how values were rounded: equal when the bits mean alike."""
        kept = [(key, value) for key, value in self.options if value != self.kind.options.get(key, value)]
        return Format(self.name, tuple(kept))

    def accepts(self, found: Format) -> bool:
        """Whether a weight stored as `found` is in this format, as far as options were given."""
        given = [(key, value) for key, value in self.options if key != ROUNDING]
        return self.name == found.name and all(found.option(key) == value for key, value in given)

    def same_codes(self, other: Format) -> bool:
        """Whether codes of this format are those of the other too, because only the type of the scales differs.

        Scales that become powers of two change too much for that.
        """
        if not self.is_low or self.name != other.name:
            return False
        coarser = other.scale_type != self.scale_type and other.scale_type == SCALES["e8m0"]
        rest = (key for key in self.kind.options if key != "scale")
        return not coarser and all(self.option(key) == other.option(key) for key in rest)

    def asked_of(self, found: Format) -> Format:
        """What a weight that is stored as `found` becomes when this format is asked for.

        What it is, if that fits; the same with other scales, if only their type was asked for; else this format.
        """
        if self.accepts(found):
            return found
        if self.name == found.name and [key for key, _ in self.options] == ["scale"]:
            rescaled = found.with_scale(self.scale_type)
            return rescaled if found.same_codes(rescaled) else self
        return self

    def with_scale(self, dtype: DType) -> Format:
        """This format with scales of another type. Raises PolicyError where its scales have no choice of type."""
        return Format(self.name, checked_options(self.name, {**dict(self.options), "scale": type_name(dtype)}))

    def grid(self, shape: Shape) -> Shape:
        """The shape of `scale_inv` for a weight (O, I); axes before these, as of a stack of experts, stay."""
        *stack, outputs, inputs = shape
        rows, columns = (max(tile or whole, 1) for tile, whole in zip(self.tile, (outputs, inputs), strict=True))
        return (*stack, -(-outputs // rows), -(-inputs // columns))

    def codes_shape(self, shape: Shape) -> Shape:
        """The shape of the array of codes of a weight (..., O, I)."""
        return (*shape[:-1], -(-shape[-1] // 2)) if self.packed else shape

    def parts(self, shape: Shape) -> dict[str, tuple[Shape, DType]]:
        """name -> (shape, type) of the arrays that a weight (..., O, I) has beside its codes."""
        if not self.is_low:
            return {}
        parts: dict[str, tuple[Shape, DType]] = {"scale_inv": (self.grid(shape), self.scale_type)}
        if self.zero_points:
            parts["zero_point"] = (self.grid(shape), np.dtype(np.uint8))
        if self.kind.global_scale:
            parts["global_scale"] = ((*shape[:-2], 1), np.dtype(np.float32))
        return parts

    def nbytes(self, shape: Shape) -> int:
        """Bytes that a parameter of this shape takes, its parts included."""
        arrays = [(self.codes_shape(shape), self.dtype), *self.parts(shape).values()]
        return sum(int(np.prod(size, dtype=np.int64)) * dtype.itemsize for size, dtype in arrays)

    def bits_per_weight(self, shape: Shape = (4096, 4096)) -> float:
        """Bits that one value of a weight of this shape takes, scales included."""
        return 8 * self.nbytes(shape) / int(np.prod(shape, dtype=np.int64))

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(shown_option(key, value) for key, value in self.options)})"

    __repr__ = __str__


_BY_DTYPE = {
    kind.dtype: name for name, kind in FORMATS.items() if name in ("f32", "bf16", "f16", "f8_e4m3fn", "f8_e5m2", "int8")
}
_BY_NAME = {dtype.name: name for dtype, name in _BY_DTYPE.items()}
_SPELLING = re.compile(r"\s*([\w.]+)\s*(?:\((.*)\))?\s*", re.DOTALL)


def find_format(value: Any) -> Format:
    """The Format that is spelled "bf16" or "int4(group=64)", or is a NumPy or JAX type or such a type's name.

    Raises PolicyError, with the nearest known names, for anything else.
    """
    if isinstance(value, Format):
        return value
    if isinstance(value, str):
        match = _SPELLING.fullmatch(value)
        # Not through np.dtype, to which "f4" is float32.
        name = _BY_NAME.get(match[1], match[1]) if match else None
        if match and name is not None and name in FORMATS:
            return Format(name, checked_options(name, parse_options(name, match[2] or "")))
    else:
        try:
            dtype = np.dtype(value)
        except (TypeError, ValueError):  # NumPy's, for what is no type at all
            dtype = None
        if dtype is not None and _BY_DTYPE.get(dtype, dtype.name) in FORMATS:
            return Format(_BY_DTYPE.get(dtype, dtype.name))
    shown = value if isinstance(value, str) else getattr(value, "__name__", None) or str(value)
    raise PolicyError(
        Problem(subject=f"type {shown!r}", message="is not a storage format", remedy=closest(shown, FORMATS))
    )


def find_type(value: Any) -> DType:
    """The type that arithmetic is done in: f32, bf16 or f16. Raises PolicyError for anything else."""
    found = find_format(value)
    if found.is_low:
        raise PolicyError(
            Problem(
                subject=f"type {found}",
                message="is a storage format; nothing is computed in it",
                expected=f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}",
            )
        )
    return found.dtype


def fp8_in_tiles(tile: tuple[int, int]) -> Format:
    """f8_e4m3fn with a scale for every tile of (outputs, inputs)."""
    return Format("f8_e4m3fn", (("tile", tile),))


def type_name(dtype: Any) -> str:
    """The short name of a type ("bf16"), or NumPy's own name for one outside the registry."""
    dtype = np.dtype(dtype)
    return _BY_DTYPE.get(dtype) or next((name for name, known in SCALES.items() if known == dtype), dtype.name)


def is_low_precision(dtype: Any) -> bool:
    """Whether values of this type mean nothing without a scale, so that a bare cast would corrupt them."""
    name = _BY_DTYPE.get(np.dtype(dtype))
    return name is not None and Format(name).is_low

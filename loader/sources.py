"""Source: which tensors a parameter is read from, in which format, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import ml_dtypes
import numpy as np

from bombus.loader.conventions import Scheme, Stored, find_stored, same_without_ones
from bombus.loader.layouts import BLOCK_FP8, CODES, Layout
from bombus.loader.selection import Selection
from bombus.loader.tensors import TensorInfo
from bombus.models.storage import is_weight
from bombus.policies.errors import Problem
from bombus.policies.formats import FORMATS, DType, Format, find_format, type_name
from bombus.policies.kinds import FLOATS

WIDE = tuple(FORMATS[name].dtype for name in FLOATS)
_F32 = FORMATS["f32"].dtype
_U8 = np.dtype(np.uint8)
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_SCALES = (*WIDE, _E8M0, _U8)
_NOUNS = {"scale_inv": "scale", "zero_point": "zero point", "global_scale": "global scale"}


@dataclass(kw_only=True)
class Source:
    """Where a parameter is in the checkpoint, and how it is stored there.

    layer: what the names of its tensors begin with. parts: the tensors that a low-precision weight has beside its
    codes, by our name. told: tensors that must say what is known, by the last word of their names. copies: tensors
    that must hold the same bytes as another, because the parameter is tied: name -> (the copy, what it is a copy of).
    selection: what of the tensors is the parameter, where it is not all of it; `found` is then the format of the whole.
    experts: the sources of the experts that are stacked; the other fields are then those of the first.
    """

    tensor: str
    info: TensorInfo
    format: Format
    layer: str = ""
    selection: Selection | None = None
    found: Format | None = None
    experts: tuple[Source, ...] = ()
    layout: Layout = BLOCK_FP8
    told: dict[str, TensorInfo] = field(default_factory=dict)
    parts: dict[str, tuple[str, TensorInfo]] = field(default_factory=dict)
    copies: dict[str, tuple[TensorInfo, TensorInfo]] = field(default_factory=dict)

    @property
    def pieces(self) -> tuple[Source, ...]:
        """What is read one after the other: the sources of all experts, or this one."""
        return self.experts or (self,)

    @property
    def infos(self) -> list[TensorInfo]:
        """Everything that is read."""
        return [info for it in self.pieces for info in (it.info, *(info for _, info in it.parts.values()))]

    @property
    def names(self) -> list[str]:
        """The names of all tensors that are read."""
        return [
            name
            for it in self.pieces
            for name in (it.tensor, *(name for name, _ in it.parts.values()), *(f"{it.layer}.{w}" for w in it.told))
        ]

    @property
    def stored(self) -> Format:
        """The format of the whole tensors, of which the parameter may be a part, with smaller tiles."""
        return self.format if self.found is None else self.found


class Damage(Problem):
    """A tensor that is there with the right shape, and whose values cannot be read."""


def find_whole(
    path: str,
    layer: str,
    tensor: str,
    shape: tuple[int, ...],
    headers: Mapping[str, TensorInfo],
    scheme: Scheme,
) -> Source | Problem:
    """The source of a parameter that is all of its tensors."""
    stored = find_stored(layer, shape, headers, scheme) if is_weight(path) else None
    if stored is not None:
        return _find_weight(path, layer, shape, headers, stored, scheme)
    info = headers.get(tensor)
    if info is None:
        return Problem(
            subject=f"tensor {tensor}",
            message=f"is missing; parameter {path} needs it",
            expected=f"shape {shape}",
            remedy="check that config.json belongs to these weights, or pass strict=False to initialise it",
        )
    if info.shape != shape:
        return Problem(
            subject=f"tensor {tensor}",
            message=f"does not fit parameter {path}",
            expected=f"shape {shape}",
            found=f"{info.shape}",
            remedy="check that config.json belongs to these weights",
        )
    if info.dtype not in WIDE and info.dtype != np.float64:
        return Damage(
            subject=f"weight {tensor}",
            message=f"is stored as {type_name(info.dtype)}, which parameter {path} cannot be read from",
            expected=", ".join(map(type_name, WIDE)),
        )
    # JAX has no float64 unless a user switches it on for everything.
    format = find_format(_F32 if info.dtype == np.float64 else info.dtype)
    return Source(tensor=tensor, info=info, format=format, layer=layer)


def _find_weight(
    path: str,
    layer: str,
    shape: tuple[int, ...],
    headers: Mapping[str, TensorInfo],
    stored: Stored,
    scheme: Scheme,
) -> Source | Problem:
    """The source of a weight in low precision, or what is wrong with its tensors."""
    layout, declared = stored.layout, scheme.declared(layer)
    tensor = layout.name(layer, CODES)
    info = headers[tensor]
    format = stored.format if declared is None else declared
    if format is None:
        return Damage(
            subject=f"weight {tensor}",
            message="is in low precision, and nothing says how",
            expected="a quantization_config in config.json that is about this layer",
            remedy="download config.json again",
        )
    if format.name not in (scheme.names or stored.names):
        says = format.name if declared else f"one of {', '.join(scheme.names)}"
        return Damage(
            subject=f"weight {tensor}",
            message="is not stored as quantization_config in config.json says",
            expected=says,
            found=f"{type_name(info.dtype)}, as in {' or '.join(stored.names)}",
            remedy="check that config.json belongs to these weights",
        )
    expected, dtype = layout.file_type(CODES, format, shape)
    if info.dtype != dtype:
        return Damage(
            subject=f"weight {tensor}",
            message=f"is not in the type that codes of {format} have",
            expected=type_name(dtype),
            found=type_name(info.dtype),
            remedy="check quantization_config in config.json",
        )
    if info.shape != expected:
        return Problem(
            subject=f"tensor {tensor}",
            message=f"does not fit parameter {path} {shape} in {format}",
            expected=f"shape {expected}",
            found=f"{info.shape}",
            remedy="check that config.json belongs to these weights",
        )
    parts = {}
    for part in format.parts(shape):
        name = layout.name(layer, part)
        found = headers.get(name)
        if found is None:
            return Damage(
                subject=f"weight {tensor}",
                message=f"is in {info.dtype.name} and has no {_NOUNS[part]}",
                expected=f"a tensor {name}",
                remedy="download the checkpoint again; without its scales the values are lost",
            )
        size, dtype = layout.file_type(part, format, shape)
        allowed = _scale_types(format, dtype) if part == "scale_inv" else (dtype,)
        # A scale of a channel or a tensor is also written without the dimensions of one, or with more of them.
        if not same_without_ones(found.shape, size) or found.dtype not in allowed:
            return Damage(
                subject=f"weight {tensor}",
                message=f"has {_NOUNS[part]}s that do not fit its shape {shape} in {_tiles(format)}",
                expected=f"{size} of {', '.join(map(type_name, allowed))}",
                found=f"{found.shape} of {type_name(found.dtype)}",
                remedy="check quantization_config in config.json",
            )
        parts[part] = (name, found)
    if "scale" in format.kind.options:
        scale = parts["scale_inv"][1].dtype
        format = _rescaled(format, _E8M0 if scale == _U8 else scale)
    told = {word: headers[f"{layer}.{word}"] for word in layout.told if f"{layer}.{word}" in headers}
    return Source(tensor=tensor, info=info, format=format, layer=layer, layout=layout, told=told, parts=parts)


@lru_cache(maxsize=64)
def _rescaled(format: Format, scale: DType) -> Format:
    return format.with_scale(scale).canonical


def _scale_types(format: Format, dtype: DType) -> tuple[DType, ...]:
    if "scale" not in format.kind.options:
        # A power of two is written as its type or as raw bytes.
        return (_E8M0, _U8) if dtype in (_E8M0, _U8) else (dtype,)
    return _SCALES if format.name.startswith("f8") else WIDE


def _tiles(format: Format) -> str:
    return f"tiles of {format.tile}" if min(format.tile) > 1 else str(format)

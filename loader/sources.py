"""Source: which tensors a parameter is read from, in which format, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from bombus.loader.layouts import BLOCK_FP8, CODES, Layout
from bombus.loader.quantization import Scheme
from bombus.loader.tensors import TensorInfo
from bombus.models.storage import is_weight
from bombus.policies.errors import Problem
from bombus.policies.formats import FORMATS, DType, Format, find_format, type_name

WIDE = tuple(FORMATS[name].dtype for name in ("f32", "bf16", "f16"))
_F32 = FORMATS["f32"].dtype
_SCALES = (*WIDE, np.dtype(ml_dtypes.float8_e8m0fnu))
_NOUNS = {"scale_inv": "scale", "zero_point": "zero point", "global_scale": "global scale"}


@dataclass(kw_only=True)
class Source:
    """Where a parameter is in the checkpoint, and how it is stored there.

    parts: the tensors that a low-precision weight has beside its codes, by our name. copies: tensors that must hold
    the same bytes as another, because the parameter is tied: name -> (the copy, what it is a copy of).
    """

    tensor: str
    info: TensorInfo
    format: Format
    layout: Layout = BLOCK_FP8
    parts: dict[str, tuple[str, TensorInfo]] = field(default_factory=dict)
    copies: dict[str, tuple[TensorInfo, TensorInfo]] = field(default_factory=dict)

    @property
    def infos(self) -> list[TensorInfo]:
        """Everything that is read."""
        return [self.info, *(info for _, info in self.parts.values())]


class Damage(Problem):
    """A tensor that is there with the right shape, and whose values cannot be read."""


def find_source(
    path: str,
    tensor: str,
    shape: tuple[int, ...],
    headers: Mapping[str, TensorInfo],
    scheme: Scheme,
) -> Source | Problem:
    """The source of one parameter, or why this tensor cannot be it."""
    layer = tensor.rpartition(".")[0]
    stored = scheme.find(layer, headers) if is_weight(path) else None
    if stored is not None:
        return _find_weight(path, layer, shape, headers, *stored)
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
    return Source(tensor=tensor, info=info, format=find_format(_F32 if info.dtype == np.float64 else info.dtype))


def _find_weight(
    path: str, layer: str, shape: tuple[int, ...], headers: Mapping[str, TensorInfo], layout: Layout, format: Format
) -> Source | Problem:
    """The source of a weight in low precision, or what is wrong with its tensors."""
    tensor = f"{layer}.{layout.words[CODES]}"
    info = headers[tensor]
    expected, _ = layout.file_type(CODES, format, shape)
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
        name = f"{layer}.{layout.words[part]}"
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
        # A scale of a channel or a tensor is also written without the dimensions of one.
        if (found.shape != size and not _same_without_ones(found.shape, size)) or found.dtype not in allowed:
            return Damage(
                subject=f"weight {tensor}",
                message=f"has {_NOUNS[part]}s that do not fit its shape {shape} in {_tiles(format)}",
                expected=f"{size} of {', '.join(map(type_name, allowed))}",
                found=f"{found.shape} of {type_name(found.dtype)}",
                remedy="check quantization_config in config.json",
            )
        parts[part] = (name, found)
    if "scale" in format.kind.options:
        format = format.with_scale(parts["scale_inv"][1].dtype).canonical
    return Source(tensor=tensor, info=info, format=format, layout=layout, parts=parts)


def _scale_types(format: Format, dtype: DType) -> tuple[DType, ...]:
    if "scale" not in format.kind.options:
        return (dtype,)
    return _SCALES if format.name.startswith("f8") else WIDE


def _same_without_ones(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(found) < len(expected) and [n for n in found if n != 1] == [n for n in expected if n != 1]


def _tiles(format: Format) -> str:
    return f"tiles of {format.tile}" if min(format.tile) > 1 else str(format)

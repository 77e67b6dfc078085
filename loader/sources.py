"""Which tensors a parameter can be read from: the checks of one tensor against one parameter, and their texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from bombus.kernels import scale_grid
from bombus.loader.safetensors import TensorInfo
from bombus.policies.errors import Problem
from bombus.policies.formats import FORMATS, type_name

_FP8 = FORMATS["f8_e4m3fn"]
WIDE = tuple(entry.dtype for entry in FORMATS.values() if not entry.needs_scale)
_SCALES = (*WIDE, np.dtype(ml_dtypes.float8_e8m0fnu))


@dataclass(kw_only=True)
class Source:
    """Where a parameter is in the checkpoint, while the plan is made."""

    tensor: str
    info: TensorInfo
    scale_tensor: str | None = None
    scale: TensorInfo | None = None
    copies: dict[str, TensorInfo] = field(default_factory=dict)


def find_source(
    path: str,
    tensor: str,
    shape: tuple[int, ...],
    headers: Mapping[str, TensorInfo],
    block_shape: tuple[int, int],
) -> Source | Problem:
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
    scale_tensor = f"{tensor}_scale_inv"
    scale = headers.get(scale_tensor)
    if info.dtype == _FP8.dtype and path.endswith(".kernel"):
        if scale is None:
            return Problem(
                subject=f"weight {tensor}",
                message="is in float8_e4m3fn and has no scale",
                expected=f"a tensor {scale_tensor}",
                remedy="download the checkpoint again; without its scales the values are lost",
            )
        grid = scale_grid((shape[0], shape[1]), block_shape)
        if scale.shape != grid or scale.dtype not in _SCALES:
            return Problem(
                subject=f"weight {tensor}",
                message=f"has scales that do not fit its shape {shape} in tiles of {block_shape}",
                expected=f"{grid} of {', '.join(map(type_name, _SCALES))}",
                found=f"{scale.shape} of {type_name(scale.dtype)}",
                remedy="check weight_block_size in config.json",
            )
        return Source(tensor=tensor, info=info, scale_tensor=scale_tensor, scale=scale)
    if info.dtype not in WIDE and info.dtype != np.float64:
        return Problem(
            subject=f"weight {tensor}",
            message=f"is stored as {type_name(info.dtype)}, which parameter {path} cannot be read from",
            expected=", ".join(map(type_name, WIDE)),
        )
    return Source(tensor=tensor, info=info)


def unexpected_tensor(name: str, headers: Mapping[str, TensorInfo]) -> Problem:
    weight = name.removesuffix("_scale_inv")
    if weight != name and weight in headers and headers[weight].dtype != _FP8.dtype:
        return Problem(
            subject=f"tensor {name}",
            message=f"is a scale, but {weight} is {type_name(headers[weight].dtype)}",
            expected="float8_e4m3fn codes",
        )
    return Problem(
        subject=f"tensor {name}",
        message="is unexpected: no parameter reads it",
        found=f"{type_name(headers[name].dtype)}{list(headers[name].shape)}",
        remedy="check the architecture in config.json, or pass strict=False to leave it out",
    )


def not_a_copy(name: str, info: TensorInfo, source: Source) -> Problem:
    return Problem(
        subject=f"tensor {name}",
        message=f"cannot be a copy of {source.tensor}, to which config.json says it is tied",
        expected=f"{type_name(source.info.dtype)}{list(source.info.shape)}",
        found=f"{type_name(info.dtype)}{list(info.shape)}",
        remedy="load with spec=load_spec(repo, tie_word_embeddings=False) if they are two tensors",
    )

"""Loaded models to compare: their arrays, and the float64 values of what is stored, by NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy_formats
import quantized_files

import bombus
from bombus.models.model import flat

SIZES = {**quantized_files.SIZES, "block_shape": (16, 24)}
GATE, UP, DOWN = (f"decoder.blocks.0.ffn.{name}.kernel" for name in ("gate", "intermediate", "output"))
QUERY, EMBEDDING = "decoder.blocks.0.self_attention.query.kernel", "embedder.token_embedding.embedding"
NORM = "output_norm.scale"
FP8 = "f8_e4m3fn(tile=16x24)"
MIXED = {"attention": "f16", "feed_forward": "int4(group=16, zero_points)", "embedding": "nvfp4", "norm": "f32"}


def as_bytes(params: Mapping[str, Any]) -> dict[str, tuple[np.dtype, tuple[int, ...], bytes]]:
    return {path: (value.dtype, value.shape, np.asarray(value).tobytes()) for path, value in flat(params).items()}


def formats(loaded: bombus.LoadedModel) -> dict[str, str]:
    return {path: str(format) for path, format in loaded.model.formats.items()}


def shared(one: bombus.LoadedModel, other: bombus.LoadedModel) -> set[str]:
    """The paths whose array is one and the same in both."""
    theirs = flat(other.params)
    return {path for path, value in flat(one.params).items() if value is theirs.get(path)}


def stored_weight(loaded: bombus.LoadedModel, path: str) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, Any]]:
    """(codes one a byte, parts, arguments of the NumPy model) of a low-precision weight."""
    params, format = flat(loaded.params), loaded.model.formats[path]
    layer, shape = path.rpartition(".")[0], loaded.model.shapes[path]
    codes = np.asarray(params[path])
    parts = {part: np.asarray(params[f"{layer}.{part}"]) for part in format.parts(shape)}
    if "global_scale" in parts:
        # Divided in float32, as it is documented: the one value that float64 would round otherwise.
        parts = {"scale_inv": parts["scale_inv"].astype(np.float32) / parts["global_scale"]}
    unpacked = numpy_formats.unpack(codes, shape[1]) if format.packed else codes
    return unpacked, parts, {"name": format.name, **dict(format.options)}


def values64(loaded: bombus.LoadedModel, path: str) -> np.ndarray:
    """The float64 values of a low-precision weight, by NumPy."""
    codes, parts, options = stored_weight(loaded, path)
    return numpy_formats.decode(codes, parts, **options)

"""Random keys and values as a cache stores them, and attention in float64 NumPy; of Bombus only the kernels' types.

Nothing is quantized: codes, scales and zero points are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from bombus.kernels.native_attention import ReadVectors, Vectors

TYPES: dict[str, Any] = {
    "f32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "f8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "int8": np.int8,
    "int4": np.uint8,
}
_LARGEST = {"f8_e4m3fn": 448, "int8": 128, "int4": 8}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Keys and values with a mask, and what they stand for, (X, S, H) and (X, S, V) in float64."""

    arrays: ReadVectors
    keys: np.ndarray
    values: np.ndarray


def drawn_vectors(
    format: str, shape: tuple[int, int, int], random: np.random.Generator, *, zero: bool = False, fixed: bool = False
) -> tuple[Vectors, np.ndarray]:
    """Vectors (X, S, H) in a format, and their values. zero: zero points. fixed: one scale for each of X."""
    rows, slots, size = shape
    if format not in _LARGEST:
        codes = random.standard_normal(shape).astype(TYPES[format])
        return Vectors(codes, None, None), codes.astype(np.float64)
    codes = random.integers(0, 256, (rows, slots, size // 2 if format == "int4" else size), np.uint8)
    units = np.concatenate((codes & 15, codes >> 4), axis=-1) - 8.0
    if format != "int4":
        codes = codes.view(TYPES[format])
        codes = np.where(np.isnan(codes.astype(np.float32)), np.ones((), codes.dtype), codes)
        units = codes.astype(np.float64)
    scale = np.exp(random.uniform(-1, 1, rows if fixed else (rows, slots))).astype(np.float32) * 2 / _LARGEST[format]
    scale = scale.astype(np.float32)
    values = units * scale.astype(np.float64).reshape(rows, -1, 1)
    if not zero:
        return Vectors(codes, scale, None), values
    zeros = random.standard_normal((rows, slots)).astype(np.float32)
    return Vectors(codes, scale, zeros), values + zeros[..., None]


def drawn(
    formats: tuple[str, str],
    shape: tuple[int, int, int],
    mask: np.ndarray,
    random: np.random.Generator,
    *,
    value_size: int | None = None,
    **options: Any,
) -> Drawn:
    """Keys (X, S, H) and values in these formats, with a mask (B, T, S)."""
    key_arrays, keys = drawn_vectors(formats[0], shape, random, **options)
    value_arrays, values = drawn_vectors(formats[1], (*shape[:2], value_size or shape[2]), random, **options)
    return Drawn(arrays=ReadVectors(key_arrays, value_arrays, mask), keys=keys, values=values)


def exact_attention(
    q_BTNH: np.ndarray,
    sources: Sequence[Drawn],
    *,
    scale: float,
    softcap: float | None = None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """One softmax over the keys of all sources, (B, T, N, V); zeros where a query sees nothing."""
    batch, tokens, heads, size = q_BTNH.shape
    shared = sources[0].keys.shape[0] // batch
    q = q_BTNH.astype(np.float64).reshape(batch, tokens, shared, -1, size)
    scores = [np.einsum("btkgh,bksh->btkgs", q, s.keys.reshape(batch, shared, -1, size)) for s in sources]
    x = np.concatenate(scores, axis=-1) * scale
    if softcap is not None:
        x = softcap * np.tanh(x / softcap)
    x = np.where(np.concatenate([s.arrays.mask for s in sources], axis=-1)[:, :, None, None], x, -np.inf)
    sink = np.full((1, 1, shared, heads // shared, 1), -np.inf)
    if sinks is not None:
        sink = sinks.astype(np.float64).reshape(sink.shape)
    largest = np.maximum(x.max(axis=-1, keepdims=True), sink)
    largest = np.where(np.isinf(largest), 0.0, largest)
    shares = np.exp(x - largest)
    total = shares.sum(axis=-1, keepdims=True) + np.exp(sink - largest)
    weights = shares / np.where(total == 0, 1.0, total)
    values = np.concatenate([s.values.reshape(batch, shared, s.values.shape[1], -1) for s in sources], axis=2)
    return np.einsum("btkgs,bksh->btkgh", weights, values).reshape(batch, tokens, heads, -1)

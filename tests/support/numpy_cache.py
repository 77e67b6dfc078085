"""What a cache holds and what is read of it, in float64 NumPy from the definitions; nothing of Bombus.

Shapes: B batch, T tokens, N query heads, K key/value heads, H head size.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

# Format -> (smallest, largest code).
RANGES = {"f8_e4m3fn": (-448, 448), "int8": (-128, 127), "int4": (-8, 7)}


def stored_values(
    x: np.ndarray, format: str | None, *, zero_points: bool = True, fixed: np.ndarray | None = None
) -> np.ndarray:
    """What is read of vectors (..., H) that were stored in a format, with a scale of each vector.

    fixed: for scales of heads the magnitudes (...,) that the largest code stands for.
    """
    x = x.astype(np.float64)
    if format is None:
        return x
    if format == "bf16":
        return x.astype(ml_dtypes.bfloat16).astype(np.float64)
    low, high = RANGES[format]
    zero = np.zeros(x.shape[:-1])
    if fixed is not None:
        scale = np.broadcast_to(fixed / high, x.shape[:-1])
    elif zero_points and format != "f8_e4m3fn":
        scale = (x.max(-1) - x.min(-1)) / (high - low)
        zero = x.min(-1) - low * scale
    else:
        scale = np.abs(x).max(-1) / high
    codes = np.clip((x - zero[..., None]) / scale[..., None], low, high)
    if format == "f8_e4m3fn":
        codes = codes.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    else:
        codes = np.round(codes)
    return codes * scale[..., None] + zero[..., None]


def cached_attention(
    q_BTNH: np.ndarray,
    exact: tuple[np.ndarray, np.ndarray],
    kept: tuple[np.ndarray, np.ndarray],
    real_BT: np.ndarray,
    *,
    window: int | None = None,
    recent: int = 0,
) -> np.ndarray:
    """Attention query by query over keys and values (B, T, K, H): the last `recent` are exact, older ones as kept."""
    batch, tokens, heads, size = q_BTNH.shape
    group = heads // exact[0].shape[2]
    mixed = np.zeros((batch, tokens, heads, exact[1].shape[-1]))
    for row, at, head in np.ndindex(batch, tokens, heads):
        seen = [s for s in range(at + 1) if real_BT[row, s] and (window is None or s > at - window)]
        if not seen:
            continue
        pairs = [tuple(part[row, s, head // group] for part in (exact if s > at - recent else kept)) for s in seen]
        scores = np.array([q_BTNH[row, at, head] @ key for key, _ in pairs]) / math.sqrt(size)
        shares = np.exp(scores - scores.max())
        mixed[row, at, head] = shares / shares.sum() @ np.array([value for _, value in pairs])
    return mixed

"""The closed registry of types in which a parameter can be stored and computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from bombus.policies.errors import PolicyError, Problem, closest

DType = np.dtype


@dataclass(frozen=True, kw_only=True)
class Format:
    """A storage format: its short name, the array type, and whether codes need a scale per tile."""

    name: str
    dtype: DType
    needs_scale: bool = False
    tile: tuple[int, int] | None = None


FORMATS = {
    entry.name: entry
    for entry in (
        Format(name="f32", dtype=np.dtype(jnp.float32)),
        Format(name="bf16", dtype=np.dtype(jnp.bfloat16)),
        Format(name="f16", dtype=np.dtype(jnp.float16)),
        # DeepSeek's and Qwen's block format: one scale for 128 outputs times 128 inputs.
        Format(name="f8_e4m3fn", dtype=np.dtype(jnp.float8_e4m3fn), needs_scale=True, tile=(128, 128)),
    )
}
_BY_DTYPE = {entry.dtype: entry for entry in FORMATS.values()}
_BY_NAME = {entry.dtype.name: entry.dtype for entry in FORMATS.values()}


def find_format(value: Any) -> Format:
    """The format named by a short name ("bf16"), a NumPy or JAX type, or such a type's name.

    Raises PolicyError, with the nearest known names, for anything else.
    """
    if isinstance(value, Format):
        return value
    if isinstance(value, str):
        # Not through np.dtype, to which "f4" is float32.
        dtype = FORMATS[value].dtype if value in FORMATS else _BY_NAME.get(value)
    else:
        try:
            dtype = np.dtype(value)
        except TypeError:
            dtype = None
    if dtype is None or dtype not in _BY_DTYPE:
        name = value if isinstance(value, str) else getattr(value, "__name__", None) or str(value)
        raise PolicyError(
            Problem(subject=f"type {name!r}", message="is not a storage format", remedy=closest(name, FORMATS))
        )
    return _BY_DTYPE[dtype]


def type_name(dtype: Any) -> str:
    """The short name of a type ("bf16"), or NumPy's own name for one outside the registry."""
    known = _BY_DTYPE.get(np.dtype(dtype))
    return known.name if known else np.dtype(dtype).name


def is_low_precision(dtype: Any) -> bool:
    """Whether values of this type mean nothing without a scale, so that a bare cast would corrupt them."""
    known = _BY_DTYPE.get(np.dtype(dtype))
    return known is not None and known.needs_scale

"""The closed registry of storage formats: what a parameter's values look like in memory, bit by bit.

A low-precision format stores a weight (O outputs, I inputs) as an array of codes and the numbers that give them
their meaning, its parts. A value is (element(code) - zero_point) * scale_inv (/ global_scale), with one scale for
every tile of P outputs and Q inputs; tiles at the edges are partial. `scale_inv` multiplies, despite its name, which
is the checkpoints'.

| format | codes | element | tile | scale |
|---|---|---|---|---|
| f8_e4m3fn, f8_e5m2 | float8 | the code's value | option `tile`: PxQ (128x128), channel, tensor | `scale` |
| int8 | int8 | -127..127 | option `group`: inputs, or channel (default) | `scale` |
| int4 | two a byte | 0..15, less 8 or the zero point | option `group` (128) | `scale` |
| bfp8, bfp4 | int8, two a byte | sign and 7 or 3 bits, over 64 or 4 | 16 along `axis` | the largest exponent |
| mxfp8, mxfp4 | float8, two a byte | `element`, e2m1 | 32 inputs | a power of two (e8m0) |
| nvfp4 | two a byte | e2m1 | 16 inputs | e4m3fn over one float32 for the tensor |

Two codes a byte: the even input in the low half. Sources: OCP Microscaling Formats 1.0, compressed-tensors, tt-metal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

DType = np.dtype
Shape = tuple[int, ...]

# The parameters that a low-precision format is for, by the last word of their path, and the parts it adds to one.
WEIGHTS = ("kernel", "embedding")
PARTS = ("scale_inv", "zero_point", "global_scale")

SCALES = {
    "f32": np.dtype(jnp.float32),
    "bf16": np.dtype(jnp.bfloat16),
    "f16": np.dtype(jnp.float16),
    "e8m0": np.dtype(jnp.float8_e8m0fnu),
    "f8_e4m3fn": np.dtype(jnp.float8_e4m3fn),
}
TILES = {"channel": (1, 0), "tensor": (0, 0)}  # 0: as long as the weight
FLOATS = ("f32", "bf16", "f16")
# What an option may be; one that only says how values are rounded does not change what is stored.
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "scale": (*FLOATS, "e8m0"),
    "zero_points": (False, True),
    "axis": ("in", "out"),
    "element": ("f8_e4m3fn", "f8_e5m2"),
}
ROUNDING = "scale_rule"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the registry says of a name: the type of the codes' array, bits of a code, its options' defaults.

    offset: what is taken from a code, unless it has a zero point. fraction: how many bits of an element are behind
    its point. e2m1: whether elements are. global_scale: whether scales are over one number for the tensor.
    """

    dtype: DType
    bits: int
    options: Mapping[str, Any] = field(default_factory=dict)
    block: int = 0
    scale: str = "f32"
    rules: tuple[str, ...] = ()
    offset: int = 0
    fraction: int = 0
    e2m1: bool = False
    global_scale: bool = False


_FP8_OPTIONS = {"tile": (128, 128), "scale": "f32"}
_MX_RULES = ("floor", "even", "ceil")
_BFP_RULES = ("max", "search")

FORMATS: Mapping[str, Kind] = MappingProxyType(
    {
        "f32": Kind(dtype=np.dtype(jnp.float32), bits=32),
        "bf16": Kind(dtype=np.dtype(jnp.bfloat16), bits=16),
        "f16": Kind(dtype=np.dtype(jnp.float16), bits=16),
        "f8_e4m3fn": Kind(dtype=np.dtype(jnp.float8_e4m3fn), bits=8, options=_FP8_OPTIONS),
        "f8_e5m2": Kind(dtype=np.dtype(jnp.float8_e5m2), bits=8, options=_FP8_OPTIONS),
        "int8": Kind(dtype=np.dtype(np.int8), bits=8, options={"group": 0, "scale": "f32"}),
        "int4": Kind(
            dtype=np.dtype(np.uint8),
            bits=4,
            options={"group": 128, "zero_points": False, "scale": "bf16"},
            offset=8,
        ),
        "bfp8": Kind(
            dtype=np.dtype(np.int8),
            bits=8,
            options={"axis": "in"},
            block=16,
            scale="e8m0",
            rules=_BFP_RULES,
            fraction=6,
        ),
        "bfp4": Kind(
            dtype=np.dtype(np.uint8),
            bits=4,
            options={"axis": "in"},
            block=16,
            scale="e8m0",
            rules=_BFP_RULES,
            offset=8,
            fraction=2,
        ),
        "mxfp8": Kind(
            dtype=np.dtype(jnp.float8_e4m3fn),
            bits=8,
            options={"element": "f8_e4m3fn"},
            block=32,
            scale="e8m0",
            rules=_MX_RULES,
        ),
        "mxfp4": Kind(dtype=np.dtype(np.uint8), bits=4, block=32, scale="e8m0", rules=_MX_RULES, e2m1=True),
        "nvfp4": Kind(dtype=np.dtype(np.uint8), bits=4, block=16, scale="f8_e4m3fn", e2m1=True, global_scale=True),
    }
)

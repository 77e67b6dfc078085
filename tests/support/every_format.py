"""Weights in every storage format by Bombus, compiled as one program, and what tests read of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_formats as model

from bombus.kernels import Weight, dequantize, quantize
from bombus.policies.formats import find_format

F32, BF16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
LARGE = (130, 201)  # two tiles of 128 each way, partial tiles of every format, and an odd number of inputs
SHAPES = [(1, 1), (3, 5), LARGE]
CASES = [
    *("f8_e4m3fn", "f8_e4m3fn(tile=64x96)", "f8_e4m3fn(tile=channel, scale=bf16)"),
    *("f8_e4m3fn(tile=tensor, scale=f16)", "f8_e4m3fn(scale=e8m0)", "f8_e5m2"),
    *("int8", "int8(group=32, scale=f16)"),
    *("int4", "int4(group=32, scale=f32)", "int4(group=64, zero_points)"),
    "int4(group=channel, zero_points, scale=f16)",
    *("bfp8", "bfp8(axis=out)", "bfp8(scale_rule=search)"),
    *("bfp4", "bfp4(axis=out)", "bfp4(scale_rule=search)"),
    *("mxfp8", "mxfp8(scale_rule=even)", "mxfp8(scale_rule=ceil)"),
    *("mxfp8(element=f8_e5m2)", "mxfp8(element=f8_e5m2, scale_rule=even)"),
    *("mxfp4", "mxfp4(scale_rule=even)", "mxfp4(scale_rule=ceil)", "nvfp4"),
]
# One of every name: for small shapes.
EACH = ["f8_e4m3fn(tile=64x96)", "f8_e5m2", "int8(group=32, scale=f16)", "int4(group=64, zero_points)"]
EACH += ["bfp8(axis=out)", "bfp4", "mxfp8", "mxfp4(scale_rule=ceil)", "nvfp4"]


def cases_of(shape: tuple[int, ...]) -> list[str]:
    """Every format with every option for the large shape, some for small ones."""
    return CASES if shape == LARGE else EACH


def model_options(case: str) -> dict[str, Any]:
    """The arguments of the NumPy model for a format."""
    return {"name": find_format(case).name, **dict(find_format(case).options)}


@jax.jit
def stored(values: dict[str, jax.Array]) -> dict[str, tuple[Weight, jax.Array]]:
    """format -> (the weight of its values, what that is in float32)."""
    weights = {case: quantize(given, find_format(case)) for case, given in values.items()}
    return {case: (weight, dequantize(weight, F32)) for case, weight in weights.items()}


def in_every_format(values: np.ndarray) -> dict[str, tuple[Weight, np.ndarray]]:
    """case -> (weight, its float32 values). One program for all: a compilation for each would take a minute."""
    found = stored(dict.fromkeys(cases_of(values.shape), values))
    return {case: (weight, np.asarray(values)) for case, (weight, values) in found.items()}


def codes_of(weight: Weight) -> np.ndarray:
    """The codes (O, I), one a byte."""
    codes = np.asarray(weight.codes)
    return model.unpack(codes, weight.shape[1]) if weight.format.packed else codes


def parts_of(weight: Weight) -> dict[str, np.ndarray]:
    """The parts as NumPy's arrays."""
    return {name: np.asarray(part) for name, part in weight.parts.items()}


def as_bytes(codes: np.ndarray) -> np.ndarray:
    """Codes or scales to be compared as bits: -0 is not 0, and NaN is NaN."""
    return codes.view(f"u{codes.itemsize}")


@functools.cache
def example(kind: str, shape: tuple[int, int]) -> np.ndarray:
    """A float32 weight with 8 significant bits a value.

    tiles: tiles of 37 x 53 are 2^-6 to 2^6 times as large as others. blocks: so are single rows, by 2^-40 to 2^40.
    Both have blocks of zeros, negative zeros, values at the top of a block (1.99), and outliers.
    """
    random = np.random.default_rng([len(kind), *shape])
    values = random.standard_t(4, shape)
    rows, columns = np.indices(shape)
    if kind == "tiles":
        values *= np.exp2(random.integers(-6, 7, (4, 4)))[rows // 37, columns // 53]
    else:
        values *= np.exp2(random.integers(-40, 41, shape[0]))[:, None]
    values[5:20, 32:96] = 0
    values[33:40, :64] *= -0.0
    values[50:51, ::7], values[51:52, ::3], values[52:54] = 1.9921875, -1.9921875, 1.9921875
    values[100:110, 20:21] *= 1000
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


@functools.cache
def stored_example(kind: str, shape: tuple[int, int]) -> dict[str, tuple[Weight, np.ndarray]]:
    """`example` in every format."""
    return in_every_format(example(kind, shape))

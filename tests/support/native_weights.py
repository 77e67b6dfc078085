"""Weights of random bits in every format, and a float64 model of their values that shares nothing with Bombus.

Nothing is quantized: codes and scales are drawn, so that every code comes up, and bits that belong to no input.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_formats as model

from bombus.kernels import Weight, native
from bombus.policies.formats import FORMATS, Format, find_format

# Where there are none, as with BOMBUS_KERNELS=xla, the tests of kernels have nothing to run.
KERNELS = native.available() if native.library().loaded is not None else ()
REASON = f"no kernels: {native.library().reason}"

_TILES = ("128x128", "64x96", "48x80", "32x16", "1x32", "3x7", "1x1", "channel", "tensor")
_GROUPS = ("channel", "16", "32", "64", "128", "33", "1")
_VALUES: dict[str, tuple[Any, ...]] = {
    "tile": _TILES,
    "group": _GROUPS,
    "zero_points": (False, True),
    "axis": ("in", "out"),
    "element": ("f8_e4m3fn", "f8_e5m2"),
}


def every_format() -> list[Format]:
    """Every format of the registry with every option; of tiles and groups one of each kind."""
    found = []
    for name, kind in FORMATS.items():
        scales = ("f32", "bf16", "f16", "e8m0") if name.startswith("f8") else ("f32", "bf16", "f16")
        values = [scales if option == "scale" else _VALUES[option] for option in kind.options]
        for chosen in itertools.product(*values):
            given = ", ".join(f"{option}={value}" for option, value in zip(kind.options, chosen, strict=True))
            found.append(find_format(f"{name}({given})" if given else name))
    return found


EVERY = every_format()
# One of every decoder and every way of scaling; for what does not hang on the rest.
SOME = [
    *("f32", "bf16", "f16", "f8_e4m3fn", "f8_e4m3fn(tile=channel, scale=bf16)", "f8_e4m3fn(tile=3x7)", "f8_e5m2"),
    *("int8", "int8(group=32)", "int4", "int4(group=32, zero_points)", "bfp8", "bfp4(axis=out)"),
    *("mxfp8", "mxfp4", "nvfp4"),
]


def weight_of(
    format: Format | str, shape: tuple[int, int], random: np.random.Generator, *, nan: bool = False
) -> Weight:
    """A weight of random bits. nan: whether codes that are no finite numbers come up as well."""
    format = find_format(format)
    if not format.is_low:
        return Weight.plain(jnp.asarray(random.standard_normal(shape).astype(format.dtype)))
    codes = random.integers(0, 256, format.codes_shape(shape), np.uint8).view(format.dtype)
    if not nan:
        codes = np.where(np.isfinite(codes.astype(np.float32)), codes, np.ones((), format.dtype))
    parts = {name: jnp.asarray(_part(name, *part, random)) for name, part in format.parts(shape).items()}
    return Weight(codes=jnp.asarray(codes), **parts, format=format, shape=shape)


def _part(name: str, shape: tuple[int, ...], dtype: np.dtype, random: np.random.Generator) -> np.ndarray:
    if name == "zero_point":
        return random.integers(0, 16, shape, np.uint8)
    if dtype == ml_dtypes.float8_e8m0fnu:
        return random.integers(107, 147, shape, np.uint8).view(dtype)
    if dtype == ml_dtypes.float8_e4m3fn:
        return random.integers(0, 127, shape, np.uint8).view(dtype)  # subnormal ones too
    return np.exp(random.uniform(-3, 3, shape)).astype(dtype)


def exact(weight: Weight) -> np.ndarray:
    """The float64 values (O, I) of a weight; numpy_formats.decode, with all tiles at once."""
    format, (outputs, inputs) = weight.format, weight.shape
    codes = np.asarray(weight.codes)
    if not format.is_low:
        return codes.astype(np.float64)
    if format.packed:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(outputs, -1)[:, :inputs]
    values = model.E2M1[codes] if format.name in ("mxfp4", "nvfp4") else codes.astype(np.float64)
    if format.name == "bfp4" or (format.name == "int4" and weight.zero_point is None):
        values = values - 8
    options = {key: value for key, value in format.options if key in ("tile", "group", "axis")}
    tile = model.tile_shape(format.name, weight.shape, options)

    def spread(part: Any) -> np.ndarray:
        wide = np.repeat(np.repeat(np.asarray(part).astype(np.float64), tile[0], axis=0), tile[1], axis=1)
        return wide[:outputs, :inputs]

    if weight.zero_point is not None:
        values = values - spread(weight.zero_point)
    scales = spread(weight.scale_inv) / {"bfp8": 64, "bfp4": 4}.get(format.name, 1)
    return values * (scales / float(weight.global_scale[0]) if weight.global_scale is not None else scales)


def rows_of(count: int, inputs: int, dtype: Any, random: np.random.Generator) -> np.ndarray:
    """Random rows (R, I) in a type."""
    return random.standard_normal((count, inputs)).astype(dtype)


def assert_product(found: Any, x: np.ndarray, values: np.ndarray, case: Any) -> None:
    """found (R, O) is x (R, I) times the values (O, I), each sum to float32's rounding of its terms."""
    x64, found = x.astype(np.float64), np.asarray(found)
    assert found.dtype == np.float32, case
    assert found.shape == (x.shape[0], values.shape[0]), case
    bound = 1e-6 * (np.abs(x64) @ np.abs(values).T) + 1e-30
    wrong = ~(np.abs(found - x64 @ values.T) <= bound)
    assert not wrong.any(), f"{case}: {np.argwhere(wrong)[:5].tolist()} of {found.shape} are wrong"

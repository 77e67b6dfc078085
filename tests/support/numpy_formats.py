"""An independent float64 model of the storage formats: NumPy and ml_dtypes, nothing of Bombus.

A weight is (O, I). `make_parts` finds what is stored beside the codes, `make_codes` the codes for given parts, one a
byte, and `decode` the values of both. Names and options are those of a format: `make_parts(w, "int4", group=64)`.

Written for clarity, one tile at a time, from OCP Microscaling Formats 1.0 (mxfp8, mxfp4), compressed-tensors (nvfp4,
int8, int4), DeepSeek's tiles (f8_*) and tt-metal's packing of block floats (bfp8, bfp4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

FLOAT8 = {"f8_e4m3fn": ml_dtypes.float8_e4m3fn, "f8_e5m2": ml_dtypes.float8_e5m2}
TYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16, "e8m0": ml_dtypes.float8_e8m0fnu}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
# The largest value, its exponent, the bits of a mantissa and the least value above zero.
ELEMENTS = {"f8_e4m3fn": (448, 8, 3, 2.0**-9), "f8_e5m2": (57344, 15, 2, 2.0**-16), "e2m1": (6, 2, 1, 0.5)}
PACKED = ("int4", "bfp4", "mxfp4", "nvfp4")
_MAGNITUDE_BITS = {"bfp8": 7, "bfp4": 3}

Parts = dict[str, np.ndarray]
Tile = tuple[slice, slice]


def tile_shape(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> tuple[int, int]:
    """(outputs, inputs) that share a scale."""
    if name in FLOAT8:
        tile = options.get("tile", (128, 128))
    elif name in ("int8", "int4"):
        tile = (1, options.get("group", 0 if name == "int8" else 128))
    elif name in ("bfp8", "bfp4"):
        tile = (16, 1) if options.get("axis") == "out" else (1, 16)
    else:
        tile = (1, 16 if name == "nvfp4" else 32)
    return tile[0] or shape[0], tile[1] or shape[1]


def tiles(name: str, shape: tuple[int, ...], options: dict[str, Any]) -> Iterator[tuple[tuple[int, int], Tile]]:
    """(place in the grid of scales, part of the weight) of every tile, the partial ones at the edges included."""
    rows, columns = tile_shape(name, shape, options)
    for row in range(math.ceil(shape[0] / rows)):
        for column in range(math.ceil(shape[1] / columns)):
            part = np.s_[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
            yield (row, column), part


def element_of(name: str, options: dict[str, Any]) -> str:
    """The floating type of the codes: "f8_e4m3fn", "f8_e5m2" or "e2m1"."""
    return "e2m1" if name in ("mxfp4", "nvfp4") else options.get("element", name if name in FLOAT8 else "f8_e4m3fn")


def make_parts(values: np.ndarray, name: str, *, nudge: float = 1, **options: Any) -> Parts:
    """The scales of a float32 weight, with zero points and the scale of the tensor where there are such.

    nudge: a factor for scales before they are rounded to a type other than a power of two.
    """
    parts: Parts = {}
    if name == "nvfp4":
        largest = np.abs(values).max()
        parts["global_scale"] = np.array([448 * 6 / largest if largest > 0 else 1], np.float32)
    found = {}
    for place, tile in tiles(name, values.shape, options):
        found[place] = _tile_parts(values[tile], name, options, nudge, parts.get("global_scale"))
    grid = tuple(np.array(list(found)).max(axis=0) + 1)
    for part in next(iter(found.values())):
        parts[part] = np.array([tile[part] for tile in found.values()]).reshape(grid)
    return parts


def _tile_parts(
    tile: np.ndarray, name: str, options: dict[str, Any], nudge: float, global_scale: np.ndarray | None
) -> Parts:
    largest = np.abs(tile).max()
    if name in _MAGNITUDE_BITS:
        return {"scale_inv": _bfp_exponent(tile, name, options.get("scale_rule", "max"))}
    if name in ("mxfp8", "mxfp4"):
        return {"scale_inv": _mx_scale(float(largest), element_of(name, options), options.get("scale_rule", "floor"))}
    if global_scale is not None:
        scale = np.clip(largest / np.float32(6) * global_scale[0] * np.float32(nudge), 2.0**-9, 448)
        return {"scale_inv": scale.astype(ml_dtypes.float8_e4m3fn)}
    dtype = TYPES[options.get("scale", "bf16" if name == "int4" else "f32")]
    if options.get("zero_points"):
        low, high = min(tile.min(), np.float32(0)), max(tile.max(), np.float32(0))
        scale = _stored((high - low) / np.float32(15) * np.float32(nudge), dtype)
        return {"scale_inv": scale, "zero_point": np.uint8(np.clip(np.rint(-float(low) / float(scale)), 0, 15))}
    top = ELEMENTS[name][0] if name in FLOAT8 else {"int8": 127, "int4": 7}[name]
    if dtype == TYPES["e8m0"]:
        return {"scale_inv": _power_of_two(_ceil_log2(float(largest) / top))}
    return {"scale_inv": _stored(largest / np.float32(top) * np.float32(nudge), dtype)}


def _stored(scale: np.float32, dtype: Any) -> np.ndarray:
    """A scale in its type; one for a tile of zeros."""
    stored = np.asarray(scale).astype(dtype)
    return stored if stored > 0 else np.asarray(1).astype(dtype)


def _floor_log2(value: float) -> int:
    return math.frexp(value)[1] - 1 if value > 0 else -126


def _ceil_log2(value: float) -> int:
    mantissa, exponent = math.frexp(value)
    return (exponent - 1 if mantissa == 0.5 else exponent) if value > 0 else -126


def _power_of_two(exponent: int) -> np.ndarray:
    return np.asarray(2.0 ** min(max(exponent, -126), 127)).astype(ml_dtypes.float8_e8m0fnu)


def _mx_scale(largest: float, element: str, rule: str) -> np.ndarray:
    """OCP MX 1.0, section 6.3 ("floor"), and the two rules that saturate less."""
    top, top_exponent, mantissa_bits, _ = ELEMENTS[element]
    if rule == "ceil":
        return _power_of_two(_ceil_log2(largest / top))
    exponent = _floor_log2(largest)
    if rule == "even" and math.floor(largest / 2.0**exponent * 2**mantissa_bits + 0.5) == 2 ** (mantissa_bits + 1):
        exponent += 1
    return _power_of_two(exponent - top_exponent)


def _bfp_exponent(tile: np.ndarray, name: str, rule: str) -> np.ndarray:
    """The largest biased exponent of the tile, or the one below it where that gives the lower squared error."""
    exponent = int((tile.view(np.uint32) >> 23 & 0xFF).max())
    if rule == "search" and exponent > 8:
        error, lower = (bfp_error(tile, name, shared) for shared in (exponent, exponent - 1))
        exponent -= lower < error
    return np.asarray(np.uint8(exponent)).view(ml_dtypes.float8_e8m0fnu)


def bfp_error(tile: np.ndarray, name: str, exponent: int) -> float:
    """The squared error of a tile with this shared biased exponent."""
    step = 2.0 ** (exponent - 127 - (_MAGNITUDE_BITS[name] - 1))
    return float(((bfp_integers(tile, name, exponent) * step - tile.astype(np.float64)) ** 2).sum())


def bfp_integers(tile: np.ndarray, name: str, exponent: int, *, drop_first: bool = False) -> np.ndarray:
    """Signed magnitudes of a tile for the shared biased exponent: to the nearest, ties to even, saturated.

    drop_first: as tt-metal does it, which forgets the bits that the alignment shifts out before it rounds. That is
    the same for values of 8 significant bits (bfloat16).
    """
    kept = _MAGNITUDE_BITS[name]
    bits = tile.view(np.uint32).astype(np.int64)
    own = bits >> 23 & 0xFF
    mantissa = np.where(own == 0, 0, (bits & 0x7FFFFF) | 0x800000)
    # Thirty places are enough to shift everything out.
    right, left = np.clip(exponent - own, 0, 30), np.maximum(own - exponent, 0)
    divisor = 2 ** (24 - kept)
    if drop_first:
        mantissa = mantissa >> right
    else:
        divisor = divisor * 2**right
    mantissa = mantissa * 2**left
    whole, rest = mantissa // divisor, mantissa % divisor
    up = (2 * rest > divisor) | ((2 * rest == divisor) & (whole % 2 == 1))
    magnitude = np.minimum(whole + up, 2**kept - 1).astype(np.int64)
    return np.where(np.signbit(tile), -magnitude, magnitude)


def make_codes(values: np.ndarray, parts: Parts, name: str, *, nudge: float = 1, **options: Any) -> np.ndarray:
    """The codes (O, I) of a float32 weight for the given parts: int8, float8, or one 4-bit code in each uint8.

    nudge: a factor for the scaled values, to see which of them are next to a tie.
    """
    float8 = name in (*FLOAT8, "mxfp8")
    dtype = FLOAT8[element_of(name, options)] if float8 else np.int8 if name in ("int8", "bfp8") else np.uint8
    codes = np.zeros(values.shape, dtype)
    for place, tile in tiles(name, values.shape, options):
        if name in _MAGNITUDE_BITS:
            exponent = int(parts["scale_inv"][place].view(np.uint8))
            codes[tile] = bfp_integers(values[tile], name, exponent) + (8 if name == "bfp4" else 0)
        else:
            scaled = values[tile].astype(np.float64) / _scale(parts, place) * nudge
            zero = float(parts["zero_point"][place]) if "zero_point" in parts else None
            codes[tile] = _rounded(scaled, zero, name, options)
    return codes


def _rounded(scaled: np.ndarray, zero: float | None, name: str, options: dict[str, Any]) -> np.ndarray:
    if name == "int8":
        return np.clip(np.rint(scaled), -127, 127)
    if name == "int4":
        return np.clip(np.rint(scaled), -7, 7) + 8 if zero is None else np.clip(np.rint(scaled) + zero, 0, 15)
    element = element_of(name, options)
    top = ELEMENTS[element][0]
    clipped = np.clip(scaled, -top, top)
    if element != "e2m1":
        return clipped.astype(FLOAT8[element])
    codes = clipped.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return np.where(codes == 8, 0, codes)  # no negative zero


def _scale(parts: Parts, place: tuple[int, int]) -> float:
    """What an element is multiplied with. compressed-tensors divides by the scale of the tensor."""
    return float(parts["scale_inv"][place]) / (float(parts["global_scale"][0]) if "global_scale" in parts else 1)


def decode(codes: np.ndarray, parts: Parts, name: str, **options: Any) -> np.ndarray:
    """The float64 values (O, I) of codes, one a byte, and parts."""
    values = codes.astype(np.float64)
    if name in ("mxfp4", "nvfp4"):
        values = E2M1[codes]
    elif name == "bfp4" or (name == "int4" and "zero_point" not in parts):
        values -= 8
    if name in _MAGNITUDE_BITS:
        values /= 2 ** (_MAGNITUDE_BITS[name] - 1)
    for place, tile in tiles(name, codes.shape, options):
        zero = float(parts["zero_point"][place]) if "zero_point" in parts else 0
        values[tile] = (values[tile] - zero) * _scale(parts, place)
    return values


def pack(codes: np.ndarray) -> np.ndarray:
    """4-bit codes (O, I), two a byte, the even one in the low half: (O, ceil(I/2))."""
    packed = np.zeros((codes.shape[0], math.ceil(codes.shape[1] / 2)), np.uint8)
    for column in range(codes.shape[1]):
        packed[:, column // 2] += codes[:, column] * 16 ** (column % 2)
    return packed


def unpack(packed: np.ndarray, inputs: int) -> np.ndarray:
    """The codes (O, I) in packed bytes."""
    codes = np.zeros((packed.shape[0], inputs), np.uint8)
    for column in range(inputs):
        codes[:, column] = packed[:, column // 2] // 16 ** (column % 2) % 16
    return codes

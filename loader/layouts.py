"""How weights lie in files: the tensors' names, shapes and types for each storage format, by convention.

As in memory (this project's own layout and block FP8) or as compressed-tensors writes them: 4- and 8-bit integers
offset to unsigned and packed into int32 words, e8m0 scales as bytes. Names are "LAYER." and the words of a layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from bombus.policies.formats import DType, Format, Shape

_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
CODES = "codes"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Weights as they are in memory. `words`: what the names of the codes' and of each part's tensor end with."""

    words: Mapping[str, str]
    also: tuple[str, ...] = ()  # tensors that say nothing which is not known

    def file_type(self, leaf: str, format: Format, shape: Shape) -> tuple[Shape, DType]:
        """The (shape, type) of the tensor of the codes or of a part, for a weight of this shape."""
        return (format.codes_shape(shape), format.dtype) if leaf == CODES else format.parts(shape)[leaf]

    def to_file(self, leaf: str, array: np.ndarray, format: Format) -> np.ndarray:
        """The tensor that holds an array of a weight."""
        return array

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """The array that a tensor holds, for a weight of this shape; the inverse of `to_file`."""
        return tensor


@dataclass(frozen=True, kw_only=True)
class CompressedLayout(Layout):
    """compressed-tensors: e8m0 scales are raw bytes."""

    def file_type(self, leaf: str, format: Format, shape: Shape) -> tuple[Shape, DType]:
        """See Layout."""
        size, dtype = super().file_type(leaf, format, shape)
        return size, np.dtype(np.uint8) if dtype == _E8M0 else dtype

    def to_file(self, leaf: str, array: np.ndarray, format: Format) -> np.ndarray:
        """See Layout."""
        if leaf == "scale_inv" and format.tile == (0, 0):
            return array.reshape(1)  # as vLLM wants the scale of a whole tensor
        return array.view(np.uint8) if array.dtype == _E8M0 else array

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """See Layout."""
        return tensor.view(_E8M0) if leaf == "scale_inv" and format.scale_type == _E8M0 else tensor


@dataclass(frozen=True, kw_only=True)
class PackedLayout(CompressedLayout):
    """compressed-tensors' "pack-quantized": int4 and int8 in int32 words, the first code lowest, offset to unsigned."""

    def file_type(self, leaf: str, format: Format, shape: Shape) -> tuple[Shape, DType]:
        """See Layout."""
        per_word = 32 // format.kind.bits
        size, dtype = super().file_type(leaf, format, shape)
        if leaf == CODES:
            return (shape[0], -(-shape[1] // per_word)), np.dtype(np.int32)
        if leaf == "zero_point":  # packed along the outputs
            return (-(-shape[0] // per_word), size[1]), np.dtype(np.int32)
        return size, dtype

    def to_file(self, leaf: str, array: np.ndarray, format: Format) -> np.ndarray:
        """See Layout."""
        if leaf == "zero_point":
            codes = _padded(array.T, 8)
            return np.ascontiguousarray(_words(codes[:, ::2] | codes[:, 1::2] << 4).T)
        if leaf != CODES:
            return super().to_file(leaf, array, format)
        return _words(array if format.packed else array.view(np.uint8) ^ 0x80)

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """See Layout."""
        if leaf == "zero_point":
            packed = np.ascontiguousarray(tensor.T).view(np.uint8)
            return np.ascontiguousarray(_nibbles(packed)[:, : shape[0]].T)
        if leaf != CODES:
            return super().from_file(leaf, tensor, format, shape)
        codes = np.ascontiguousarray(tensor.view(np.uint8)[:, : format.codes_shape(shape)[1]])
        return codes if format.packed else (codes ^ 0x80).view(np.int8)


def _padded(array: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, -array.shape[1] % multiple)))


def _words(codes: np.ndarray) -> np.ndarray:
    """Bytes (R, n) as int32 (R, ceil(n/4)), filled up with zeros."""
    return np.ascontiguousarray(_padded(codes, 4)).view(np.int32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(packed.shape[0], -1)


BLOCK_FP8 = Layout(words={CODES: "weight", "scale_inv": "weight_scale_inv"})
# Not "weight": whoever does not know this layout shall miss the tensor, not take codes for values.
OWN = Layout(
    words={
        CODES: "weight_codes",
        "scale_inv": "weight_scale_inv",
        "zero_point": "weight_zero_point",
        "global_scale": "weight_global_scale",
    }
)
_PACKED = PackedLayout(
    words={CODES: "weight_packed", "scale_inv": "weight_scale", "zero_point": "weight_zero_point"},
    also=("weight_shape",),
)
_UNPACKED = CompressedLayout(words={CODES: "weight", "scale_inv": "weight_scale"})
_FP4 = CompressedLayout(
    words={CODES: "weight_packed", "scale_inv": "weight_scale", "global_scale": "weight_global_scale"},
    also=("weight_shape", "input_global_scale"),
)
# The first is the one that is written. int8 packed is what vLLM runs with weights alone in 8 bits.
COMPRESSED: Mapping[str, tuple[Layout, ...]] = {
    "int4": (_PACKED,),
    "int8": (_PACKED, _UNPACKED),
    "f8_e4m3fn": (_UNPACKED,),
    "mxfp8": (_UNPACKED,),
    "mxfp4": (_FP4,),
    "nvfp4": (_FP4,),
}

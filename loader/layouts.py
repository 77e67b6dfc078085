"""How weights lie in files: the tensors' names, shapes and types for each storage format, by convention.

As in memory (this project's own layout and block FP8), as compressed-tensors writes them (4- and 8-bit integers
offset to unsigned and packed into int32 words, e8m0 scales as bytes), and as NVIDIA's modelopt and OpenAI's gpt-oss
do. GPTQ's and AWQ's, which lie the other way round, are in qweight.py.
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
    """Weights as they are in memory. `words`: what the names of the codes' and of each part's tensor end with.

    told: the same for tensors that only repeat what is known; they are compared.
    """

    words: Mapping[str, str]
    told: tuple[str, ...] = ()

    def name(self, layer: str, leaf: str) -> str:
        """The name of the tensor of the codes or of a part of a layer's weight."""
        return f"{layer}.{self.words[leaf]}"

    def file_type(self, leaf: str, format: Format, shape: Shape) -> tuple[Shape, DType]:
        """The (shape, type) of the tensor of the codes or of a part, for a weight of this shape."""
        return (format.codes_shape(shape), format.dtype) if leaf == CODES else format.parts(shape)[leaf]

    def to_file(self, leaf: str, array: np.ndarray, format: Format) -> np.ndarray:
        """The tensor that holds an array of a weight."""
        return array

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """The array that a tensor holds, for a weight of this shape; the inverse of `to_file`."""
        # Scales that are powers of two are often written as raw bytes.
        raw = leaf == "scale_inv" and format.scale_type == _E8M0 and tensor.dtype == np.uint8
        return tensor.view(_E8M0) if raw else tensor

    def contradiction(self, word: str, tensor: np.ndarray, format: Format, shape: Shape) -> str | None:
        """What should stand in a tensor of `told` and does not; None if it is as it should be."""
        return None


@dataclass(frozen=True, kw_only=True)
class CompressedLayout(Layout):
    """compressed-tensors: e8m0 scales are raw bytes."""

    def file_type(self, leaf: str, format: Format, shape: Shape) -> tuple[Shape, DType]:
        """See Layout."""
        size, dtype = super().file_type(leaf, format, shape)
        if leaf == "scale_inv" and format.tile == (0, 0):
            size = (1,)  # as vLLM wants the scale of a whole tensor
        return size, np.dtype(np.uint8) if dtype == _E8M0 else dtype

    def to_file(self, leaf: str, array: np.ndarray, format: Format) -> np.ndarray:
        """See Layout."""
        stored = array.view(np.uint8) if array.dtype == _E8M0 else array
        return stored.reshape(1) if leaf == "scale_inv" and format.tile == (0, 0) else stored

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """See Layout."""
        array = super().from_file(leaf, tensor, format, shape)
        return array.reshape(format.grid(shape)) if leaf == "scale_inv" else array

    def contradiction(self, word: str, tensor: np.ndarray, format: Format, shape: Shape) -> str | None:
        """See Layout."""
        return None if tensor.tolist() == list(shape) else f"the shape of the weight, {list(shape)}"


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
            return np.ascontiguousarray(_words(pack_bytes(_padded(array.T, 8))).T)
        if leaf != CODES:
            return super().to_file(leaf, array, format)
        return _words(array if format.packed else array.view(np.uint8) ^ 0x80)

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """See Layout."""
        if leaf == "zero_point":
            packed = np.ascontiguousarray(tensor.T).view(np.uint8)
            return np.ascontiguousarray(nibbles(packed)[:, : shape[0]].T)
        if leaf != CODES:
            return super().from_file(leaf, tensor, format, shape)
        codes = np.ascontiguousarray(tensor.view(np.uint8)[:, : format.codes_shape(shape)[1]])
        return codes if format.packed else (codes ^ 0x80).view(np.int8)

    def contradiction(self, word: str, tensor: np.ndarray, format: Format, shape: Shape) -> str | None:
        """See Layout."""
        if word != "weight_g_idx":
            return super().contradiction(word, tensor, format, shape)
        # The package fills it with -1 until an order is found.
        return None if (tensor == -1).all() else out_of_order(tensor, format, shape)


def out_of_order(g_idx: np.ndarray, format: Format, shape: Shape) -> str | None:
    """What should stand in the numbers of the groups of the inputs, if it is not that they are in their order."""
    group = format.tile[1] or shape[1]
    if np.array_equal(g_idx, np.arange(shape[1]) // group):
        return None
    return f"groups of {group} inputs in their order (desc_act is not supported)"


def _padded(array: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, -array.shape[1] % multiple)))


def _words(codes: np.ndarray) -> np.ndarray:
    """Bytes (R, n) as int32 (R, ceil(n/4)), filled up with zeros."""
    return np.ascontiguousarray(_padded(codes, 4)).view(np.int32)


def pack_bytes(codes: np.ndarray) -> np.ndarray:
    """4-bit codes (R, n), n even, two a byte (R, n/2), the first in the low half."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def nibbles(packed: np.ndarray) -> np.ndarray:
    """The 4-bit codes in bytes; the inverse of `pack_bytes`."""
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(packed.shape[0], -1)


@dataclass(frozen=True, kw_only=True)
class ReciprocalLayout(Layout):
    """modelopt's nvfp4, whose scale of the whole tensor multiplies, where ours and compressed-tensors' divides."""

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """See Layout."""
        if leaf == "global_scale":
            with np.errstate(divide="ignore"):
                return np.float32(1) / tensor
        return super().from_file(leaf, tensor, format, shape)


@dataclass(frozen=True, kw_only=True)
class BlocksLayout(CompressedLayout):
    """gpt-oss's mxfp4: the codes of every block of 32 inputs are a dimension, and names have no last word."""

    def name(self, layer: str, leaf: str) -> str:
        """See Layout."""
        return f"{layer}_{self.words[leaf]}"

    def file_type(self, leaf: str, format: Format, shape: Shape) -> tuple[Shape, DType]:
        """See Layout."""
        size, dtype = super().file_type(leaf, format, shape)
        return ((*format.grid(shape), format.tile[1] // 2), dtype) if leaf == CODES else (size, dtype)

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """See Layout."""
        if leaf == CODES:
            return np.ascontiguousarray(tensor.reshape(shape[0], -1)[:, : format.codes_shape(shape)[1]])
        return super().from_file(leaf, tensor, format, shape)


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
PACKED = PackedLayout(
    words={CODES: "weight_packed", "scale_inv": "weight_scale", "zero_point": "weight_zero_point"},
    told=("weight_shape", "weight_g_idx"),
)
UNPACKED = CompressedLayout(words={CODES: "weight", "scale_inv": "weight_scale"})
PACKED_FP4 = CompressedLayout(
    words={CODES: "weight_packed", "scale_inv": "weight_scale", "global_scale": "weight_global_scale"},
    told=("weight_shape",),
)
MODELOPT_FP4 = ReciprocalLayout(
    words={CODES: "weight", "scale_inv": "weight_scale", "global_scale": "weight_scale_2"},
)
BLOCKS = BlocksLayout(words={CODES: "blocks", "scale_inv": "scales"})
# How compressed-tensors writes each format. int8 packed is what vLLM runs with weights alone in 8 bits.
COMPRESSED: Mapping[str, Layout] = {
    "int4": PACKED,
    "int8": PACKED,
    "f8_e4m3fn": UNPACKED,
    "mxfp8": UNPACKED,
    "mxfp4": PACKED_FP4,
    "nvfp4": PACKED_FP4,
}

"""How the tensors of a layer show in which convention and format its weight is stored.

The tensors decide: the type of the codes and the scales that stand beside them. What they cannot say (the tiles at
partial edges, how integers are packed) is the configuration's, and where it says more it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import ml_dtypes
import numpy as np

from bombus.loader.layouts import (
    BLOCK_FP8,
    BLOCKS,
    CODES,
    MODELOPT_FP4,
    OWN,
    PACKED,
    PACKED_FP4,
    UNPACKED,
    Layout,
)
from bombus.loader.qweight import Qweight
from bombus.loader.tensors import TensorInfo
from bombus.policies.formats import FORMATS, Format, Shape, find_format

_FP8 = FORMATS["f8_e4m3fn"].dtype
_FLOAT8 = {_FP8: "f8_e4m3fn", FORMATS["f8_e5m2"].dtype: "f8_e5m2"}
_SMALL = {name: find_format(f"mxfp8(element={name})").canonical for name in _FLOAT8.values()}
_U8 = np.dtype(np.uint8)
_DEFAULT_BLOCK = FORMATS["f8_e4m3fn"].options["tile"]
_EXPONENTS = (_U8, np.dtype(ml_dtypes.float8_e8m0fnu))
# What the scale of FP8 codes is called: Hugging Face, compressed-tensors and FBGEMM, DeepSeek-V4, Mistral.
SCALE_WORDS = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
_SCALED = {
    word: replace(base, words={**base.words, "scale_inv": word})
    for word in SCALE_WORDS
    for base in [UNPACKED if word == UNPACKED.words["scale_inv"] else BLOCK_FP8]
}
# The methods whose configuration lets one expect the second of them.
_WITHOUT_INV = ("compressed-tensors", "fbgemm_fp8", "modelopt")
# Scales for activations that are quantized too, and for a cache: not needed where these are computed in 16 or 32 bits.
_QUANTITIES = ("scale", "zero_point")
ACTIVATION_WORDS = (
    *("activation_scale", "qscale_act", "input_global_scale"),
    *(f"{what}_{quantity}" for what in ("input", "output") for quantity in _QUANTITIES),
)
CACHE_WORDS = (*(f"{what}_{quantity}" for what in "qkv" for quantity in _QUANTITIES), "kv_scale", "prob_scale")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What a configuration says about low-precision weights; by default nothing, and the tensors decide alone.

    method: the name of the convention. block_shape: the tile of FP8 codes whose scales are a grid.
    names: formats that there may be; empty for any. qweight: how `qweight` tensors are to be read.
    """

    method: str | None = None
    block_shape: tuple[int, int] | None = _DEFAULT_BLOCK
    names: tuple[str, ...] = ()
    qweight: Qweight | None = None

    def declared(self, layer: str) -> Format | None:
        """The format of a layer's weight, where the configuration says it."""
        return None


@dataclass(frozen=True, kw_only=True)
class OwnScheme(Scheme):
    """This project's own: every layer is listed."""

    formats: Mapping[str, Format] = field(default_factory=dict)

    def declared(self, layer: str) -> Format | None:
        """See Scheme."""
        return self.formats.get(layer)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a weight lies in the file. A format of None: the tensors do not say it, and the configuration has to.

    names: the formats that the layout may hold.
    """

    layout: Layout
    format: Format | None
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """The tensors of one layer, and the shape of its weight."""

    name: str
    shape: Shape
    headers: Mapping[str, TensorInfo]

    def find(self, word: str) -> TensorInfo | None:
        return self.headers.get(f"{self.name}.{word}")

    def has(self, word: str, *dtypes: np.dtype) -> bool:
        found = self.find(word)
        return found is not None and found.dtype in dtypes


def find_stored(layer: str, shape: Shape, headers: Mapping[str, TensorInfo], scheme: Scheme) -> Stored | None:
    """How the weight of a layer is stored in low precision; None where nothing of the kind is there."""
    tensors = _Layer(name=layer, shape=shape, headers=headers)
    return next((found for detect in _CONVENTIONS if (found := detect(tensors, scheme)) is not None), None)


def _float8(layer: _Layer, scheme: Scheme) -> Stored | None:
    codes = layer.find("weight")
    if codes is None or codes.dtype not in _FLOAT8:
        return None
    name = _FLOAT8[codes.dtype]
    known = [word for word in SCALE_WORDS if layer.find(word) is not None]
    word = known[0] if known else SCALE_WORDS[scheme.method in _WITHOUT_INV]
    layout = _SCALED[word]
    scale = layer.find(word)
    small = _SMALL[name]
    is_small = scale is not None and scale.dtype in _EXPONENTS and scale.shape == small.grid(layer.shape)
    if is_small and scheme.block_shape in (None, small.tile, _DEFAULT_BLOCK):
        return Stored(layout=layout, format=small, names=("mxfp8",))
    format = _tiled(name, layer.shape, None if scale is None else scale.shape, scheme.block_shape)
    return Stored(layout=layout, format=format, names=(name, "mxfp8"))


# A large mixture of experts asks the same of forty thousand weights.
@lru_cache(maxsize=1024)
def _tiled(name: str, shape: Shape, scale: Shape | None, block: tuple[int, int] | None) -> Format:
    """The format of FP8 codes with a scale of this shape: of the tensor, of every channel, or of every block."""
    whole: list[tuple[int, int]] = [(0, 0), (1, 0)]
    blocks = [] if block is None else [block]
    # A scale that is no matrix is never one of blocks, of which a small weight may have only one as well.
    tiles = whole + blocks if scale is not None and len(scale) < 2 else blocks + whole
    formats = [Format(name, (("tile", tile),)).canonical for tile in tiles]
    fits = (format for format in formats if scale is not None and same_without_ones(scale, format.grid(shape)))
    # What fits none is one of blocks, with the wrong grid.
    return next(fits, Format(name, (("tile", block or (0, 0)),)).canonical)


def _int8(layer: _Layer, scheme: Scheme) -> Stored | None:
    if not layer.has("weight", np.dtype(np.int8)):
        return None
    scale = layer.find("weight_scale")
    groups = scale.shape[1] if scale is not None and len(scale.shape) == 2 else 1
    return Stored(layout=UNPACKED, format=_grouped("int8", layer.shape, groups), names=("int8",))


def _packed(layer: _Layer, scheme: Scheme) -> Stored | None:
    codes, scale = layer.find("weight_packed"), layer.find("weight_scale")
    if codes is None:
        return None
    if codes.dtype == _U8:
        name = "mxfp4" if scale is not None and scale.dtype in _EXPONENTS else "nvfp4"
        return Stored(layout=PACKED_FP4, format=find_format(name), names=(name,))
    format = None
    if scale is not None and len(scale.shape) == 2 and len(codes.shape) == 2:
        zeros = "zero_points" if layer.find("weight_zero_point") is not None else ""
        bits = next((bits for bits in (4, 8) if codes.shape[1] == -(-layer.shape[1] * bits // 32)), None)
        format = None if bits is None else _grouped(f"int{bits}", layer.shape, scale.shape[1], zeros)
    return Stored(layout=PACKED, format=format, names=("int4", "int8"))


def _modelopt_fp4(layer: _Layer, scheme: Scheme) -> Stored | None:
    # One of the two scales is enough to see whose it is, so that the other is missed.
    if not layer.has("weight", _U8) or not (layer.find("weight_scale") or layer.find("weight_scale_2")):
        return None
    return Stored(layout=MODELOPT_FP4, format=find_format("nvfp4"), names=("nvfp4",))


def _blocks(layer: _Layer, scheme: Scheme) -> Stored | None:
    codes = layer.headers.get(BLOCKS.name(layer.name, CODES))
    if codes is None:
        return None
    return Stored(layout=BLOCKS, format=find_format("mxfp4"), names=("mxfp4",))


def _own(layer: _Layer, scheme: Scheme) -> Stored | None:
    found = layer.find(OWN.words[CODES])
    return None if found is None else Stored(layout=OWN, format=None, names=tuple(FORMATS))


def _qweight(layer: _Layer, scheme: Scheme) -> Stored | None:
    if layer.find("qweight") is None:
        return None
    if scheme.qweight is None:
        # Whose it is cannot be seen: without a format it is refused.
        return Stored(layout=replace(OWN, words={CODES: "qweight"}), format=None, names=())
    format = scheme.qweight.format
    return Stored(layout=scheme.qweight.layout, format=format, names=(format.name,))


_CONVENTIONS: tuple[Callable[[_Layer, Scheme], Stored | None], ...] = (
    _float8,
    _int8,
    _packed,
    _modelopt_fp4,
    _blocks,
    _own,
    _qweight,
)


def _grouped(name: str, shape: Shape, groups: int, zeros: str = "") -> Format | None:
    """Integers with this many groups of inputs; None where they are not all of one size."""
    if groups < 1 or shape[1] % groups:
        return None
    options = [f"group={'channel' if groups == 1 else shape[1] // groups}", *([zeros] if zeros else [])]
    return find_format(f"{name}({', '.join(options)})").canonical


def same_without_ones(found: Shape, expected: Shape) -> bool:
    """Whether shapes are equal, or differ in dimensions of one that one of them has more."""
    if found == expected:
        return True
    return len(found) != len(expected) and [n for n in found if n != 1] == [n for n in expected if n != 1]

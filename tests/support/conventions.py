"""Checkpoints in every convention of low-precision weights, by NumPy alone: tensors, and the float64 values they mean.

A maker takes the float32 values (N, K) of a weight and a random generator, and returns a `Made`: the tensors by what
their names end with, the arrays that Bombus should hold, and the values. Scales are spread at random above what the
weight needs, so that they differ everywhere, and a fifth of the codes are any codes at all, so that all of them occur.

Written from the documentation of the formats (shared/reference/fp8-checkpoints.md, AutoGPTQ's and AutoAWQ's packing,
OCP Microscaling Formats 1.0): nothing of Bombus, one element at a time where that is clearer.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy_formats import E2M1, pack
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]
Tile = tuple[int, int]
E4M3, E5M2, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu
Changes = Mapping[str, Any]
UP = "model.layers.0.mlp.up_proj"
KERNELS = r"model\.layers\.\d+\..*_proj"
# The place of each of eight outputs in a word of AWQ, lowest bits first.
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class Made:
    """One weight. tensors: by the ends of their names. arrays: `codes` and the parts beside them, as in memory."""

    tensors: Tensors
    arrays: Tensors
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What makes weights of one format, spelled as Bombus spells it."""

    format: str
    make: Callable[[np.ndarray, np.random.Generator], Made]


def spread(grid: Tile, tile: Tile, values: np.ndarray, top: float, random: np.random.Generator) -> np.ndarray:
    """float64 scales of a grid: what the largest value of each tile needs, up to twice as large."""
    largest = np.zeros(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            part = values[row * tile[0] : (row + 1) * tile[0], column * tile[1] : (column + 1) * tile[1]]
            largest[row, column] = np.abs(part).max()
    return largest / top * random.uniform(1.05, 1.95, grid)


def per_weight(grid: np.ndarray, tile: Tile, shape: tuple[int, ...]) -> np.ndarray:
    """The float64 number of every weight, from that of its tile; tiles at the edges are partial."""
    row, column = (np.arange(size) // length for size, length in zip(shape, tile, strict=True))
    return grid.astype(np.float64)[np.ix_(row, column)]


def tiling(shape: tuple[int, ...], tile: Tile) -> tuple[Tile, Tile]:
    """(the tile, the shape of its grid); 0 in a tile is as long as the weight."""
    rows, columns = tile[0] or shape[0], tile[1] or shape[1]
    return (rows, columns), (-(-shape[0] // rows), -(-shape[1] // columns))


def powers_of_two(scale: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The next powers of two, or some larger ones, in e8m0."""
    return (2.0 ** (np.ceil(np.log2(scale)) + random.integers(0, 4, scale.shape))).astype(E8M0)


def anything(codes: np.ndarray, choice: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Codes of which a fifth is replaced by some of `choice`, each of which occurs if there is room."""
    place = random.permutation(codes.size)[: codes.size // 5]
    codes = codes.copy()
    codes.reshape(-1)[place] = np.resize(random.permutation(choice), place.size)
    return codes


def fp8(
    format: str, tile: Tile, *, word: str = "weight_scale_inv", scale: Any = np.float32, element: Any = E4M3, **how: Any
) -> Maker:
    """Float8 codes, one scale a tile. scale: its type, "U8" for the bytes of e8m0. shape: what makes its shape in the
    file of (the grid, as an array)."""

    def make(values: np.ndarray, random: np.random.Generator) -> Made:
        lengths, grid = tiling(values.shape, tile)
        top = 448.0 if element is E4M3 else 57344.0
        found = spread(grid, lengths, values, top, random)
        stored = powers_of_two(found, random) if scale in (E8M0, "U8") else found.astype(scale)
        each = per_weight(stored, lengths, values.shape)
        finite = [code for code in range(256) if np.isfinite(float(np.uint8(code).view(element)))]
        codes = (values / each).astype(element).view(np.uint8)
        codes = anything(codes, np.array(finite, np.uint8), random).view(element)
        in_file = how.get("shape", lambda grid: grid)(stored.view(np.uint8) if scale == "U8" else stored)
        return Made(
            tensors={".weight": codes, f".{word}": in_file},
            arrays={"codes": codes, "scale_inv": stored},
            values=codes.astype(np.float64) * each,
        )

    return Maker(format=format, make=make)


def fp4(format: str, *, style: str, block: int = 16) -> Maker:
    """Two e2m1 codes a byte. style: "modelopt" (nvfp4, of which the scale of the tensor multiplies), "blocks" (mxfp4
    of gpt-oss: the codes of a block are a dimension) or "packed" (mxfp4 of compressed-tensors)."""

    def make(values: np.ndarray, random: np.random.Generator) -> Made:
        lengths, grid = tiling(values.shape, (1, block))
        found = spread(grid, lengths, values, 6.0, random)
        arrays, whole = {}, 1.0
        if style == "modelopt":
            second = np.asarray(found.max() / 448, np.float32)
            whole = float(second)
            arrays["global_scale"] = (np.float32(1) / second).reshape(1)
            stored = np.maximum(found / whole, 2.0**-9).astype(E4M3)
        else:
            stored = powers_of_two(found, random)
        each = per_weight(stored, lengths, values.shape) * whole
        nearest = np.abs((values / each)[..., None] - E2M1).argmin(-1).astype(np.uint8)
        codes = anything(nearest, np.arange(16, dtype=np.uint8), random)
        packed = pack(codes)
        if style == "modelopt":
            tensors = {".weight": packed, ".weight_scale": stored, ".weight_scale_2": second}
        elif style == "blocks":
            # Block by block, each filled up to 32 codes.
            padded = np.pad(codes, ((0, 0), (0, grid[1] * block - codes.shape[1])))
            blocks = np.stack([pack(part) for part in np.split(padded, grid[1], axis=1)], axis=1)
            tensors = {"_blocks": blocks, "_scales": stored.view(np.uint8)}
        else:
            tensors = {".weight_packed": packed, ".weight_scale": stored.view(np.uint8)}
        arrays |= {"codes": packed, "scale_inv": stored}
        return Made(tensors=tensors, arrays=arrays, values=E2M1[codes] * each)

    return Maker(format=format, make=make)


def in_words(codes: np.ndarray, bits: int, places: tuple[int, ...] | None = None) -> np.ndarray:
    """Unsigned codes (R, n) in int32 words (R, ceil(n * bits / 32)), the first in the lowest bits.

    places: which of the codes of a word is in the lowest bits, in the next, ... where that is not their order.
    """
    count = 32 // bits
    words = np.zeros((codes.shape[0], -(-codes.shape[1] // count)), np.uint32)
    for column in range(words.shape[1]):
        for nibble, place in enumerate(places or range(count)):
            if column * count + place < codes.shape[1]:
                words[:, column] |= codes[:, column * count + place].astype(np.uint32) << np.uint32(bits * nibble)
    return words.view(np.int32)


def integers(format: str, group: int, *, style: str, bits: int = 4, zeros: bool = True, **how: Any) -> Maker:
    """Integers of groups of inputs (0: all of them). style: "gptq" (zero points one less), "gptq_v2", "awq" or
    "packed" (compressed-tensors). zeros: whether zero points differ. scale: its type. g_idx: its numbers, of (K,)."""

    def make(values: np.ndarray, random: np.random.Generator) -> Made:
        lengths, grid = tiling(values.shape, (1, group))
        middle, most = 2 ** (bits - 1), 2**bits - 1
        scale = spread(grid, lengths, values, middle - 1, random).astype(how.get("scale", np.float16))
        zero = random.integers(0, most + 1, grid) if zeros else np.full(grid, middle)
        each, shift = per_weight(scale, lengths, values.shape), per_weight(zero, lengths, values.shape)
        nearest = np.clip(np.rint(values / each) + shift, 0, most).astype(np.uint8)
        codes = anything(nearest, np.arange(most + 1).astype(np.uint8), random)
        kept = pack(codes) if bits == 4 else (codes.astype(np.int16) - 128).astype(np.int8)
        arrays = {"codes": kept, "scale_inv": scale}
        if bits == 4 and (zeros or style != "packed"):
            arrays["zero_point"] = zero.astype(np.uint8)
        if style == "packed":
            tensors = {".weight_packed": in_words(codes, bits), ".weight_scale": scale}
            tensors[".weight_shape"] = np.array(values.shape, np.int64)
            if zeros:
                tensors[".weight_zero_point"] = np.ascontiguousarray(in_words(zero.T, bits).T)
        elif style == "awq":
            tensors = {".qweight": in_words(codes.T, bits, AWQ_PLACES), ".qzeros": in_words(zero.T, bits, AWQ_PLACES)}
        else:
            less = 1 if style == "gptq" else 0
            tensors = {".qweight": np.ascontiguousarray(in_words(codes, bits).T)}
            tensors[".qzeros"] = in_words((zero.T - less) % 2**bits, bits)
        if style != "packed":
            tensors[".scales"] = np.ascontiguousarray(scale.T)
        if "g_idx" in how:
            name = ".weight_g_idx" if style == "packed" else ".g_idx"
            tensors[name] = how["g_idx"](np.arange(values.shape[1]), lengths[1]).astype(np.int32)
        return Made(tensors=tensors, arrays=arrays, values=(codes - shift) * each)

    return Maker(format=format, make=make)


def in_order(inputs: np.ndarray, group: int) -> np.ndarray:
    """The groups of inputs that are in their order."""
    return inputs // group


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A kind of checkpoint. makers: of the layers that match in full, the first that does. section: the
    `quantization_config`, None for none. base: sizes. files: JSON files beside config.json.

    beside: tensors beside each quantized weight, by the ends of their names. also: further tensors, by name.
    """

    makers: Mapping[str, Maker] | Maker
    section: dict[str, Any] | None
    base: str = "odd"
    files: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    beside_shape: tuple[int, ...] = ()
    also: Mapping[str, np.ndarray] = field(default_factory=dict)
    shards: int = 1

    def maker(self, layer: str) -> Maker | None:
        """What makes this layer's weight; None if it stays as it is."""
        return next((maker for pattern, maker in self._makers.items() if re.fullmatch(pattern, layer)), None)

    @property
    def in_memory(self) -> tuple[str, ...]:
        """The sizes and the formats of the layers: equal where programs for the model are."""
        return (self.base, *(f"{pattern}: {maker.format}" for pattern, maker in self._makers.items()))

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of the names of the layers that are quantized."""
        return tuple(self._makers)

    @property
    def _makers(self) -> Mapping[str, Maker]:
        return self.makers if isinstance(self.makers, Mapping) else {KERNELS: self.makers}


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint on disk. plain: the folder of the same model whose weights are the float32 values.

    made: by layer. tensors: of the file, by name. scales: those of activations, by name.
    """

    folder: Path
    plain: Path
    made: dict[str, Made]
    tensors: Tensors
    scales: Tensors


def write_convention(convention: Convention, base: Path, folder: Path) -> Written:
    """A copy of a float32 checkpoint in a convention, and one of its values, in subfolders of `folder`."""
    made: dict[str, Made] = {}
    tensors: Tensors = {}
    scales = dict(convention.also)
    plain = load_file(base / "model.safetensors")
    for name, values in sorted(plain.items()):
        layer = name.removesuffix(".weight")
        maker = convention.maker(layer)
        if maker is None:
            tensors[name] = values
            continue
        random = np.random.default_rng(zlib.crc32(layer.encode()))
        made[layer] = maker.make(values, random)
        plain[name] = made[layer].values.astype(np.float32)
        tensors |= {f"{layer}{end}": tensor for end, tensor in made[layer].tensors.items()}
        for end in convention.beside:
            scales[f"{layer}{end}"] = random.uniform(0.01, 0.1, convention.beside_shape).astype(np.float32)
    missed = [pattern for pattern in convention.patterns if not any(re.fullmatch(pattern, layer) for layer in made)]
    assert not missed, missed
    tensors |= scales
    config = json.loads((base / "config.json").read_text())
    write_folder(base, folder / "plain", plain, config)
    if convention.section is not None:
        config |= {"quantization_config": convention.section}
    write_folder(base, folder / "made", tensors, config, convention.shards)
    for file, content in convention.files.items():
        (folder / "made" / file).write_text(json.dumps(content))
    return Written(folder=folder / "made", plain=folder / "plain", made=made, tensors=tensors, scales=scales)


def write_changed(convention: Convention, changes: Changes, base: Path, folder: Path) -> Path:
    """A checkpoint of which only UP is in a convention, with some tensors changed.

    changes: by the ends of the names of UP's tensors, or by whole names: another tensor, None for none, or a function
    that makes it of what is there.
    """
    # Where the convention is for other layers, as if it were for this one.
    makers = [maker for name in (UP, "model.layers.0.self_attn.q_proj") if (maker := convention.maker(name))]
    one = replace(convention, makers={UP: makers[0]}, also={}, shards=1)
    written = write_convention(one, base, folder)
    tensors = dict(written.tensors)
    for end, change in changes.items():
        name = f"{UP}{end}" if end[0] in "._" else end
        changed = change(tensors[name]) if callable(change) else change
        tensors.pop(name, None)
        tensors |= {} if changed is None else {name: changed}
    save_file(tensors, written.folder / "model.safetensors")
    return written.folder


def write_folder(base: Path, folder: Path, tensors: Tensors, config: Mapping[str, Any], shards: int = 1) -> Path:
    """A folder like `base` with these tensors and this config.json; dealt out in turn to several files."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        # In turn of the sorted names, so that a scale is not in the file of its weight.
        part = {name: tensors[name] for name in sorted(tensors)[index::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder

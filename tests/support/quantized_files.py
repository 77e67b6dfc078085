"""Checkpoints with quantized kernels, made by hand: NumPy only, so that no code of Bombus is on both sides.

`quantized(base, folder, section, make)` copies a float32 checkpoint and gives its kernels other tensors. The layouts
are those of the compressed-tensors package: codes of 4 and 8 bits offset to unsigned and packed into int32, the first
in the low bits, zero points packed along the outputs, e8m0 scales as bytes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy_formats
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]
# Kernels of 34 x 35 and 35 x 34: in no direction whole words of int32, groups or tiles; and two shapes to compile for.
SIZES = {
    "preset": "original",
    "num_blocks": 1,
    "vocab_size": 34,
    "hidden_size": 35,
    "intermediate_size": 34,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 34,
}
KERNEL = re.compile(r"model\.layers\.\d+\..*_proj")


def quantized(
    base: Path, folder: Path, section: Any, make: Callable[[np.ndarray], Tensors], layers: str = ".*"
) -> Path:
    """`folder`, with `make(values)` for the weight of every kernel whose layer `layers` matches in full.

    The keys of what `make` returns are the last words of the tensors' names.
    """
    tensors = {}
    for name, values in load_file(base / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if KERNEL.fullmatch(layer) and re.fullmatch(layers, layer):
            tensors |= {f"{layer}.{word}": tensor for word, tensor in make(values).items()}
        else:
            tensors[name] = values
    return write(base, folder, section, tensors)


def write(base: Path, folder: Path, section: Any, tensors: Tensors) -> Path:
    """A folder like `base` with these tensors and this `quantization_config`."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": section}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def raw_tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """name -> (type, shape, bytes) of every tensor, whatever its type."""
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    return {
        name: (entry["dtype"], entry["shape"], raw[8 + length + start : 8 + length + stop])
        for name, entry in header.items()
        if name != "__metadata__"
        for start, stop in [entry["data_offsets"]]
    }


def compressed(weights: Mapping[str, Any], format: str, **changes: Any) -> dict[str, Any]:
    """A `quantization_config` of one group, for all linear layers unless `targets` says otherwise."""
    group = {"targets": changes.pop("targets", ["Linear"]), "weights": dict(weights)}
    group |= {name: changes.pop(name) for name in ("input_activations",) if name in changes}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **changes,
    }


def encode(values: np.ndarray, name: str, **options: Any) -> tuple[np.ndarray, numpy_formats.Parts]:
    """(codes one a byte, parts) of a weight."""
    parts = numpy_formats.make_parts(values, name, **options)
    return numpy_formats.make_codes(values, parts, name, **options), parts


def pack_words(unsigned: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes (R, n) in int32 (R, ceil(n * bits / 32)), filled up with zeros."""
    count = 32 // bits
    padded = np.pad(unsigned.astype(np.uint32), ((0, 0), (0, -unsigned.shape[1] % count)))
    words = np.zeros((len(padded), padded.shape[1] // count), np.uint32)
    for place in range(count):
        words |= padded[:, place::count] << np.uint32(bits * place)
    return words.view(np.int32)


def packed_integers(values: np.ndarray, bits: int, **options: Any) -> Tensors:
    """ "pack-quantized": weight_packed, weight_scale, weight_shape, and weight_zero_point where there is one."""
    codes, parts = encode(values, f"int{bits}", **options)
    unsigned = codes if bits == 4 else codes.astype(np.int16) + 128
    tensors = {
        "weight_packed": pack_words(unsigned, bits),
        "weight_scale": parts["scale_inv"],
        "weight_shape": np.array(values.shape, np.int64),
    }
    if "zero_point" in parts:
        packed = pack_words(np.ascontiguousarray(parts["zero_point"].T), 4)
        tensors["weight_zero_point"] = np.ascontiguousarray(packed.T)
    return tensors


def unpacked(values: np.ndarray, name: str, **options: Any) -> Tensors:
    """ "int-quantized", "float-quantized" and "mxfp8-quantized": weight and weight_scale."""
    codes, parts = encode(values, name, **options)
    return {"weight": codes, "weight_scale": _scale_tensor(parts["scale_inv"], options)}


def packed_fp4(values: np.ndarray, name: str) -> Tensors:
    """ "mxfp4-pack-quantized" and "nvfp4-pack-quantized": two codes a byte."""
    codes, parts = encode(values, name)
    tensors = {"weight_packed": numpy_formats.pack(codes), "weight_scale": _scale_tensor(parts["scale_inv"], {})}
    if "global_scale" in parts:
        tensors["weight_global_scale"] = parts["global_scale"]
        tensors["input_global_scale"] = np.array([123.0], np.float32)
    return tensors


def own(values: np.ndarray, name: str, **options: Any) -> Tensors:
    """Bombus' own layout, as it is documented: the arrays of memory, the codes by another name than values."""
    codes, parts = encode(values, name, **options)
    packed = numpy_formats.pack(codes) if name in numpy_formats.PACKED else codes
    return {"weight_codes": packed, **{f"weight_{part}": array for part, array in parts.items()}}


def _scale_tensor(scale: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    if options.get("tile") == (0, 0):
        return scale.reshape(1)
    return scale.view(np.uint8) if scale.dtype == ml_dtypes.float8_e8m0fnu else scale

"""The tiny checkpoints of the zoo, written without torch: names and shapes are the goldens', values are a function.

Shapes: O rows, I columns of a kernel; E experts; T tokens of a row.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "zoo"
STRIDE = 17  # of the outputs at a position, one in so many is stored; prime to all sizes
LENGTHS = (24, 17)  # tokens of the two rows
TILE = 128
KINDS = {"fp8": "block FP8", "mxfp4": "MXFP4"}  # what the table of README.md calls a format
E4M3FN_MAX = 448.0
_PREFIXES = ("model.", "transformer.", "gpt_neox.")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "wpe.weight", "embed_in.weight")
_KEPT = ("lm_head.weight", "embed_out.weight", "score.weight", "classifier.weight", "qa_outputs.weight")
_ROUTERS = (".gate.weight", ".router.weight")
# The 16 values of E2M1, by code.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def rows() -> list[np.ndarray]:
    """The two rows of tokens, of LENGTHS; never the token of padding, 0."""
    random = np.random.default_rng(11)
    return [random.integers(3, 320, length).astype(np.int32) for length in LENGTHS]


def batch(side: str) -> tuple[np.ndarray, np.ndarray]:
    """Both rows in one batch padded at `side`: tokens (2, T) and mask (2, T)."""
    tokens, mask = np.zeros((2, LENGTHS[0]), np.int32), np.zeros((2, LENGTHS[0]), np.bool_)
    for index, row in enumerate(rows()):
        place = slice(LENGTHS[0] - row.size, None) if side == "left" else slice(row.size)
        tokens[index, place], mask[index, place] = row, True
    return tokens, mask


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values of a tensor, the same under every head.

    No two tiles of a kernel have the same size of values, so that no two scales are equal.
    """
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    normal = random.standard_normal(shape, np.float32)
    if name.endswith("bias"):
        return np.float32(0.1) * normal
    if len(shape) == 1:
        return 1 + np.float32(0.1) * normal
    if name.endswith(_EMBEDDINGS):
        return np.float32(0.3) * normal
    grid = (*shape[:-2], *(-(-size // TILE) for size in shape[-2:]))
    return np.float32(0.08) * normal * per_weight(random.uniform(0.5, 2.0, grid).astype(np.float32), shape)


def per_weight(grid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A value per tile of 128x128 as a value per weight."""
    return grid.repeat(TILE, -2).repeat(TILE, -1)[..., : shape[-2], : shape[-1]]


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether block FP8 has codes of a tensor: of kernels, not of embeddings, heads and routers."""
    return len(shape) == 2 and name.endswith(".weight") and not name.endswith((*_EMBEDDINGS, *_KEPT, *_ROUTERS))


def quantize_fp8(wide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(e4m3fn codes, float32 scales of tiles) of a kernel as it lies in the file."""
    tiles = [range(0, size, TILE) for size in wide.shape]
    largest = [[np.abs(wide[r : r + TILE, c : c + TILE]).max() for c in tiles[1]] for r in tiles[0]]
    scale = np.asarray(largest, np.float32) / np.float32(E4M3FN_MAX)
    codes = np.clip(wide / per_weight(scale, wide.shape), -E4M3FN_MAX, E4M3FN_MAX).astype(jnp.float8_e4m3fn)
    return codes, scale


def dequantize_fp8(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float32 values, rounded once from the float64 product."""
    return (codes.astype(np.float64) * per_weight(scale.astype(np.float64), codes.shape)).astype(np.float32)


def quantize_mxfp4(wide_EIO: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks (E, O, I/32, 16), scales (E, O, I/32)), uint8, of kernels that lie as (E, I, O) where they are dense."""
    groups = np.swapaxes(wide_EIO, 1, 2).reshape(wide_EIO.shape[0], wide_EIO.shape[2], -1, 32)
    _, exponent = np.frexp(np.abs(groups).max(-1))  # largest < 2**exponent
    scales = (exponent - 3 + 127).astype(np.uint8)  # so that the largest is in [4, 8), and 6 the largest code
    scaled = np.ldexp(groups, 127 - scales.astype(np.int32)[..., None])
    codes = np.abs(scaled[..., None] - _E2M1).argmin(-1).astype(np.uint8)
    # safetensors writes the bytes of an array as they lie, whatever its strides.
    return codes[..., 0::2] | codes[..., 1::2] << 4, np.ascontiguousarray(scales)


def dequantize_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The dense float32 values (E, I, O); exact."""
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, 32)
    wide = np.ldexp(_E2M1[codes], scales.astype(np.int32)[..., None] - 127)
    return np.swapaxes(wide.reshape(*scales.shape[:2], -1), 1, 2).astype(np.float32, order="C")


@cache
def golden(case: str) -> dict[str, Any]:
    """What transformers computed of a case: `names` and `config` by head, `outputs` by (head or head, format)."""
    with np.load(GOLDENS / f"{case}.npz") as file:
        arrays = dict(file)
    about = json.loads(str(arrays.pop("about")))
    return {**about, "outputs": arrays}


def tensors(names: dict[str, list[int]], quantized: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file: dense, or with codes and scales; quantized: None, "fp8" or "mxfp4"."""
    wide = {name: values(name, tuple(size)) for name, size in names.items()}
    return wide if quantized is None else quantized_tensors(wide, quantized)


def quantized_tensors(wide: dict[str, np.ndarray], quantized: str) -> dict[str, np.ndarray]:
    """The tensors of a file with codes and scales, from those of a dense one."""
    result: dict[str, np.ndarray] = {}
    for name, array in wide.items():
        if quantized == "fp8" and is_quantized(name, array.shape):
            result[name], result[f"{name}_scale_inv"] = quantize_fp8(array)
        elif quantized == "mxfp4" and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            result[f"{name}_blocks"], result[f"{name}_scales"] = quantize_mxfp4(array)
        else:
            result[name] = array
    return result


def dequantized(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Dense tensors, from those of a quantized file."""
    result: dict[str, np.ndarray] = {}
    for name, array in found.items():
        if f"{name}_scale_inv" in found:
            result[name] = dequantize_fp8(array, found[f"{name}_scale_inv"])
        elif name.endswith("_blocks"):
            dense = name.removesuffix("_blocks")
            result[dense] = dequantize_mxfp4(array, found[f"{dense}_scales"])
        elif not name.endswith(("_scale_inv", "_scales")):
            result[name] = array
    return result


def quantization_config(names: dict[str, list[int]], quantized: str) -> dict[str, Any]:
    """The section of config.json."""
    kept = [name for name, size in names.items() if len(size) == 2 and not is_quantized(name, tuple(size))]
    layers = sorted({name.removesuffix(".weight") for name in kept if name.endswith(".weight")})
    if quantized == "mxfp4":
        attention = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        return {"quant_method": "mxfp4", "modules_to_not_convert": attention}
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [TILE, TILE],
        "modules_to_not_convert": layers,
    }


def write_checkpoint(case: str, head: str, folder: Path, quantized: str | None = None) -> Path:
    """`folder` with config.json and model.safetensors of a case, as transformers or a quantizer would write them."""
    about = golden(case)
    names = about["names"][head]
    config = dict(about["config"][head])
    if quantized is not None:
        config["quantization_config"] = quantization_config(names, quantized)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors(names, quantized), folder / "model.safetensors", {"format": "pt"})
    return folder


def header(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """name -> (type, shape) of the tensors of a folder's file."""
    with (folder / "model.safetensors").open("rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items() if name != "__metadata__"}


def older(config: dict[str, Any]) -> dict[str, Any]:
    """The same config.json as transformers 4 spelled it."""
    config = dict(config)
    config["torch_dtype"] = config.pop("dtype")
    rope = dict(config.pop("rope_parameters", {}))
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    theta, fraction = rope.pop("rope_theta", None), rope.pop("partial_rotary_factor", None)
    if config["model_type"] == "gpt_neox":
        config |= {"rotary_emb_base": theta, "rotary_pct": fraction}
    elif theta is not None:
        config |= {"rope_theta": theta} | ({} if fraction in (None, 1.0) else {"partial_rotary_factor": fraction})
    if rope and rope["rope_type"] != "default":
        # Phi-3 has the original context beside the other sizes, as it still has.
        if "original_max_position_embeddings" in config:
            del rope["original_max_position_embeddings"]
        config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    return config


def sampled(output: np.ndarray) -> np.ndarray:
    """The part of an output that a golden stores: of few values per position all, of many every STRIDE-th."""
    return output if output.shape[-1] <= STRIDE else output[..., ::STRIDE]

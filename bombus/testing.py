"""Tiny checkpoints, made offline: random weights in the files that a real model of that architecture has."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from bombus.kernels.quantize import E4M3FN_MAX
from bombus.loader.checkpoint import INDEX, WEIGHTS
from bombus.loader.quantization import write_block_fp8
from bombus.loader.units import make_units
from bombus.models.abstract import abstract_shapes
from bombus.models.registry import HEADS, Architecture, architectures
from bombus.models.spec import DecoderSpec
from bombus.policies.errors import CheckpointError, Problem, SpecError, closest
from bombus.policies.formats import find_format, fp8_in_tiles

# Sizes that are no multiples of 128: several tiles in both directions, partial ones at the edges.
_TILES = {
    "vocab_size": 320,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_blocks": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 48,
    "max_positions": 512,
}
# Mixtures of experts, and latent attention, whose joint projection ends in a partial tile.
_PARTS = {
    "num_experts": 6,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 144,
    "num_groups": 2,
    "num_groups_per_token": 1,
    "num_dense_blocks": 1,
    "query_rank": 96,
    "key_value_rank": 160,
    "nope_dim": 32,
    "rope_dim": 16,
    "value_dim": 40,
    "no_rope_layer_interval": 2,
}
PRESETS: dict[str, dict[str, int]] = {
    "tiles": {**_TILES, **_PARTS},
    # The generator of Bumblebee's pull request 448; there every kernel is a single tile.
    "original": {
        **_PARTS,
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_blocks": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_positions": 512,
    },
}
_WEIGHTS = ("f32", "bf16", "f8_e4m3fn")
_END = "<|endoftext|>"
_END_ID = 256  # after the 256 bytes


def tiny_checkpoint(
    architecture: str,
    folder: str | PathLike[str],
    weights: str = "f8_e4m3fn",
    seed: int = 0,
    *,
    preset: str = "tiles",
    head: str = "causal_lm",
    scales: str = "f32",
    not_converted: Sequence[str] = (),
    block_shape: tuple[int, int] = (128, 128),
    shards: int = 1,
    **sizes: Any,
) -> Path:
    """`folder`, filled with a checkpoint of random weights: config, safetensors, tokenizer, generation config.

    architecture: the name of one ("qwen3", "gpt2", ...), or transformers' class name. weights: "f32", "bf16" or
    "f8_e4m3fn"; FP8 kernels have a distinct scale per tile, stored as `scales` ("f32" or "bf16"), and everything else
    is bf16. not_converted: globs of layers (transformers' names) that stay bf16. preset: "tiles", with several and
    partial tiles, or "original"; `sizes` override single spec fields, tie_word_embeddings included. The same
    arguments give the same bytes.

    Raises SpecError for an unknown architecture, preset or size.
    """
    entry = _architecture(architecture)
    for what, value, choices in (("preset", preset, PRESETS), ("head", head, HEADS), ("weights", weights, _WEIGHTS)):
        if value not in choices:
            problem = Problem(subject=f"{what} {value!r}", message="does not exist", remedy=closest(value, choices))
            raise SpecError(problem)
    if shards < 1:
        raise SpecError(Problem(subject="shards", message="must be at least 1", found=str(shards)))
    spec = _tiny_spec(entry, PRESETS[preset], head, sizes)
    stored = find_format(weights)
    wide = find_format("bf16" if stored.is_low else weights).dtype
    tensors: dict[str, np.ndarray] = {}
    kept = []
    shapes = abstract_shapes(spec)
    for unit in make_units(spec, shapes, shapes, entry.mapping.spelled_for(head)):
        path = unit.paths[0]
        parts = [_values(*pair, seed, block_shape) for pair in zip(unit.paths, unit.shapes, strict=True)]
        values = unit.join(parts)
        # As transformers does it: heads and routers are no linear layers to it, nor is a stack in one tensor.
        is_kept = path.partition(".")[0].endswith("_head") or ".router." in path or unit.place.stacked
        layers, names = unit.names(unit.place.layer), unit.names(unit.place.tensor)
        for layer, name, value in zip(layers, names, values if unit.place.by_expert else [values], strict=True):
            if stored.is_low and path.endswith(".kernel"):
                if not is_kept and not any(fnmatchcase(layer, pattern) for pattern in not_converted):
                    codes, scale = _quantize(value, block_shape, find_format(scales).dtype)
                    tensors |= {name: codes, f"{name}_scale_inv": scale}
                    continue
                kept.append(layer)
            tensors[name] = np.ascontiguousarray(value).astype(wide)
    if spec.tie_word_embeddings:
        # To transformers a head that is the embedding is a layer, and would be one of FP8.
        tied = map(entry.mapping.tied_tensor, abstract_shapes(spec))
        kept += [name.rpartition(".")[0] for name in tied if name is not None]
    config = {
        "architectures": [entry.class_name(head)],
        "model_type": entry.name,
        "torch_dtype": "float32" if weights == "f32" else "bfloat16",
        **spec.to_hf(),
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": _END_ID if spec.vocab_size > _END_ID else None,
    }
    if stored.is_low:
        config["quantization_config"] = write_block_fp8(block_shape, kept)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            Problem(subject="folder", message=f"cannot be made: {error}"), where=str(folder)
        ) from error
    _write_weights(folder, tensors, shards)
    _write_json(folder / "config.json", config)
    if spec.vocab_size > _END_ID:
        _write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": _END_ID})
        _byte_tokenizer().save(str(folder / "tokenizer.json"))
        _write_json(folder / "tokenizer_config.json", {"eos_token": _END})
    return folder


def _tiny_spec(entry: Architecture, preset: Mapping[str, int], head: str, sizes: Mapping[str, Any]) -> DecoderSpec:
    known = {field.name for field in dataclasses.fields(entry.spec) if field.init}
    # Of a preset only what the family has: GPT-2 has no key/value heads of its own.
    found = {name: size for name, size in preset.items() if name in known}
    fields = {"tie_word_embeddings": bool(entry.mapping.ties), **found, **sizes, "head": head}
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise SpecError(Problem(subject=f"size {unknown[0]!r}", message=f"is not a field of {entry.spec.__name__}"))
    return entry.spec(**fields)


def _architecture(name: str) -> Architecture:
    for entry in architectures():
        if name == entry.name or name in entry.classes:
            return entry
    known = [entry.name for entry in architectures()]
    raise SpecError(Problem(subject=f"architecture {name!r}", message="is unknown", remedy=closest(name, known)))


def _values(path: str, shape: tuple[int, ...], seed: int, block_shape: tuple[int, int]) -> np.ndarray:
    """float32 values with a seed of their own, so that a tensor does not depend on those before it."""
    random = np.random.default_rng([seed, zlib.crc32(path.encode())])
    normal = random.standard_normal(shape, np.float32)
    if path.endswith(".scale"):
        return 1 + 0.1 * normal
    if path.endswith((".bias", ".selection_bias", ".sinks", ".embedding")):
        return 0.1 * normal
    # Tiles of different size of values, so that no two scales are equal.
    grid = fp8_in_tiles(block_shape).grid(shape)
    sizes = np.exp(random.uniform(np.log(0.5), np.log(2.0), grid))
    return 0.08 * normal * _per_weight(sizes.astype(np.float32), shape, block_shape)


def _quantize(values: np.ndarray, block_shape: tuple[int, int], scale_dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (range(0, size, block) for size, block in zip(values.shape, block_shape, strict=True))
    largest = [[np.abs(values[r : r + block_shape[0], c : c + block_shape[1]]).max() for c in columns] for r in rows]
    scale = (np.asarray(largest, np.float32) / E4M3FN_MAX).astype(scale_dtype)
    scaled = values / _per_weight(scale.astype(np.float32), values.shape, block_shape)
    return np.clip(scaled, -E4M3FN_MAX, E4M3FN_MAX).astype(jnp.float8_e4m3fn), scale


def _per_weight(grid: np.ndarray, shape: tuple[int, ...], block_shape: tuple[int, int]) -> np.ndarray:
    return grid.repeat(block_shape[0], -2).repeat(block_shape[1], -1)[..., : shape[-2], : shape[-1]]


def _write_weights(folder: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        # Dealt out in turn, so that a scale is not in the shard of its weight.
        part = names[index::shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _byte_tokenizer() -> tokenizers.Tokenizer:
    """A tokenizer whose tokens are the 256 bytes, and one that ends a text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    return tokenizer


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

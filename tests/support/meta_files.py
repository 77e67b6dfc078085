"""Checkpoints in Meta's layout, made of Hugging Face ones with NumPy: the inverse of what the loader does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch_files
from safetensors.numpy import load_file

# Hugging Face's layer -> Meta's, and the axis along which model parallelism cuts it (None: not at all).
LAYERS = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}
ENDS = {"model.embed_tokens": ("tok_embeddings", 1), "model.norm": ("norm", None), "lm_head": ("output", 0)}


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key kernel as Meta has them: the halves of every head, which rotate together, in turn."""
    result = np.empty_like(rows)
    size = rows.shape[0] // heads
    for head in range(heads):
        of_head = rows[head * size : (head + 1) * size]
        result[head * size : (head + 1) * size : 2] = of_head[: size // 2]
        result[head * size + 1 : (head + 1) * size : 2] = of_head[size // 2 :]
    return result


def meta_tensors(base: Path, shards: int = 1, embedding_axis: int = 1) -> list[dict[str, np.ndarray]]:
    """The tensors of every shard, of the checkpoint in `base`."""
    config = json.loads((base / "config.json").read_text())
    pieces: list[dict[str, np.ndarray]] = [{} for _ in range(shards)]
    for name, values in load_file(base / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if layer in ENDS:
            theirs, axis = ENDS[layer]
        else:
            _, _, number, rest = layer.split(".", 3)
            theirs, axis = LAYERS[rest]
            theirs = f"layers.{number}.{theirs}"
        if theirs == "tok_embeddings":
            axis = embedding_axis
        if layer.endswith(("q_proj", "k_proj")):
            query = layer.endswith("q_proj")
            values = interleaved(values, config["num_attention_heads" if query else "num_key_value_heads"])
        parts = [values] * shards if axis is None else np.split(values, shards, axis)
        for piece, part in zip(pieces, parts, strict=True):
            piece[f"{theirs}.weight"] = np.ascontiguousarray(part)
    for piece in pieces:
        piece["rope.freqs"] = np.ones(4, np.float32)
    return pieces


def meta_params(base: Path, **changes: Any) -> dict[str, Any]:
    """params.json of the checkpoint in `base`."""
    config = json.loads((base / "config.json").read_text())
    params = {
        "dim": config["hidden_size"],
        "multiple_of": 4,
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "n_layers": config["num_hidden_layers"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": -1,
        "max_seq_len": config["max_position_embeddings"],
    }
    return params | changes


def write_meta(folder: Path, shards: list[dict[str, np.ndarray]], params: Mapping[str, Any]) -> Path:
    """`folder`, with params.json and consolidated.NN.pth."""
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    for number, tensors in enumerate(shards):
        (folder / f"consolidated.{number:02d}.pth").write_bytes(as_torch(tensors))
    return folder


def as_torch(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A file of torch.save with these float32 tensors."""
    views, storages = {}, {}
    for key, (name, values) in enumerate(tensors.items()):
        stride = tuple(step // values.itemsize for step in values.strides)
        of = torch_files.storage(str(key), "torch.FloatStorage", values.size)
        views[name] = torch_files.view(of, 0, values.shape, stride)
        storages[str(key)] = values.tobytes()
    return torch_files.zip_file(views, storages)

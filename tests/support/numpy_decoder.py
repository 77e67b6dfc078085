"""An independent float64 model of Qwen3 and Llama: NumPy, its own reader of the files, nothing of Bombus.

`forward` takes a checkpoint folder and tokens (T,) and returns logits (T, V), or the hidden state where there is no
head. Written for clarity: one row, one head at a time, full attention, no cache.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

_DTYPES = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder's safetensors files, as stored."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8 : 8 + length]).items():
            if name != "__metadata__":
                start, stop = (8 + length + offset for offset in entry["data_offsets"])
                values = np.frombuffer(raw[start:stop], _DTYPES[entry["dtype"]])
                tensors[name] = values.reshape(entry["shape"])
    return tensors


def dequantize(codes: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """float64 values of block-FP8 codes, tile by tile."""
    result = codes.astype(np.float64)
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            tile = np.s_[row * block[0] : (row + 1) * block[0], column * block[1] : (column + 1) * block[1]]
            result[tile] *= float(scale[row, column])
    return result


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Every parameter in float64, dequantized."""
    config = json.loads((folder / "config.json").read_text())
    block = tuple(config.get("quantization_config", {}).get("weight_block_size", (128, 128)))
    tensors = read_tensors(folder)
    return {
        name: dequantize(value, tensors[f"{name}_scale_inv"], block)
        if f"{name}_scale_inv" in tensors
        else value.astype(np.float64)
        for name, value in tensors.items()
        if not name.endswith("_scale_inv")
    }


def forward(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits (T, V) of a causal model, else the normed hidden state (T, D)."""
    config = json.loads((folder / "config.json").read_text())
    parameters = {name.removeprefix("model."): value for name, value in weights(folder).items()}
    epsilon, head_dim = config["rms_norm_eps"], config["head_dim"]
    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    x = parameters["embed_tokens.weight"][tokens]
    cos, sin = _rotary(config, len(tokens))
    hidden_keys = np.triu(np.ones((len(tokens), len(tokens)), bool), 1)

    def norm(value: np.ndarray, name: str) -> np.ndarray:
        return value / np.sqrt((value**2).mean(-1, keepdims=True) + epsilon) * parameters[name + ".weight"]

    def dense(value: np.ndarray, name: str) -> np.ndarray:
        return value @ parameters[name + ".weight"].T + parameters.get(name + ".bias", 0.0)

    def turn(value: np.ndarray) -> np.ndarray:
        first, second = value[:, : head_dim // 2], value[:, head_dim // 2 :]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), 1)

    for layer in range(config["num_hidden_layers"]):
        at = f"layers.{layer}."
        normed = norm(x, at + "input_layernorm")
        query, key, value = (dense(normed, f"{at}self_attn.{name}_proj") for name in "qkv")
        heads = []
        for head in range(config["num_attention_heads"]):
            shared = np.s_[:, head // groups * head_dim : (head // groups + 1) * head_dim]
            q, k, v = query[:, head * head_dim : (head + 1) * head_dim], key[shared], value[shared]
            if config["model_type"] == "qwen3":
                q, k = norm(q, at + "self_attn.q_norm"), norm(k, at + "self_attn.k_norm")
            scores = turn(q) @ turn(k).T / math.sqrt(head_dim)
            scores[hidden_keys] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v)
        x = x + dense(np.concatenate(heads, 1), at + "self_attn.o_proj")
        normed = norm(x, at + "post_attention_layernorm")
        gate = dense(normed, at + "mlp.gate_proj")
        x = x + dense(gate / (1 + np.exp(-gate)) * dense(normed, at + "mlp.up_proj"), at + "mlp.down_proj")
    x = norm(x, "norm")
    if config["architectures"][0].endswith("Model"):
        return x
    return x @ parameters["embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


def _rotary(config: dict, length: int) -> tuple[np.ndarray, np.ndarray]:
    head_dim, scaling = config["head_dim"], config["rope_scaling"]
    frequencies = []
    for pair in range(head_dim // 2):
        frequency = config["rope_theta"] ** (-2 * pair / head_dim)
        if scaling is not None:  # Llama 3.1's rule, by wavelength
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
            share = min(1.0, max(0.0, (turns - low) / (high - low)))
            frequency = (1 - share) * frequency / scaling["factor"] + share * frequency
        frequencies.append(frequency)
    angles = np.arange(length)[:, None] * np.asarray(frequencies)
    return np.cos(angles), np.sin(angles)

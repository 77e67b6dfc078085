"""Released models at their full size, as configurations and as the headers of their files: no weight anywhere.

Names, shapes and types of tensors are written down here, apart from the mappings of models/, as the repositories on
the hub have them; so are the numbers of parameters, which the repositories and the papers say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bombus.loader.tensors import TensorInfo

BF16, F8, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(np.float32)
Tensor = tuple[str, tuple[int, ...]]

_QWEN3 = {"rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "vocab_size": 151936, "head_dim": 128, "hidden_act": "silu"}


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """A released model. parameters: how many, as published. fp8: whether its linear layers are in block FP8."""

    config: dict[str, Any]
    parameters: int
    fp8: bool = False

    def headers(self) -> dict[str, TensorInfo]:
        """The tensors of all of its files."""
        found = {}
        for name, shape in _tensors(self.config):
            kept = any(word in name for word in ("embed", "norm", "lm_head", "mlp.gate.", "e_score_correction"))
            dtype = F8 if self.fp8 and not kept else F32 if "correction" in name else BF16
            found[name] = _info(dtype, shape)
            if dtype == F8:
                found[f"{name}_scale_inv"] = _info(F32, (-(-shape[0] // 128), -(-shape[1] // 128)))
        return found


def _info(dtype: np.dtype, shape: tuple[int, ...]) -> TensorInfo:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return TensorInfo(dtype=dtype, shape=shape, file=Path("model.safetensors"), start=0, stop=size)


def _tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    hidden, heads, vocab = config["hidden_size"], config["num_attention_heads"], config["vocab_size"]
    latent = config["model_type"] == "deepseek_v3"
    # DeepSeek-V3 has one block more, which predicts a further token.
    for number in range(config["num_hidden_layers"] + latent):
        layer = f"model.layers.{number}."
        yield f"{layer}input_layernorm.weight", (hidden,)
        yield f"{layer}post_attention_layernorm.weight", (hidden,)
        yield from _attention(f"{layer}self_attn.", config, hidden, heads)
        experts = config.get("num_experts") or config.get("n_routed_experts")
        if experts is None or (latent and number < config["first_k_dense_replace"]):
            yield from _feed_forward(f"{layer}mlp.", hidden, config["intermediate_size"])
            continue
        yield f"{layer}mlp.gate.weight", (experts, hidden)
        for expert in range(experts):
            yield from _feed_forward(f"{layer}mlp.experts.{expert}.", hidden, config["moe_intermediate_size"])
        if latent:
            yield f"{layer}mlp.gate.e_score_correction_bias", (experts,)
            yield from _feed_forward(f"{layer}mlp.shared_experts.", hidden, config["moe_intermediate_size"])
    if latent:
        last = f"model.layers.{config['num_hidden_layers']}."
        yield from ((f"{last}{name}.weight", (hidden,)) for name in ("enorm", "hnorm", "shared_head.norm"))
        yield f"{last}eh_proj.weight", (hidden, 2 * hidden)
        yield from ((f"{last}{name}.weight", (vocab, hidden)) for name in ("embed_tokens", "shared_head.head"))
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def _feed_forward(prefix: str, hidden: int, size: int) -> Iterator[Tensor]:
    yield f"{prefix}gate_proj.weight", (size, hidden)
    yield f"{prefix}up_proj.weight", (size, hidden)
    yield f"{prefix}down_proj.weight", (hidden, size)


def _attention(prefix: str, config: dict[str, Any], hidden: int, heads: int) -> Iterator[Tensor]:
    if config["model_type"] == "deepseek_v3":
        rank, rope, nope, value = (
            config[f"{name}_head_dim"] if "rank" not in name else config[name] for name in _SIZES
        )
        yield f"{prefix}q_a_proj.weight", (config["q_lora_rank"], hidden)
        yield f"{prefix}q_a_layernorm.weight", (config["q_lora_rank"],)
        yield f"{prefix}q_b_proj.weight", (heads * (nope + rope), config["q_lora_rank"])
        yield f"{prefix}kv_a_proj_with_mqa.weight", (rank + rope, hidden)
        yield f"{prefix}kv_a_layernorm.weight", (rank,)
        yield f"{prefix}kv_b_proj.weight", (heads * (nope + value), rank)
        yield f"{prefix}o_proj.weight", (hidden, heads * value)
        return
    size = config.get("head_dim") or hidden // heads
    keys = config["num_key_value_heads"] * size
    yield f"{prefix}q_proj.weight", (heads * size, hidden)
    yield f"{prefix}k_proj.weight", (keys, hidden)
    yield f"{prefix}v_proj.weight", (keys, hidden)
    yield f"{prefix}o_proj.weight", (hidden, heads * size)
    if config["model_type"].startswith("qwen3"):
        yield f"{prefix}q_norm.weight", (size,)
        yield f"{prefix}k_norm.weight", (size,)


_SIZES = ("kv_lora_rank", "qk_rope", "qk_nope", "v")

FULL_SIZE: dict[str, FullSize] = {
    "Qwen3-32B-FP8": FullSize(
        config={
            **_QWEN3,
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_hidden_layers": 64,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": False,
        },
        parameters=32_762_123_264,
        fp8=True,
    ),
    "Llama-3.1-405B": FullSize(
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 16384,
            "intermediate_size": 53248,
            "num_hidden_layers": 126,
            "num_attention_heads": 128,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "tie_word_embeddings": False,
        },
        parameters=405_853_388_800,
    ),
    "DeepSeek-V3": FullSize(
        config={
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "vocab_size": 129280,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "num_nextn_predict_layers": 1,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_shared_experts": 1,
            "n_routed_experts": 256,
            "ep_size": 1,
            "routed_scaling_factor": 2.5,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "qk_nope_head_dim": 128,
            "topk_method": "noaux_tc",
            "n_group": 8,
            "topk_group": 4,
            "num_experts_per_tok": 8,
            "moe_layer_freq": 1,
            "first_k_dense_replace": 3,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "hidden_act": "silu",
            "max_position_embeddings": 163840,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        # 671 billion; the block that predicts a further token, with its own embedding and head, is not among them.
        parameters=671_026_419_200,
        fp8=True,
    ),
    "Qwen3-235B-A22B": FullSize(
        config={
            **_QWEN3,
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "router_aux_loss_coef": 0.001,
            "max_position_embeddings": 40960,
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
        parameters=235_093_634_560,
    ),
}

"""The zoo: one tiny config of transformers for every architecture, and for every variant of it that matters.

A case is data. tests/goldens/make_zoo_goldens.py, tests/models/test_zoo.py and tests/parity/test_parity_zoo.py run all
of them alike. Sizes give several tiles of 128 and partial ones, and the rows of fused tensors end inside a tile.
Windows and the original contexts of scaled rotary positions are shorter than the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

THETA = 31_000.0
# Epsilon and theta are nobody's default: with 1e-6 a wrong epsilon would not show.
_ODD: dict[str, Any] = {"rms_norm_eps": 0.02, "rope_parameters": {"rope_type": "default", "rope_theta": THETA}}
_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD_DIM = {"head_dim": 48}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 6}
_GPT: dict[str, Any] = {
    "vocab_size": 320,
    "n_embd": 240,
    "n_layer": 2,
    "n_head": 6,
    "n_inner": 320,
    "n_positions": 64,
    "layer_norm_epsilon": 0.02,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 7
ORIGINAL = 16  # positions of the original context of scaled rotary positions
BETWEEN = 20  # longer than the shorter row of a batch, shorter than the longer one


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": THETA, **options}}


_YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 1.25, "beta_slow": 0.1}
_LLAMA3 = {"factor": 8.0, "original_max_position_embeddings": ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_DEEPSEEK: dict[str, Any] = {
    **_SIZES,
    **_ODD,
    "num_key_value_heads": 6,
    "moe_intermediate_size": 144,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 160,
    "kv_lora_rank": 176,  # with the rotary part 192 rows: one whole tile and a half
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "num_nextn_predict_layers": 0,
}
_GPT_OSS: dict[str, Any] = {
    **_SIZES,
    **_HEAD_DIM,
    **_EXPERTS,
    "rms_norm_eps": 0.02,
    "sliding_window": WINDOW,
    "swiglu_limit": 1.5,
    **_rope("yarn", **_YARN, truncate=False),
}
# It has no groups of heads.
_NEOX: dict[str, Any] = {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"} | {
    "layer_norm_eps": 0.02
}
_PHI3: dict[str, Any] = {**_SIZES, **_ODD, "hidden_size": 240}

# model_type -> head -> class; where a head is missing, transformers 5.23 has no class for it.
CLASSES: dict[str, dict[str, str]] = {}
ALL = ("causal_lm", "sequence_classification", "base", "token_classification", "question_answering")
_SUFFIXES = ("ForCausalLM", "ForSequenceClassification", "Model", "ForTokenClassification", "ForQuestionAnswering")
for _name, _stem, _count in (
    *(("qwen2", "Qwen2", 5), ("qwen3", "Qwen3", 5), ("qwen3_moe", "Qwen3Moe", 5), ("llama", "Llama", 5)),
    *(("mistral", "Mistral", 5), ("mixtral", "Mixtral", 5), ("phi", "Phi", 4), ("phi3", "Phi3", 4)),
    *(("gemma", "Gemma", 4), ("gemma2", "Gemma2", 4), ("gemma3_text", "Gemma3Text", 3), ("smollm3", "SmolLM3", 5)),
    *(("gpt2", "GPT2", 5), ("gpt_neox", "GPTNeoX", 5), ("gpt_bigcode", "GPTBigCode", 4), ("olmo2", "Olmo2", 3)),
    *(("deepseek_v3", "DeepseekV3", 4), ("gpt_oss", "GptOss", 4)),
):
    CLASSES[_name] = {head: _stem + suffix for head, suffix in list(zip(ALL, _SUFFIXES, strict=True))[:_count]}
CLASSES["gemma3_text"]["causal_lm"] = "Gemma3ForCausalLM"
CLASSES["gpt2"]["causal_lm"] = "GPT2LMHeadModel"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny config of transformers.

    heads: those that are tested; a variant differs in the backbone only, and has one.
    decodes: whether decoding is tested; a variant whose cache is like others' is not.
    decodes_within: the context in which keys keep their angles when more tokens come; None: any. Where a longer row
        changes the angles of all its tokens (dynamic, longrope), decoding is not one prefill, in transformers neither.
    formats: the formats that a version of causal_lm is made in: "fp8" in blocks, "mxfp4" of experts. A variant has none
        where its files are not others.
    rearranged: the ends of the names of kernels that loading cuts or turns, so that tiles are not those of the file.
    required: a key that config.json must have.
    """

    model_type: str
    config: Mapping[str, Any]
    heads: tuple[str, ...] = ("causal_lm",)
    decodes: bool = False
    decodes_within: int | None = None
    formats: tuple[str, ...] = ()
    rearranged: tuple[str, ...] = ()
    required: str = "num_hidden_layers"

    def class_name(self, head: str) -> str:
        """transformers' class for a head."""
        return CLASSES[self.model_type][head]

    def labels(self, head: str) -> dict[str, int]:
        """The options of a config that only a head has."""
        return {"num_labels": 3} if head.endswith("_classification") else {}


def _all(model_type: str, *options: Mapping[str, Any], **more: Any) -> Case:
    return _one(model_type, *options, heads=tuple(CLASSES[model_type]), formats=("fp8",), decodes=True, **more)


def _one(model_type: str, *options: Mapping[str, Any], **more: Any) -> Case:
    config: dict[str, Any] = {}
    for part in options:
        config |= part
    return Case(model_type=model_type, config=config, **more)


_FUSED = ("qkv_proj.weight", "gate_up_proj.weight")
_ATTENTION = ("c_attn.weight", "query_key_value.weight")
_CONV1D = (*_ATTENTION, "c_proj.weight", "c_fc.weight")
_LLAMA = (_SIZES, _ODD, _HEAD_DIM)
CASES: dict[str, Case] = {
    "qwen2": _all("qwen2", _SIZES, _ODD, {"tie_word_embeddings": True}),
    "qwen2_windows": _one(
        *("qwen2", _SIZES, _ODD),
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_hidden_layers": 3},
        decodes=True,
    ),
    "qwen3": _all("qwen3", *_LLAMA),
    "qwen3_moe": _all("qwen3_moe", *_LLAMA, _EXPERTS, {"moe_intermediate_size": 144, "norm_topk_prob": True}),
    "qwen3_moe_between_dense": _one(
        *("qwen3_moe", *_LLAMA, _EXPERTS),
        {"moe_intermediate_size": 144, "norm_topk_prob": False, "num_hidden_layers": 4},
        {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ),
    "llama": _all("llama", *_LLAMA, _rope("llama3", **_LLAMA3)),
    "llama_linear": _one("llama", *_LLAMA, _rope("linear", factor=3.0)),
    "llama_dynamic": _one(
        *("llama", *_LLAMA, _rope("dynamic", factor=2.5), {"max_position_embeddings": BETWEEN}),
        decodes=True,
        decodes_within=BETWEEN,
    ),
    "llama_yarn": _one("llama", *_LLAMA, _rope("yarn", **_YARN)),
    "mistral": _all("mistral", *_LLAMA, {"sliding_window": WINDOW}),
    "mixtral": _all("mixtral", *_LLAMA, _EXPERTS, {"intermediate_size": 144, "sliding_window": None}),
    "phi": _all("phi", _SIZES, {"layer_norm_eps": 0.02}, _rope("default", partial_rotary_factor=0.5)),
    "phi_qk_layernorm": _one(
        *("phi", _SIZES, {"layer_norm_eps": 0.02, "qk_layernorm": True}),
        _rope("default", partial_rotary_factor=0.75),
    ),
    "phi3": _all("phi3", _PHI3, {"sliding_window": WINDOW}, rearranged=_FUSED),
    "phi3_longrope": _one(
        *("phi3", _PHI3, {"original_max_position_embeddings": BETWEEN, "max_position_embeddings": 160}),
        _rope(
            "longrope",
            partial_rotary_factor=0.8,
            short_factor=[1.0 + 0.05 * i for i in range(16)],
            long_factor=[1.5 + 0.75 * i for i in range(16)],
        ),
        decodes=True,
        decodes_within=BETWEEN,
        rearranged=_FUSED,
    ),
    "gemma": _all("gemma", *_LLAMA),
    "gemma2": _all(
        *("gemma2", *_LLAMA, {"sliding_window": WINDOW, "query_pre_attn_scalar": 30}),
        {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 20.0},
    ),
    "gemma3": _all(
        *("gemma3_text", *_LLAMA, {"sliding_window": WINDOW, "query_pre_attn_scalar": 30, "num_hidden_layers": 3}),
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 9_000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": THETA, "factor": 8.0},
            }
        },
    ),
    "smollm3": _all("smollm3", _SIZES, _ODD, {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]}),
    "gpt2": _all("gpt2", _GPT, required="n_layer", rearranged=_CONV1D),
    "gpt2_scaled": _one(
        *("gpt2", _GPT, {"scale_attn_by_inverse_layer_idx": True}),
        required="n_layer",
        rearranged=_CONV1D,
    ),
    "gpt_neox": _all(
        *("gpt_neox", _NEOX, _rope("default", partial_rotary_factor=0.25)),
        rearranged=_ATTENTION,
    ),
    "gpt_neox_sequential": _one(
        *("gpt_neox", _NEOX, {"use_parallel_residual": False}),
        _rope("default", partial_rotary_factor=0.5),
        rearranged=_ATTENTION,
    ),
    "gpt_bigcode": _all("gpt_bigcode", _GPT, {"multi_query": True}, required="n_layer", rearranged=_ATTENTION),
    "gpt_bigcode_heads": _one(
        *("gpt_bigcode", _GPT, {"multi_query": False}),
        formats=("fp8",),
        required="n_layer",
        rearranged=_ATTENTION,
    ),
    "olmo2": _all("olmo2", _SIZES, _ODD),
    "deepseek_v3": _all("deepseek_v3", _DEEPSEEK),
    "deepseek_v3_whole_queries": _one(
        *("deepseek_v3", _DEEPSEEK, {"q_lora_rank": None, "norm_topk_prob": False, "rope_interleave": False}),
    ),
    "deepseek_v3_yarn": _one("deepseek_v3", _DEEPSEEK, _rope("yarn", **_YARN, mscale=1.0, mscale_all_dim=0.7)),
    "gpt_oss": _all("gpt_oss", _GPT_OSS, {"intermediate_size": 144}),
    "gpt_oss_mxfp4": _one("gpt_oss", _GPT_OSS, {"intermediate_size": 160}, formats=("mxfp4",)),
}

# Folder of real data -> (model_type, head, class): trained weights, or those of another project's tests.
REAL: dict[str, tuple[str, str, str]] = {
    "stories260K-hf": ("llama", "causal_lm", "LlamaForCausalLM"),
    "tiny-llama-bin": ("llama", "base", "LlamaModel"),
    "capp-gpt2": ("gpt2", "causal_lm", "GPT2LMHeadModel"),
}

"""config.json of well-known releases: every key of theirs is read, and the number of parameters is the published one.

No weights are made. A case is what the release's file says, without the keys that have no effect anywhere.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import bombus
from bombus.layers import LongScaling
from bombus.models.abstract import abstract_shapes
from bombus.models.gemma import GemmaSpec
from bombus.models.gemma2 import Gemma2Spec
from bombus.models.gemma3_text import Gemma3TextSpec
from bombus.models.phi3 import Phi3Spec
from bombus.models.registry import architecture_of, find_architecture

# Lists of LongRoPE: one factor per rotated pair.
_PHI4_FACTORS = {"short_factor": [1.0] * 48, "long_factor": [1.0 + 0.5 * pair for pair in range(48)]}
_PHI35_FACTORS = {"short_factor": [1.0 + 0.02 * pair for pair in range(48)], "long_factor": [1.5] * 48}

_PHI2 = {
    "architectures": ["PhiForCausalLM"],
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "hidden_act": "gelu_new",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "phi",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "resid_pdrop": 0.1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 51200,
}
_PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
_PHI4_MINI = {
    **_PHI3,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "longrope", **_PHI4_FACTORS},
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
_GEMMA_2B = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
_GEMMA2_2B = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
_GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}

_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
_MIXTRAL = {
    **_MISTRAL,
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
}
_QWEN2_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
_QWEN3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
_SMOLLM3 = {  # tied, and does not say so
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
_OLMO2_7B = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
_DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
_GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
_GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
_PYTHIA_160M = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
_STARCODER = {
    "activation_function": "gelu",
    "architectures": ["GPTBigCodeForCausalLM"],
    "attention_softmax_in_fp32": True,
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "inference_runner": 0,
    "layer_norm_epsilon": 1e-05,
    "max_batch_size": None,
    "max_sequence_length": None,
    "model_type": "gpt_bigcode",
    "multi_query": True,
    "n_embd": 6144,
    "n_head": 48,
    "n_inner": 24576,
    "n_layer": 40,
    "n_positions": 8192,
    "pad_key_length": True,
    "pre_allocate_kv_cache": False,
    "resid_pdrop": 0.1,
    "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "validate_runner_input": True,
    "vocab_size": 49152,
}

# (architecture, what config.json says, the number of parameters, tied ones once)
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("phi", _PHI2, 2_779_683_840),
    ("phi3", _PHI3, 3_821_079_552),
    (
        "phi3",  # Phi-3.5-mini; Phi-3-mini-128k at first called its scaling "su"
        {
            **_PHI3,
            "max_position_embeddings": 131072,
            "rope_scaling": {"type": "su", **_PHI35_FACTORS},
            "sliding_window": 262144,
        },
        3_821_079_552,
    ),
    (
        "phi3",  # Phi-4
        {
            **_PHI3,
            "hidden_size": 5120,
            "intermediate_size": 17920,
            "max_position_embeddings": 16384,
            "num_attention_heads": 40,
            "num_hidden_layers": 40,
            "num_key_value_heads": 10,
            "original_max_position_embeddings": 16384,
            "rope_theta": 250000,
            "sliding_window": None,
            "vocab_size": 100352,
        },
        14_659_507_200,
    ),
    ("phi3", _PHI4_MINI, 3_836_021_760),
    ("gemma", _GEMMA_2B, 2_506_172_416),
    (
        "gemma",  # Gemma-7B; early files have no `hidden_activation`
        {
            **_GEMMA_2B,
            "hidden_activation": None,
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 16,
        },
        8_537_680_896,
    ),
    ("gemma2", _GEMMA2_2B, 2_614_341_888),
    (
        "gemma2",  # Gemma-2-9B
        {
            **_GEMMA2_2B,
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_attention_heads": 16,
            "num_hidden_layers": 42,
            "num_key_value_heads": 8,
            "sliding_window_size": 4096,
        },
        9_241_705_984,
    ),
    ("gemma3_text", _GEMMA3_1B, 999_885_952),
    (
        "gemma3_text",  # Gemma-3-270m, in the spelling of a later transformers 4
        {
            **{key: value for key, value in _GEMMA3_1B.items() if key != "sliding_window_pattern"},
            "_sliding_window_pattern": 6,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "layer_types": ([*["sliding_attention"] * 5, "full_attention"]) * 3,
            "num_hidden_layers": 18,
            "use_bidirectional_attention": False,
        },
        268_098_176,
    ),
    ("mistral", _MISTRAL, 7_241_732_096),
    (
        "mistral",  # Mistral-Nemo
        {
            **_MISTRAL,
            "head_dim": 128,
            "hidden_size": 5120,
            "max_position_embeddings": 131072,
            "num_hidden_layers": 40,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "vocab_size": 131072,
        },
        12_247_782_400,
    ),
    ("mixtral", _MIXTRAL, 46_702_792_704),
    ("qwen2", _QWEN2_7B, 7_615_616_512),
    (
        "qwen2",  # Qwen2.5-0.5B
        {
            **_QWEN2_7B,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
        494_032_768,
    ),
    ("qwen3_moe", _QWEN3_30B, 30_532_122_624),
    (
        "qwen3_moe",  # Qwen3-235B-A22B
        {
            **_QWEN3_30B,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "max_window_layers": 94,
            "moe_intermediate_size": 1536,
            "num_attention_heads": 64,
            "num_hidden_layers": 94,
        },
        235_093_634_560,
    ),
    ("smollm3", _SMOLLM3, 3_075_098_624),
    ("olmo2", _OLMO2_7B, 7_298_617_344),
    ("deepseek_v3", _DEEPSEEK_V3, 671_026_419_200),
    ("gpt_oss", _GPT_OSS_20B, 20_914_757_184),
    (
        "gpt_oss",  # gpt-oss-120b
        {
            **_GPT_OSS_20B,
            "layer_types": ["sliding_attention", "full_attention"] * 18,
            "num_hidden_layers": 36,
            "num_local_experts": 128,
        },
        116_829_156_672,
    ),
    ("gpt2", _GPT2, 124_439_808),
    ("gpt2", {**_GPT2, "_num_labels": 1, "n_layer": 6}, 81_912_576),  # DistilGPT2
    ("gpt2", {**_GPT2, "n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True}, 1_557_611_200),  # GPT-2 XL
    ("gpt_neox", _PYTHIA_160M, 162_322_944),
    (
        "gpt_neox",  # GPT-NeoX-20B
        {
            **_PYTHIA_160M,
            "attention_probs_dropout_prob": 0,
            "hidden_act": "gelu_fast",
            "hidden_dropout_prob": 0,
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_attention_heads": 64,
            "num_hidden_layers": 44,
            "vocab_size": 50432,
        },
        20_554_567_680,
    ),
    ("gpt_bigcode", _STARCODER, 15_517_456_384),
    (
        "gpt_bigcode",  # StarCoderBase-1B
        {
            **_STARCODER,
            "activation_function": "gelu_pytorch_tanh",
            "n_embd": 2048,
            "n_head": 16,
            "n_inner": 8192,
            "n_layer": 24,
        },
        1_137_207_296,
    ),
]


@pytest.mark.parametrize(("architecture", "config", "parameters"), CASES)
def test_a_released_config_is_read_whole(
    architecture: str, config: dict[str, Any], parameters: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = bombus.load_spec(tmp_path)
    assert architecture_of(spec).name == architecture
    assert sum(map(math.prod, abstract_shapes(spec).values())) == parameters
    assert type(spec).from_hf(spec.to_hf()) == spec


@pytest.mark.parametrize("wanted", [None, "causal_lm", "Gemma3ForCausalLM"])
@pytest.mark.parametrize("named", [["Gemma3ForConditionalGeneration"], None])
def test_a_config_of_text_and_images_is_refused_by_name(named: list[str] | None, wanted: str | None) -> None:
    """Its text part is complete, and is not taken for the whole."""
    config = {"architectures": named, "model_type": "gemma3", "text_config": _GEMMA3_1B, "vision_config": {}}
    with pytest.raises(bombus.SpecError) as raised:
        find_architecture(config, wanted)
    assert str(raised.value) == (
        f"config.json: architecture {named[0] if named else 'gemma3'!r}: is not supported: reads images besides text. "
        "Load a model of text alone, whose class is Gemma3ForCausalLM (its config.json has no 'text_config')"
    )


# (what a release says, what is changed in it, what is said of it)
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        _PHI2,
        {"tie_word_embeddings": True},
        "field 'tie_word_embeddings': is not supported: the head has a bias, and the embedding none "
        "(expected False, found True)",
    ),
    (_PHI3, {"full_attn_mod": 2}, "field 'full_attn_mod': is not supported (expected 1, found 2)"),
    (
        _PHI3,
        {"sliding_window": 0},
        "field 'sliding_window': must be positive, as some layers are of type sliding_attention (found 0)",
    ),
    (
        _GEMMA_2B,
        {"hidden_activation": "relu"},
        "field 'hidden_activation': contradicts hidden_act (expected 'gelu_pytorch_tanh', found 'relu')",
    ),
    (
        _GEMMA_2B,
        {"use_bidirectional_attention": True},
        "field 'use_bidirectional_attention': is not supported (expected False, found True)",
    ),
    (_GEMMA2_2B, {"query_pre_attn_scalar": 0}, "field 'query_pre_attn_scalar': must be positive (found 0)"),
    (_GEMMA2_2B, {"attn_logit_softcapping": -1.0}, "field 'attn_logit_softcapping': must be positive (found -1.0)"),
    (
        _GEMMA3_1B,
        {"attn_logit_softcapping": 50.0},
        "field 'attn_logit_softcapping': is not supported (expected None, found 50.0)",
    ),
    (_GEMMA3_1B, {"sliding_window_pattern": 0}, "field 'sliding_window_pattern': must be positive (found 0)"),
]


@pytest.mark.parametrize(("config", "changes", "text"), REFUSED)
def test_what_is_not_implemented_is_refused(
    config: dict[str, Any], changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(bombus.SpecError) as raised:
        bombus.load_spec(tmp_path)
    assert str(raised.value) == f"config.json: {text}"


def test_what_a_release_leaves_out_is_as_in_transformers() -> None:
    """Types of blocks, by a pattern; the length that LongRoPE starts from; what "gelu" stands for in Gemma."""
    gemma2 = Gemma2Spec.from_hf(_GEMMA2_2B)
    assert [gemma2.window_of(index) for index in range(4)] == [4096, None, 4096, None]
    gemma3 = Gemma3TextSpec.from_hf(_GEMMA3_1B)
    assert [gemma3.window_of(index) for index in range(7)] == [512, 512, 512, 512, 512, None, 512]
    assert [gemma3.rotary_of(index).theta for index in (4, 5, 6)] == [1e4, 1e6, 1e4]
    assert GemmaSpec.from_hf(_GEMMA_2B).activation == "gelu_pytorch_tanh"
    phi4 = {key: value for key, value in _PHI4_MINI.items() if key != "original_max_position_embeddings"}
    rotary = Phi3Spec.from_hf(phi4).rotary_of(0)
    assert rotary is not None
    assert isinstance(rotary.scaling, LongScaling)
    assert rotary.scaling.original_max_positions == 4096
    # sqrt(1 + ln(131072 / 4096) / ln(4096))
    assert rotary.scaling.attention_factor == pytest.approx(1.190238, abs=1e-6)
    assert rotary.size(128) == 96

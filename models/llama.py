"""Llama 1, 2, 3, 3.1 and 3.2 (text), and models that share their code (Meta; transformers' modeling_llama.py).

Touvron et al. 2023, "LLaMA"; Dubey et al. 2024, "The Llama 3 herd of models".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bombus.layers import Attention, Block, GatedFeedForward
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import DecoderSpec, hf


@dataclass(frozen=True, kw_only=True)
class LlamaSpec(DecoderSpec):
    """Llama's numbers. In Llama `attention_bias` also adds a bias to the output projection."""

    only: ClassVar[dict[str, Any]] = {"pretraining_tp": 1}

    mlp_bias: bool = hf("mlp_bias", default=False)


def llama_block(spec: LlamaSpec) -> Block:
    """One decoder block of Llama."""
    return Block(
        self_attention=Attention(
            hidden_size=spec.hidden_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            bias=spec.attention_bias,
            output_bias=spec.attention_bias,
        ),
        ffn=GatedFeedForward(
            spec.hidden_size,
            spec.intermediate_size,
            activation=spec.activation,
            bias=spec.mlp_bias,
        ),
        hidden_size=spec.hidden_size,
        norm_epsilon=spec.norm_epsilon,
    )


MAPPING = ParameterMapping(
    layers=DECODER_LAYERS,
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
    # Buffers that older versions of transformers saved: the rotary frequencies, which the config determines.
    ignored=("*.rotary_emb.inv_freq",),
)

register(
    Architecture(
        name="llama",
        spec=LlamaSpec,
        build=lambda spec: DecoderModel(spec, llama_block),
        mapping=MAPPING,
        classes={
            "LlamaForCausalLM": "causal_lm",
            "LlamaForSequenceClassification": "sequence_classification",
            "LlamaModel": "base",
        },
    )
)

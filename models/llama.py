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

    attention_bias: bool = hf("attention_bias", default=False)
    mlp_bias: bool = hf("mlp_bias", default=False)


def llama_block(spec: LlamaSpec, index: int) -> Block:
    """Decoder block `index` of Llama."""
    return Block(
        self_attention_norm=spec.norm(),
        self_attention=Attention(
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            bias=spec.attention_bias,
            output_bias=spec.attention_bias,
            rotary=spec.rotary_of(index),
        ),
        output_norm=spec.norm(),
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation, bias=spec.mlp_bias),
    )


MAPPING = ParameterMapping(
    layers=DECODER_LAYERS,
    prefix="model.",
    prefixes={"question_answering": "transformer."},
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
            "LlamaForTokenClassification": "token_classification",
            "LlamaForQuestionAnswering": "question_answering",
            "LlamaModel": "base",
        },
    )
)

"""Qwen3, dense (Qwen team 2025, "Qwen3 technical report"; transformers' modeling_qwen3.py).

Against Llama: a head size of its own, and an RMSNorm over each head of query and key.
"""

from __future__ import annotations

from dataclasses import dataclass

from bombus.layers import Attention, Block, GatedFeedForward
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import SwitchedWindowSpec, hf


@dataclass(frozen=True, kw_only=True)
class Qwen3Spec(SwitchedWindowSpec):
    """Qwen3's numbers."""

    attention_bias: bool = hf("attention_bias", default=False)
    head_dim: int = hf("head_dim", default=128)
    max_positions: int = hf("max_position_embeddings", default=32768)


def qwen3_block(spec: Qwen3Spec, index: int) -> Block:
    """Decoder block `index` of Qwen3."""
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
            window=spec.window_of(index),
            query_norm=spec.norm(spec.head_dim),
            key_norm=spec.norm(spec.head_dim),
        ),
        output_norm=spec.norm(),
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
    )


MAPPING = ParameterMapping(
    layers={
        **DECODER_LAYERS,
        "decoder.blocks.{n}.self_attention.query_norm": "model.layers.{n}.self_attn.q_norm",
        "decoder.blocks.{n}.self_attention.key_norm": "model.layers.{n}.self_attn.k_norm",
    },
    prefix="model.",
    prefixes={"question_answering": "transformer."},
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="qwen3",
        spec=Qwen3Spec,
        build=lambda spec: DecoderModel(spec, qwen3_block),
        mapping=MAPPING,
        classes={
            "Qwen3ForCausalLM": "causal_lm",
            "Qwen3ForSequenceClassification": "sequence_classification",
            "Qwen3ForTokenClassification": "token_classification",
            "Qwen3ForQuestionAnswering": "question_answering",
            "Qwen3Model": "base",
        },
    )
)

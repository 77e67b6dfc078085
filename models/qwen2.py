"""Qwen2 and Qwen2.5, dense (Qwen team 2024, "Qwen2 technical report"; transformers' modeling_qwen2.py).

Against Llama: query, key and value always have a bias and the output has none, and blocks may see a window.
"""

from __future__ import annotations

from dataclasses import dataclass

from bombus.layers import Attention, Block, GatedFeedForward
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import SwitchedWindowSpec, hf


@dataclass(frozen=True, kw_only=True)
class Qwen2Spec(SwitchedWindowSpec):
    """Qwen2's numbers."""

    num_kv_heads: int = hf("num_key_value_heads", default=32)
    max_positions: int = hf("max_position_embeddings", default=32768)


def qwen2_block(spec: Qwen2Spec, index: int) -> Block:
    """Decoder block `index` of Qwen2."""
    return Block(
        self_attention_norm=spec.norm(),
        self_attention=Attention(
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            bias=True,
            rotary=spec.rotary_of(index),
            window=spec.window_of(index),
        ),
        output_norm=spec.norm(),
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
    )


MAPPING = ParameterMapping(
    layers=DECODER_LAYERS,
    prefix="model.",
    prefixes={"question_answering": "transformer."},
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="qwen2",
        spec=Qwen2Spec,
        build=lambda spec: DecoderModel(spec, qwen2_block),
        mapping=MAPPING,
        classes={
            "Qwen2ForCausalLM": "causal_lm",
            "Qwen2ForSequenceClassification": "sequence_classification",
            "Qwen2ForTokenClassification": "token_classification",
            "Qwen2ForQuestionAnswering": "question_answering",
            "Qwen2Model": "base",
        },
    )
)

"""OLMo 2 (Team OLMo 2025, "2 OLMo 2 Furious"; transformers' modeling_olmo2.py).

Against Llama: attention and feed-forward read the stream as it is, and what they return is normed; an RMSNorm over
all heads of query, and one over all of key.
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
class Olmo2Spec(DecoderSpec):
    """OLMo 2's numbers. `attention_bias` also adds a bias to the output projection."""

    # Heads are rotated whole.
    only: ClassVar[dict[str, Any]] = {"partial_rotary_factor": 1.0}

    norm_epsilon: float = hf("rms_norm_eps", default=1e-5)
    attention_bias: bool = hf("attention_bias", default=False)


def olmo2_block(spec: Olmo2Spec, index: int) -> Block:
    """Decoder block `index` of OLMo 2."""
    return Block(
        self_attention=Attention(
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            bias=spec.attention_bias,
            output_bias=spec.attention_bias,
            rotary=spec.rotary_of(index),
            query_norm=spec.norm(spec.num_heads * spec.head_dim),
            key_norm=spec.norm(spec.num_kv_heads * spec.head_dim),
            norm_over="all",
        ),
        self_attention_output_norm=spec.norm(),
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
        ffn_output_norm=spec.norm(),
    )


MAPPING = ParameterMapping(
    layers={
        **DECODER_LAYERS,
        "decoder.blocks.{n}.self_attention.query_norm": "model.layers.{n}.self_attn.q_norm",
        "decoder.blocks.{n}.self_attention.key_norm": "model.layers.{n}.self_attn.k_norm",
        "decoder.blocks.{n}.self_attention_output_norm": "model.layers.{n}.post_attention_layernorm",
        "decoder.blocks.{n}.ffn_output_norm": "model.layers.{n}.post_feedforward_layernorm",
    },
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="olmo2",
        spec=Olmo2Spec,
        build=lambda spec: DecoderModel(spec, olmo2_block),
        mapping=MAPPING,
        classes={
            "Olmo2ForCausalLM": "causal_lm",
            "Olmo2ForSequenceClassification": "sequence_classification",
            "Olmo2Model": "base",
        },
    )
)

"""Qwen3, dense (Qwen team 2025, "Qwen3 technical report"; transformers' modeling_qwen3.py).

Against Llama: a head size of its own, and an RMSNorm over each head of query and key.
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
class Qwen3Spec(DecoderSpec):
    """Qwen3's numbers. Sliding windows are refused: no released dense Qwen3 switches them on."""

    only: ClassVar[dict[str, Any]] = {"use_sliding_window": False}
    # They say where windows would be, if `use_sliding_window` were set.
    unused: ClassVar[frozenset[str]] = frozenset({"sliding_window", "max_window_layers", "layer_types"})

    head_dim: int = hf("head_dim", default=128)
    max_positions: int = hf("max_position_embeddings", default=32768)


def qwen3_block(spec: Qwen3Spec) -> Block:
    """One decoder block of Qwen3."""
    return Block(
        self_attention=Attention(
            hidden_size=spec.hidden_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            bias=spec.attention_bias,
            output_bias=spec.attention_bias,
            head_norm_epsilon=spec.norm_epsilon,
        ),
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
        hidden_size=spec.hidden_size,
        norm_epsilon=spec.norm_epsilon,
    )


MAPPING = ParameterMapping(
    layers={
        **DECODER_LAYERS,
        "decoder.blocks.{n}.self_attention.query_norm": "model.layers.{n}.self_attn.q_norm",
        "decoder.blocks.{n}.self_attention.key_norm": "model.layers.{n}.self_attn.k_norm",
    },
    prefix="model.",
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
            "Qwen3Model": "base",
        },
    )
)

"""Mistral 7B, Nemo and Small (text) (Jiang et al. 2023, "Mistral 7B"; transformers' modeling_mistral.py).

Against Llama: no biases, and all blocks see a window if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bombus.layers import Attention, Block, GatedFeedForward
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import WindowedSpec, hf


@dataclass(frozen=True, kw_only=True)
class MistralSpec(WindowedSpec):
    """Mistral's numbers."""

    num_kv_heads: int = hf("num_key_value_heads", default=8)
    max_positions: int = hf("max_position_embeddings", default=131072)
    sliding_window: int | None = hf("sliding_window", default=4096)
    # All of one type, which the window says: transformers reads none.
    layer_types: tuple[str, ...] = field(init=False, default=())


def mistral_block(spec: MistralSpec, index: int) -> Block:
    """Decoder block `index` of Mistral."""
    return Block(
        self_attention_norm=spec.norm(),
        self_attention=Attention(
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            rotary=spec.rotary_of(index),
            window=spec.window_of(index),
        ),
        output_norm=spec.norm(),
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
    )


MAPPING = ParameterMapping(
    layers=DECODER_LAYERS,
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="mistral",
        spec=MistralSpec,
        build=lambda spec: DecoderModel(spec, mistral_block),
        mapping=MAPPING,
        classes={
            "MistralForCausalLM": "causal_lm",
            "MistralForSequenceClassification": "sequence_classification",
            "MistralForTokenClassification": "token_classification",
            "MistralForQuestionAnswering": "question_answering",
            "MistralModel": "base",
        },
    )
)

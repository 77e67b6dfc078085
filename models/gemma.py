"""Gemma (Gemma team 2024, "Gemma: open models based on Gemini research"; transformers' modeling_gemma.py).

Against Llama: norms multiply by 1 + scale, embedded tokens by sqrt(hidden size), and the gate is a GELU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bombus.layers import Attention, Block, GatedFeedForward, RMSNorm
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import DecoderSpec, hf
from bombus.policies.errors import Problem

_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class GemmaSpec(DecoderSpec):
    """Gemma's numbers. Released configs say "gelu" where the model was trained with its tanh approximation."""

    only: ClassVar[dict[str, Any]] = {"use_bidirectional_attention": False}

    num_kv_heads: int = hf("num_key_value_heads", default=16)
    head_dim: int = hf("head_dim", default=256)
    activation: str = hf("hidden_act", default=_TANH)
    # A later spelling of the same, which says what "gelu" stands for.
    hidden_activation: str | None = hf("hidden_activation", default=None)
    max_positions: int = hf("max_position_embeddings", default=8192)
    tie_word_embeddings: bool = hf("tie_word_embeddings", default=True)
    attention_bias: bool = hf("attention_bias", default=False)

    def __post_init__(self) -> None:
        """Give the activation the name of what it computes, besides what every decoder does."""
        if self.activation == "gelu":
            object.__setattr__(self, "activation", _TANH)
        super().__post_init__()

    def norm(self, size: int | None = None) -> RMSNorm:
        """A norm that multiplies by 1 + scale."""
        return RMSNorm(size or self.hidden_size, epsilon=self.norm_epsilon, plus_one=True)

    @property
    def embedding_scale(self) -> float:
        """The square root of the hidden size."""
        return float(self.hidden_size**0.5)

    def _mismatches(self) -> list[Problem]:
        problems = super()._mismatches()
        if self.hidden_activation not in (None, self.activation):
            problems.append(
                Problem(
                    subject="field 'hidden_activation'",
                    message="contradicts hidden_act",
                    expected=repr(self.activation),
                    found=repr(self.hidden_activation),
                )
            )
        return problems


def gemma_block(spec: GemmaSpec, index: int) -> Block:
    """Decoder block `index` of Gemma."""
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
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
    )


MAPPING = ParameterMapping(
    layers=DECODER_LAYERS,
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="gemma",
        spec=GemmaSpec,
        build=lambda spec: DecoderModel(spec, gemma_block),
        mapping=MAPPING,
        classes={
            "GemmaForCausalLM": "causal_lm",
            "GemmaForSequenceClassification": "sequence_classification",
            "GemmaForTokenClassification": "token_classification",
            "GemmaModel": "base",
        },
    )
)

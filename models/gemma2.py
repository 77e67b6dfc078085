"""Gemma 2 (Gemma team 2024, "Gemma 2: improving open language models at a practical size"; modeling_gemma2.py).

Against Gemma: norms before and after attention and feed-forward, soft-capped scores and logits, a scale of the scores
that the config says, and a window in every other block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bombus.layers import Attention, Block, GatedFeedForward, RMSNorm
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import WindowedSpec, hf
from bombus.policies.errors import Problem


@dataclass(frozen=True, kw_only=True)
class Gemma2Spec(WindowedSpec):
    """Gemma 2's numbers. Scores are divided by the square root of `query_scale`."""

    only: ClassVar[dict[str, Any]] = {"use_bidirectional_attention": False}
    # Released configs have these as well: the activation and the window by names that transformers does not read, and
    # the kind of its cache.
    unused: ClassVar[frozenset[str]] = frozenset({"hidden_act", "sliding_window_size", "cache_implementation"})

    num_kv_heads: int = hf("num_key_value_heads", default=4)
    head_dim: int = hf("head_dim", default=256)
    activation: str = hf("hidden_activation", default="gelu_pytorch_tanh")
    max_positions: int = hf("max_position_embeddings", default=8192)
    tie_word_embeddings: bool = hf("tie_word_embeddings", default=True)
    attention_bias: bool = hf("attention_bias", default=False)
    sliding_window: int | None = hf("sliding_window", default=4096)
    query_scale: int = hf("query_pre_attn_scalar", default=256)
    attention_softcap: float | None = hf("attn_logit_softcapping", default=50.0)
    logit_softcap: float | None = hf("final_logit_softcapping", default=30.0)

    def default_layer_types(self) -> tuple[str, ...]:
        """Windows in the first block and in every second one from there."""
        return tuple("full_attention" if index % 2 else "sliding_attention" for index in range(self.num_blocks))

    def norm(self, size: int | None = None) -> RMSNorm:
        """A norm that multiplies by 1 + scale."""
        return RMSNorm(size or self.hidden_size, epsilon=self.norm_epsilon, plus_one=True)

    @property
    def embedding_scale(self) -> float:
        """The square root of the hidden size."""
        return float(self.hidden_size**0.5)

    def _mismatches(self) -> list[Problem]:
        return super()._mismatches() + [
            Problem(subject=f"field {self.key_of(name)!r}", message="must be positive", found=str(value))
            for name in ("query_scale", "attention_softcap", "logit_softcap")
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf")
        ]


def gemma2_block(spec: Gemma2Spec, index: int, *, head_norms: bool = False) -> Block:
    """Decoder block `index` of Gemma 2; with `head_norms` over each head of query and key."""
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
            softcap=spec.attention_softcap,
            scale=float(spec.query_scale**-0.5),
            query_norm=spec.norm(spec.head_dim) if head_norms else None,
            key_norm=spec.norm(spec.head_dim) if head_norms else None,
        ),
        self_attention_output_norm=spec.norm(),
        output_norm=spec.norm(),
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
        ffn_output_norm=spec.norm(),
    )


LAYERS = {
    **DECODER_LAYERS,
    "decoder.blocks.{n}.self_attention_output_norm": "model.layers.{n}.post_attention_layernorm",
    "decoder.blocks.{n}.output_norm": "model.layers.{n}.pre_feedforward_layernorm",
    "decoder.blocks.{n}.ffn_output_norm": "model.layers.{n}.post_feedforward_layernorm",
}
MAPPING = ParameterMapping(
    layers=LAYERS,
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="gemma2",
        spec=Gemma2Spec,
        build=lambda spec: DecoderModel(spec, gemma2_block),
        mapping=MAPPING,
        classes={
            "Gemma2ForCausalLM": "causal_lm",
            "Gemma2ForSequenceClassification": "sequence_classification",
            "Gemma2ForTokenClassification": "token_classification",
            "Gemma2Model": "base",
        },
    )
)

"""Phi-1, Phi-1.5 and Phi-2 (Microsoft; transformers' modeling_phi.py).

Gunasekar et al. 2023, "Textbooks are all you need"; Li et al. 2023, "Textbooks are all you need II".
Against Llama: LayerNorm, one for attention and feed-forward, which run side by side; a feed-forward without a gate;
biases everywhere; and only the first part of each head is rotated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bombus.layers import Attention, Block, FeedForward, LayerNorm
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import DecoderSpec, hf
from bombus.policies.errors import Problem


@dataclass(frozen=True, kw_only=True)
class PhiSpec(DecoderSpec):
    """Phi's numbers. `query_key_norm` puts a LayerNorm over each head of query and key."""

    fraction_keys: ClassVar[tuple[str, ...]] = ("partial_rotary_factor",)
    default_fraction: ClassVar[float] = 0.5

    activation: str = hf("hidden_act", default="gelu_new")
    norm_epsilon: float = hf("layer_norm_eps", default=1e-5)
    query_key_norm: bool = hf("qk_layernorm", default=False)

    def norm(self, size: int | None = None) -> LayerNorm:
        """A LayerNorm with bias."""
        return LayerNorm(size or self.hidden_size, epsilon=self.norm_epsilon)

    @property
    def head_bias(self) -> bool:
        """The language modeling head has one."""
        return True

    def _mismatches(self) -> list[Problem]:
        problems = super()._mismatches()
        if self.tie_word_embeddings:
            message = "is not supported: the head has a bias, and the embedding none"
            problems.append(
                Problem(subject="field 'tie_word_embeddings'", message=message, expected="False", found="True")
            )
        return problems


def phi_block(spec: PhiSpec, index: int) -> Block:
    """Decoder block `index` of Phi."""
    return Block(
        self_attention_norm=spec.norm(),
        self_attention=Attention(
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            bias=True,
            output_bias=True,
            rotary=spec.rotary_of(index),
            query_norm=spec.norm(spec.head_dim) if spec.query_key_norm else None,
            key_norm=spec.norm(spec.head_dim) if spec.query_key_norm else None,
        ),
        ffn=FeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
        parallel=True,
    )


MAPPING = ParameterMapping(
    layers={
        **DECODER_LAYERS,
        "decoder.blocks.{n}.self_attention.query_norm": "model.layers.{n}.self_attn.q_layernorm",
        "decoder.blocks.{n}.self_attention.key_norm": "model.layers.{n}.self_attn.k_layernorm",
        "decoder.blocks.{n}.self_attention.output": "model.layers.{n}.self_attn.dense",
        "decoder.blocks.{n}.ffn.intermediate": "model.layers.{n}.mlp.fc1",
        "decoder.blocks.{n}.ffn.output": "model.layers.{n}.mlp.fc2",
        "output_norm": "model.final_layernorm",
    },
    prefix="model.",
)

register(
    Architecture(
        name="phi",
        spec=PhiSpec,
        build=lambda spec: DecoderModel(spec, phi_block),
        mapping=MAPPING,
        classes={
            "PhiForCausalLM": "causal_lm",
            "PhiForSequenceClassification": "sequence_classification",
            "PhiForTokenClassification": "token_classification",
            "PhiModel": "base",
        },
    )
)

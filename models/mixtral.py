"""Mixtral 8x7B and 8x22B (Jiang et al. 2024, "Mixtral of experts"; transformers' modeling_mixtral.py).

Against Mistral: every feed-forward is a mixture of experts. A row goes to the best `num_experts_per_tok` of a softmax
over all, whose weights then add up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from bombus.layers import Attention, Block, MixtureFeedForward, Router, Routing
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import WindowedSpec, hf
from bombus.policies.errors import Problem


@dataclass(frozen=True, kw_only=True)
class MixtralSpec(WindowedSpec):
    """Mixtral's numbers. `intermediate_size` is that of one expert."""

    default_theta: ClassVar[float] = 1_000_000.0

    num_kv_heads: int = hf("num_key_value_heads", default=8)
    max_positions: int = hf("max_position_embeddings", default=131072)
    norm_epsilon: float = hf("rms_norm_eps", default=1e-5)
    num_experts: int = hf("num_local_experts", "num_experts", default=8)
    num_experts_per_token: int = hf("num_experts_per_tok", default=2)
    # All of one type, which the window says: transformers reads none.
    layer_types: tuple[str, ...] = field(init=False, default=())

    def _mismatches(self) -> list[Problem]:
        return super()._mismatches() + [
            Problem(subject=f"field {self.key_of(name)!r}", message="must be positive", found=str(getattr(self, name)))
            for name in ("num_experts", "num_experts_per_token")
            if getattr(self, name) < 1
        ]


def mixtral_block(spec: MixtralSpec, index: int) -> Block:
    """Decoder block `index` of Mixtral."""
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
        ffn=MixtureFeedForward(
            spec.hidden_size,
            spec.intermediate_size,
            spec.num_experts,
            router=Router(spec.hidden_size, spec.num_experts, Routing(top_k=spec.num_experts_per_token)),
            activation=spec.activation,
        ),
    )


MAPPING = ParameterMapping(
    layers={
        **DECODER_LAYERS,
        "decoder.blocks.{n}.ffn.router": "model.layers.{n}.block_sparse_moe.gate",
        "decoder.blocks.{n}.ffn.experts.gate": "model.layers.{n}.block_sparse_moe.experts.{e}.w1",
        "decoder.blocks.{n}.ffn.experts.intermediate": "model.layers.{n}.block_sparse_moe.experts.{e}.w3",
        "decoder.blocks.{n}.ffn.experts.output": "model.layers.{n}.block_sparse_moe.experts.{e}.w2",
    },
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="mixtral",
        spec=MixtralSpec,
        build=lambda spec: DecoderModel(spec, mixtral_block),
        mapping=MAPPING,
        classes={
            "MixtralForCausalLM": "causal_lm",
            "MixtralForSequenceClassification": "sequence_classification",
            "MixtralForTokenClassification": "token_classification",
            "MixtralForQuestionAnswering": "question_answering",
            "MixtralModel": "base",
        },
    )
)

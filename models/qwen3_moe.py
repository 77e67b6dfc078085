"""Qwen3-MoE, such as 30B-A3B (Qwen team 2025, "Qwen3 technical report"; transformers' modeling_qwen3_moe.py).

Against Qwen3: feed-forwards are mixtures of experts, but for those of some blocks. A row goes to the best
`num_experts_per_tok` of a softmax over all. With `use_sliding_window` all blocks see a window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from bombus.layers import Attention, Block, GatedFeedForward, MixtureFeedForward, Router, Routing
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import SwitchedWindowSpec, hf
from bombus.policies.errors import Problem


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeSpec(SwitchedWindowSpec):
    """Qwen3-MoE's numbers.

    `intermediate_size` is that of the blocks without experts: those of `mlp_only_layers`, and all but every
    `decoder_sparse_step`-th.
    """

    # Released files have it, and transformers' Qwen3-MoE does not read it.
    unused: ClassVar[frozenset[str]] = frozenset({"max_window_layers"})

    num_kv_heads: int = hf("num_key_value_heads", default=4)
    max_positions: int = hf("max_position_embeddings", default=32768)
    attention_bias: bool = hf("attention_bias", default=False)
    moe_intermediate_size: int = hf("moe_intermediate_size", default=768)
    num_experts: int = hf("num_experts", "num_local_experts", default=128)
    num_experts_per_token: int = hf("num_experts_per_tok", default=8)
    norm_topk_prob: bool = hf("norm_topk_prob", default=False)
    decoder_sparse_step: int = hf("decoder_sparse_step", default=1)
    mlp_only_layers: tuple[int, ...] = hf("mlp_only_layers", default=())
    # The window, where there is one, is that of all blocks.
    max_window_layers: int = field(init=False, default=0)
    layer_types: tuple[str, ...] = field(init=False, default=())

    def is_mixture(self, index: int) -> bool:
        """Whether block `index` has experts."""
        return index not in self.mlp_only_layers and (index + 1) % self.decoder_sparse_step == 0

    def _mismatches(self) -> list[Problem]:
        return super()._mismatches() + [
            Problem(subject=f"field {self.key_of(name)!r}", message="must be positive", found=str(getattr(self, name)))
            for name in ("moe_intermediate_size", "num_experts", "num_experts_per_token", "decoder_sparse_step")
            if getattr(self, name) < 1
        ]


def qwen3_moe_block(spec: Qwen3MoeSpec, index: int) -> Block:
    """Decoder block `index` of Qwen3-MoE."""
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
        ffn=_mixture(spec)
        if spec.is_mixture(index)
        else GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation),
    )


def _mixture(spec: Qwen3MoeSpec) -> MixtureFeedForward:
    routing = Routing(top_k=spec.num_experts_per_token, normalized=spec.norm_topk_prob)
    return MixtureFeedForward(
        spec.hidden_size,
        spec.moe_intermediate_size,
        spec.num_experts,
        router=Router(spec.hidden_size, spec.num_experts, routing),
        activation=spec.activation,
    )


MAPPING = ParameterMapping(
    layers={
        **DECODER_LAYERS,
        "decoder.blocks.{n}.self_attention.query_norm": "model.layers.{n}.self_attn.q_norm",
        "decoder.blocks.{n}.self_attention.key_norm": "model.layers.{n}.self_attn.k_norm",
        "decoder.blocks.{n}.ffn.router": "model.layers.{n}.mlp.gate",
        "decoder.blocks.{n}.ffn.experts.gate": "model.layers.{n}.mlp.experts.{e}.gate_proj",
        "decoder.blocks.{n}.ffn.experts.intermediate": "model.layers.{n}.mlp.experts.{e}.up_proj",
        "decoder.blocks.{n}.ffn.experts.output": "model.layers.{n}.mlp.experts.{e}.down_proj",
    },
    prefix="model.",
    prefixes={"question_answering": "transformer."},
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="qwen3_moe",
        spec=Qwen3MoeSpec,
        build=lambda spec: DecoderModel(spec, qwen3_moe_block),
        mapping=MAPPING,
        classes={
            "Qwen3MoeForCausalLM": "causal_lm",
            "Qwen3MoeForSequenceClassification": "sequence_classification",
            "Qwen3MoeForTokenClassification": "token_classification",
            "Qwen3MoeForQuestionAnswering": "question_answering",
            "Qwen3MoeModel": "base",
        },
    )
)

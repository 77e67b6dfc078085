"""DeepSeek-V3 and R1, and models that share their code, such as Kimi K2 and Moonlight (DeepSeek-AI 2024, "DeepSeek-V3
technical report"; transformers' modeling_deepseek_v3.py).

Against Llama: latent attention, whose cache holds one small vector per token; after the first blocks a mixture of
experts with shared ones, routed by sigmoids within the best groups. Blocks that predict further tokens are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from bombus.layers import (
    Block,
    CacheShape,
    GatedFeedForward,
    LatentAttention,
    MixtureFeedForward,
    Rotary,
    Router,
    Routing,
    YarnScaling,
)
from bombus.layers.rotary_scaling import yarn_magnitude
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import DecoderSpec, hf
from bombus.policies.errors import Problem, SpecError

# The epsilon of the norms inside attention, whatever that of the others is.
LATENT_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Spec(DecoderSpec):
    """DeepSeek-V3's numbers. A head of a query is `nope_dim` without and `rope_dim` with rotary positions."""

    only: ClassVar[dict[str, Any]] = {
        "pretraining_tp": 1,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
    # Over how many devices the experts are spread; losses of training; and what follows from others, see `derived`.
    unused: ClassVar[frozenset[str]] = frozenset(
        {"ep_size", "seq_aux", "aux_loss_alpha", "num_key_value_heads", "head_dim", "qk_head_dim"}
    )

    num_kv_heads: int = field(init=False, default=0)
    head_dim: int = field(init=False, default=0)
    rotary: Rotary = field(default_factory=lambda: Rotary(theta=10000.0))
    max_positions: int = hf("max_position_embeddings", default=4096)
    attention_bias: bool = hf("attention_bias", default=False)
    query_rank: int | None = hf("q_lora_rank", default=1536)
    key_value_rank: int = hf("kv_lora_rank", default=512)
    nope_dim: int = hf("qk_nope_head_dim", default=128)
    rope_dim: int = hf("qk_rope_head_dim", default=64)
    value_dim: int = hf("v_head_dim", default=128)
    rope_interleave: bool = hf("rope_interleave", default=True)
    moe_intermediate_size: int = hf("moe_intermediate_size", default=2048)
    num_dense_blocks: int = hf("first_k_dense_replace", default=3)
    num_experts: int = hf("n_routed_experts", "num_local_experts", default=256)
    num_shared_experts: int = hf("n_shared_experts", default=1)
    num_experts_per_token: int = hf("num_experts_per_tok", default=8)
    num_groups: int = hf("n_group", default=8)
    num_groups_per_token: int = hf("topk_group", default=4)
    norm_topk_prob: bool = hf("norm_topk_prob", default=True)
    routed_scaling_factor: float = hf("routed_scaling_factor", default=2.5)
    # Blocks of the checkpoint that predict further tokens, for speculative decoding alone.
    num_further_blocks: int = hf("num_nextn_predict_layers", "num_mtp_layers", default=1)

    def __post_init__(self) -> None:
        """What the rotary positions turn is a head of its own, besides what every decoder does."""
        object.__setattr__(self, "head_dim", self.rope_dim)
        super().__post_init__()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, head: str = "causal_lm", strict: bool = True) -> Self:
        """As for every spec; and what follows from others must, where config.json has it."""
        spec = super().from_hf(config, head=head, strict=strict)
        problems = [
            Problem(
                subject=f"field {key!r}",
                message="does not fit the other sizes",
                expected=str(expected),
                found=repr(config[key]),
            )
            for key, expected in spec.derived.items()
            if config.get(key) not in (None, expected)
        ]
        if problems:
            raise SpecError(problems, where="config.json")
        return spec

    def to_hf(self) -> dict[str, Any]:
        """As for every spec, with what follows from others: transformers' defaults do not."""
        return super().to_hf() | self.derived

    @property
    def derived(self) -> dict[str, int]:
        """The keys of config.json that follow from others. All heads share one latent vector."""
        return {
            "num_key_value_heads": self.num_heads,
            "head_dim": self.rope_dim,
            "qk_head_dim": self.nope_dim + self.rope_dim,
        }

    @property
    def cache_shape(self) -> CacheShape:
        """The normalised latent and the rotated key that all heads share; the latent is the values as well."""
        return CacheShape(num_kv_heads=1, key_dim=self.key_value_rank + self.rope_dim, value_dim=0)

    @property
    def attention_scale(self) -> float:
        """What the scores are multiplied by; YaRN's magnitude is in it where `mscale_all_dim` is given."""
        scaling, magnitude = self.rotary.scaling, 1.0
        if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim:
            magnitude = yarn_magnitude(scaling.factor, scaling.mscale_all_dim)
        return (self.nope_dim + self.rope_dim) ** -0.5 * magnitude**2

    @property
    def routing(self) -> Routing:
        """How a token's experts are chosen."""
        return Routing(
            top_k=self.num_experts_per_token,
            scoring="sigmoid",
            normalized=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
            groups=self.num_groups,
            top_groups=self.num_groups_per_token,
        )

    def _mismatches(self) -> list[Problem]:
        return super()._mismatches() + [
            Problem(subject=f"field {self.key_of(name)!r}", message="must be positive", found=str(value))
            for name in _SIZES
            if (value := getattr(self, name)) is not None and value < 1
        ]


_SIZES = (
    *("query_rank", "key_value_rank", "nope_dim", "rope_dim", "value_dim", "moe_intermediate_size"),
    *("num_experts", "num_shared_experts", "num_experts_per_token", "num_groups", "num_groups_per_token"),
)


def deepseek_v3_block(spec: DeepseekV3Spec, index: int) -> Block:
    """Decoder block `index` of DeepSeek-V3."""
    return Block(
        self_attention_norm=spec.norm(),
        self_attention=LatentAttention(
            spec.hidden_size,
            spec.num_heads,
            query_rank=spec.query_rank,
            key_value_rank=spec.key_value_rank,
            nope_dim=spec.nope_dim,
            rope_dim=spec.rope_dim,
            value_dim=spec.value_dim,
            rotary=spec.rotary,
            norm_epsilon=LATENT_EPSILON,
            interleaved=spec.rope_interleave,
            bias=spec.attention_bias,
            scale=spec.attention_scale,
        ),
        output_norm=spec.norm(),
        ffn=_feed_forward(spec, spec.intermediate_size) if index < spec.num_dense_blocks else _mixture(spec),
    )


def _feed_forward(spec: DeepseekV3Spec, size: int) -> GatedFeedForward:
    return GatedFeedForward(spec.hidden_size, size, activation=spec.activation)


def _mixture(spec: DeepseekV3Spec) -> MixtureFeedForward:
    return MixtureFeedForward(
        spec.hidden_size,
        spec.moe_intermediate_size,
        spec.num_experts,
        router=Router(spec.hidden_size, spec.num_experts, spec.routing, selection_bias=True),
        activation=spec.activation,
        shared=_feed_forward(spec, spec.moe_intermediate_size * spec.num_shared_experts),
    )


MAPPING = ParameterMapping(
    layers={
        **DECODER_LAYERS,
        "decoder.blocks.{n}.self_attention.query_down": "model.layers.{n}.self_attn.q_a_proj",
        "decoder.blocks.{n}.self_attention.query_norm": "model.layers.{n}.self_attn.q_a_layernorm",
        "decoder.blocks.{n}.self_attention.query_up": "model.layers.{n}.self_attn.q_b_proj",
        "decoder.blocks.{n}.self_attention.key_value_down": "model.layers.{n}.self_attn.kv_a_proj_with_mqa",
        "decoder.blocks.{n}.self_attention.key_value_norm": "model.layers.{n}.self_attn.kv_a_layernorm",
        "decoder.blocks.{n}.self_attention.key_value_up": "model.layers.{n}.self_attn.kv_b_proj",
        "decoder.blocks.{n}.ffn.router": "model.layers.{n}.mlp.gate",
        "decoder.blocks.{n}.ffn.experts.gate": "model.layers.{n}.mlp.experts.{e}.gate_proj",
        "decoder.blocks.{n}.ffn.experts.intermediate": "model.layers.{n}.mlp.experts.{e}.up_proj",
        "decoder.blocks.{n}.ffn.experts.output": "model.layers.{n}.mlp.experts.{e}.down_proj",
        "decoder.blocks.{n}.ffn.shared.gate": "model.layers.{n}.mlp.shared_experts.gate_proj",
        "decoder.blocks.{n}.ffn.shared.intermediate": "model.layers.{n}.mlp.shared_experts.up_proj",
        "decoder.blocks.{n}.ffn.shared.output": "model.layers.{n}.mlp.shared_experts.down_proj",
    },
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
    ignored=("model.layers.{n}.*", "*.rotary_emb.inv_freq"),
    further_blocks="num_further_blocks",
)

register(
    Architecture(
        name="deepseek_v3",
        spec=DeepseekV3Spec,
        build=lambda spec: DecoderModel(spec, deepseek_v3_block),
        mapping=MAPPING,
        classes={
            "DeepseekV3ForCausalLM": "causal_lm",
            "DeepseekV3ForSequenceClassification": "sequence_classification",
            "DeepseekV3ForTokenClassification": "token_classification",
            "DeepseekV3Model": "base",
        },
    )
)

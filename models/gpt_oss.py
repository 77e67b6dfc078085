"""gpt-oss (OpenAI 2025, "gpt-oss-120b & gpt-oss-20b model card"; transformers' modeling_gpt_oss.py).

Against Llama: every second block sees a window, each head has a sink, all layers have biases, and all feed-forwards
are mixtures of experts with a clamped gate. A released checkpoint holds the experts of a block in MXFP4, in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bombus.layers import Attention, Block, ClampedSwish, MixtureFeedForward, Router, Routing
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping, Theirs, fused
from bombus.models.registry import Architecture, register
from bombus.models.spec import WindowedSpec, hf
from bombus.policies.errors import Problem

_DEFAULT_SCALING: Mapping[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True, kw_only=True)
class GptOssSpec(WindowedSpec):
    """gpt-oss's numbers; `intermediate_size` is that of one expert."""

    # The gate is its own, whatever is named here.
    only: ClassVar[dict[str, Any]] = {"hidden_act": "silu"}
    # The section of the rotary positions says the same.
    unused: ClassVar[frozenset[str]] = frozenset({"initial_context_length"})
    default_theta: ClassVar[float] = 150000.0

    activation: str = "silu"
    num_kv_heads: int = hf("num_key_value_heads", default=8)
    head_dim: int = hf("head_dim", default=64)
    max_positions: int = hf("max_position_embeddings", default=131072)
    norm_epsilon: float = hf("rms_norm_eps", default=1e-5)
    sliding_window: int | None = hf("sliding_window", default=128)
    attention_bias: bool = hf("attention_bias", default=True)
    num_experts: int = hf("num_local_experts", "num_experts", default=128)
    num_experts_per_token: int = hf("num_experts_per_tok", "experts_per_token", default=4)
    swiglu_alpha: float = hf("swiglu_alpha", default=1.702)
    swiglu_limit: float = hf("swiglu_limit", default=7.0)

    def default_layer_types(self) -> tuple[str, ...]:
        """Windows and full attention in turn."""
        kinds = ("sliding_attention", "full_attention")
        return tuple(kinds[index % 2] for index in range(self.num_blocks))

    @property
    def routing(self) -> Routing:
        """How a token's experts are chosen."""
        return Routing(top_k=self.num_experts_per_token, scoring="chosen_softmax")

    @classmethod
    def read_rotary(cls, config: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
        """Stretched as in the released models where the file does not say."""
        if config.get("rope_parameters") is None and not config.get("rope_scaling"):
            config = {**config, "rope_scaling": _DEFAULT_SCALING}
        return super().read_rotary(config, problems)

    def write_rotary(self) -> dict[str, Any]:
        """A file without a section would be read as the default."""
        config = super().write_rotary()
        return {**config, "rope_scaling": config["rope_scaling"] or {"rope_type": "default"}}

    def _mismatches(self) -> list[Problem]:
        return super()._mismatches() + [
            Problem(subject=f"field {self.key_of(name)!r}", message="must be positive", found=str(getattr(self, name)))
            for name in ("num_experts", "num_experts_per_token", "swiglu_limit")
            if not getattr(self, name) > 0
        ]


def gpt_oss_block(spec: GptOssSpec, index: int) -> Block:
    """Decoder block `index` of gpt-oss."""
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
            sinks=True,
        ),
        output_norm=spec.norm(),
        ffn=MixtureFeedForward(
            spec.hidden_size,
            spec.intermediate_size,
            spec.num_experts,
            router=Router(spec.hidden_size, spec.num_experts, spec.routing, bias=True),
            activation=ClampedSwish(limit=spec.swiglu_limit, alpha=spec.swiglu_alpha),
            bias=True,
        ),
    )


MAPPING = ParameterMapping(
    layers={
        **DECODER_LAYERS,
        "decoder.blocks.{n}.self_attention": "model.layers.{n}.self_attn",
        "decoder.blocks.{n}.ffn.router": "model.layers.{n}.mlp.router",
        # Gate and intermediate in turn, output by output.
        **fused(
            "decoder.blocks.{n}.ffn.experts",
            ("gate", "intermediate"),
            "model.layers.{n}.mlp.experts.gate_up_proj",
            chunk=1,
            transposed=True,
            stacked=True,
            bare=True,
        ),
        "decoder.blocks.{n}.ffn.experts.output": Theirs(
            layer="model.layers.{n}.mlp.experts.down_proj", transposed=True, stacked=True, bare=True
        ),
    },
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="gpt_oss",
        spec=GptOssSpec,
        build=lambda spec: DecoderModel(spec, gpt_oss_block),
        mapping=MAPPING,
        classes={
            "GptOssForCausalLM": "causal_lm",
            "GptOssForSequenceClassification": "sequence_classification",
            "GptOssForTokenClassification": "token_classification",
            "GptOssModel": "base",
        },
    )
)

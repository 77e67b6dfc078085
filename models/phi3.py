"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (Microsoft; transformers' modeling_phi3.py).

Abdin et al. 2024, "Phi-3 technical report" and "Phi-4 technical report"; Ding et al. 2024, "LongRoPE".
Against Llama: query, key and value are one layer, and so are gate and intermediate; all blocks may see a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bombus.layers import Attention, Block, GatedFeedForward
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping, fused
from bombus.models.registry import Architecture, register
from bombus.models.spec import WindowedSpec, hf
from bombus.policies.errors import Problem

_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class Phi3Spec(WindowedSpec):
    """Phi-3's numbers. All blocks see the window, if there is one: a config has no `layer_types`."""

    # Phi-4-mini's config names these two; 1 stands for no change.
    only: ClassVar[dict[str, Any]] = {"full_attn_mod": 1, "interpolate_factor": 1}
    fraction_keys: ClassVar[tuple[str, ...]] = ("partial_rotary_factor",)

    max_positions: int = hf("max_position_embeddings", default=4096)
    norm_epsilon: float = hf("rms_norm_eps", default=1e-5)
    layer_types: tuple[str, ...] = field(default=(), init=False)

    @classmethod
    def read_rotary(cls, config: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
        """As for every decoder, with the original length that Phi-3's config class supplies."""
        sections = [config[key] for key in ("rope_scaling", "rope_parameters") if isinstance(config.get(key), Mapping)]
        if config.get(_ORIGINAL) is None and not any(section.get(_ORIGINAL) for section in sections):
            config = {**config, _ORIGINAL: 4096}
        return super().read_rotary(config, problems)


def phi3_block(spec: Phi3Spec, index: int) -> Block:
    """Decoder block `index` of Phi-3."""
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
    layers={
        **DECODER_LAYERS,
        **fused(
            "decoder.blocks.{n}.self_attention",
            ("query", "key", "value"),
            "model.layers.{n}.self_attn.qkv_proj",
        ),
        **fused("decoder.blocks.{n}.ffn", ("gate", "intermediate"), "model.layers.{n}.mlp.gate_up_proj"),
    },
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="phi3",
        spec=Phi3Spec,
        build=lambda spec: DecoderModel(spec, phi3_block),
        mapping=MAPPING,
        classes={
            "Phi3ForCausalLM": "causal_lm",
            "Phi3ForSequenceClassification": "sequence_classification",
            "Phi3ForTokenClassification": "token_classification",
            "Phi3Model": "base",
        },
    )
)

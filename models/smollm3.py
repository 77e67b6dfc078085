"""SmolLM3 (Hugging Face 2025; transformers' modeling_smollm3.py).

Against Llama: some blocks have no rotary positions (Yang et al. 2025, "Rope to Nope and back again"), and these may
see a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bombus.layers import Attention, Block, GatedFeedForward, Rotary
from bombus.models.decoder import DECODER_LAYERS, DecoderModel
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, register
from bombus.models.spec import WindowedSpec, hf
from bombus.policies.errors import Problem


@dataclass(frozen=True, kw_only=True)
class SmolLM3Spec(WindowedSpec):
    """SmolLM3's numbers. `no_rope_layers` has a 1 for every block with rotary positions, in spite of its name."""

    default_theta: ClassVar[float] = 2_000_000.0
    # Heads are rotated whole.
    only: ClassVar[dict[str, Any]] = {"partial_rotary_factor": 1.0}
    # Released files have them, and transformers' SmolLM3 reads neither.
    unused: ClassVar[frozenset[str]] = frozenset({"max_window_layers", "pretraining_tp"})

    num_kv_heads: int = hf("num_key_value_heads", default=4)
    max_positions: int = hf("max_position_embeddings", default=32768)
    tie_word_embeddings: bool = hf("tie_word_embeddings", default=True)
    attention_bias: bool = hf("attention_bias", default=False)
    mlp_bias: bool = hf("mlp_bias", default=False)
    use_sliding_window: bool = hf("use_sliding_window", default=False)
    no_rope_layer_interval: int = hf("no_rope_layer_interval", default=4)
    no_rope_layers: tuple[int, ...] = hf("no_rope_layers", default=())

    def __post_init__(self) -> None:
        """Without a list, every `no_rope_layer_interval`-th block is without rotary positions."""
        if not self.no_rope_layers and self.no_rope_layer_interval:
            turned = (int((index + 1) % self.no_rope_layer_interval != 0) for index in range(self.num_blocks))
            object.__setattr__(self, "no_rope_layers", tuple(turned))
        super().__post_init__()

    def default_layer_types(self) -> tuple[str, ...]:
        """A window where there are no rotary positions, if it is switched on."""
        windows = self.use_sliding_window and self.sliding_window is not None
        types = {0: "sliding_attention" if windows else "full_attention"}
        return tuple(types.get(turned, "full_attention") for turned in self.no_rope_layers[: self.num_blocks])

    def rotary_of(self, index: int) -> Rotary | None:
        """None in blocks that `no_rope_layers` has a 0 for."""
        return self.rotary if self.no_rope_layers[index] else None

    def _mismatches(self) -> list[Problem]:
        if len(self.no_rope_layers) >= self.num_blocks:
            return super()._mismatches()
        return [
            Problem(
                subject="field 'no_rope_layers'",
                message="must say for every layer whether positions are rotated",
                expected=f"at least {self.num_blocks} numbers",
                found=str(len(self.no_rope_layers)),
                remedy="or leave it out, with a positive no_rope_layer_interval",
            )
        ]


def smollm3_block(spec: SmolLM3Spec, index: int) -> Block:
    """Decoder block `index` of SmolLM3."""
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
        ),
        output_norm=spec.norm(),
        ffn=GatedFeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation, bias=spec.mlp_bias),
    )


MAPPING = ParameterMapping(
    layers=DECODER_LAYERS,
    prefix="model.",
    prefixes={"question_answering": "transformer."},
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="smollm3",
        spec=SmolLM3Spec,
        build=lambda spec: DecoderModel(spec, smollm3_block),
        mapping=MAPPING,
        classes={
            "SmolLM3ForCausalLM": "causal_lm",
            "SmolLM3ForSequenceClassification": "sequence_classification",
            "SmolLM3ForTokenClassification": "token_classification",
            "SmolLM3ForQuestionAnswering": "question_answering",
            "SmolLM3Model": "base",
        },
    )
)

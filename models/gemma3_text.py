"""Gemma 3, text alone (Gemma team 2025, "Gemma 3 technical report"; transformers' modeling_gemma3.py).

Against Gemma 2: an RMSNorm over each head of query and key in place of the soft-capped scores, five blocks with a
window to one without, and rotary positions of their own for the blocks with a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bombus.layers import Block, Rotary
from bombus.models.decoder import DecoderModel
from bombus.models.gemma2 import LAYERS, Gemma2Spec, gemma2_block
from bombus.models.mapping import ParameterMapping
from bombus.models.registry import Architecture, refuse, register
from bombus.models.rotary import rotary_by_layer_type, rotary_by_layer_type_to_hf
from bombus.models.spec import hf
from bombus.policies.errors import Problem

_THETAS = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}


@dataclass(frozen=True, kw_only=True)
class Gemma3TextSpec(Gemma2Spec):
    """Gemma 3's numbers. `rotary` is of the blocks that see everything, `local_rotary` of those with a window."""

    # transformers reads a soft cap of the scores and does not apply it: what it stands for is not known.
    only: ClassVar[dict[str, Any]] = {**Gemma2Spec.only, "attn_logit_softcapping": None}
    rotary_keys: ClassVar[frozenset[str]] = frozenset({"rope_parameters", "rope_scaling", "rope_local_base_freq"})

    max_positions: int = hf("max_position_embeddings", default=131072)
    sliding_window_pattern: int = hf("sliding_window_pattern", "_sliding_window_pattern", default=6)
    attention_softcap: float | None = field(default=None, init=False)
    logit_softcap: float | None = hf("final_logit_softcapping", default=None)
    rotary: Rotary = field(default_factory=lambda: Rotary(theta=_THETAS["full_attention"]))
    local_rotary: Rotary = field(default_factory=lambda: Rotary(theta=_THETAS["sliding_attention"]))

    def default_layer_types(self) -> tuple[str, ...]:
        """Windows, but for every `sliding_window_pattern`-th block."""
        every = max(self.sliding_window_pattern, 1)
        return tuple("sliding_attention" if (n + 1) % every else "full_attention" for n in range(self.num_blocks))

    def rotary_of(self, index: int) -> Rotary:
        """The rotary positions of the block's type."""
        return self.rotary if self.window_of(index) is None else self.local_rotary

    @classmethod
    def read_rotary(cls, config: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
        """Both, from the sections by layer type or from their older spelling."""
        found = rotary_by_layer_type(
            config, default_thetas=_THETAS, problems=problems, max_positions=getattr(cls, "max_positions", None)
        )
        return {"rotary": found["full_attention"], "local_rotary": found["sliding_attention"]}

    def write_rotary(self) -> dict[str, Any]:
        """Both, in both spellings."""
        return rotary_by_layer_type_to_hf({"full_attention": self.rotary, "sliding_attention": self.local_rotary})

    def _mismatches(self) -> list[Problem]:
        problems = super()._mismatches()
        if self.sliding_window_pattern < 1:
            subject, found = "field 'sliding_window_pattern'", str(self.sliding_window_pattern)
            problems.append(Problem(subject=subject, message="must be positive", found=found))
        return problems


def gemma3_text_block(spec: Gemma3TextSpec, index: int) -> Block:
    """Decoder block `index` of Gemma 3: Gemma 2's with norms over heads."""
    return gemma2_block(spec, index, head_norms=True)


MAPPING = ParameterMapping(
    layers={
        **LAYERS,
        "decoder.blocks.{n}.self_attention.query_norm": "model.layers.{n}.self_attn.q_norm",
        "decoder.blocks.{n}.self_attention.key_norm": "model.layers.{n}.self_attn.k_norm",
    },
    prefix="model.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="gemma3_text",
        spec=Gemma3TextSpec,
        build=lambda spec: DecoderModel(spec, gemma3_text_block),
        mapping=MAPPING,
        classes={
            "Gemma3ForCausalLM": "causal_lm",
            "Gemma3TextForSequenceClassification": "sequence_classification",
            "Gemma3TextModel": "base",
        },
    )
)
refuse(
    *("Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification", "Gemma3Model", "gemma3"),
    because="reads images besides text",
    remedy="load a model of text alone, whose class is Gemma3ForCausalLM (its config.json has no 'text_config')",
)

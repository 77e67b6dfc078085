"""GPT-2 (OpenAI; Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; modeling_gpt2.py).

Against Llama: LayerNorm, an embedding for every position and no rotary, biases on all layers, a feed-forward without a
gate. Kernels lie (in, out) in the file (transformers' Conv1D); query, key and value are one layer there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from bombus.layers import Attention, Block, FeedForward, LayerNorm
from bombus.models.decoder import DecoderModel
from bombus.models.mapping import ParameterMapping, Theirs, fused
from bombus.models.registry import Architecture, register
from bombus.models.spec import DecoderSpec, hf


@dataclass(frozen=True, kw_only=True)
class GPT2Spec(DecoderSpec):
    """GPT-2's numbers. Sizes that its config has no key for follow from the others."""

    only: ClassVar[dict[str, Any]] = {"add_cross_attention": False}
    unused: ClassVar[frozenset[str]] = frozenset({
        "reorder_and_upcast_attn",  # scores and softmax are in float32 here whatever it says
        "n_ctx", "output_past", "_num_labels",  # of releases before 2020: said elsewhere, or options of a call
        # Of GPT2DoubleHeadsModel alone.
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    })  # fmt: skip
    rotary_keys: ClassVar[frozenset[str]] = frozenset()

    hidden_size: int = hf("n_embd", "hidden_size")
    num_blocks: int = hf("n_layer", "num_hidden_layers")
    num_heads: int = hf("n_head", "num_attention_heads")
    intermediate_size: int = hf("n_inner", default=0)
    num_kv_heads: int = field(default=0, init=False)
    head_dim: int = field(default=0, init=False)
    activation: str = hf("activation_function", default="gelu_new")
    max_positions: int = hf("n_positions", "max_position_embeddings", default=1024)
    norm_epsilon: float = hf("layer_norm_epsilon", default=1e-5)
    tie_word_embeddings: bool = hf("tie_word_embeddings", default=True)
    rotary: None = None
    scale_attn_weights: bool = hf("scale_attn_weights", default=True)
    scale_attn_by_inverse_layer_idx: bool = hf("scale_attn_by_inverse_layer_idx", default=False)

    def __post_init__(self) -> None:
        """The feed-forward is four times as wide as the stream unless the config says."""
        object.__setattr__(self, "intermediate_size", self.intermediate_size or 4 * self.hidden_size)
        super().__post_init__()

    def norm(self, size: int | None = None) -> LayerNorm:
        """A LayerNorm."""
        return LayerNorm(size or self.hidden_size, epsilon=self.norm_epsilon)

    @property
    def position_embeddings(self) -> int:
        """Every position has one."""
        return self.max_positions

    def attention_scale(self, index: int) -> float:
        """What the scores of block `index` are multiplied by."""
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (index + 1) if self.scale_attn_by_inverse_layer_idx else scale


def gpt2_block(spec: GPT2Spec, index: int) -> Block:
    """Decoder block `index` of GPT-2."""
    return Block(
        self_attention_norm=spec.norm(),
        self_attention=Attention(
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            bias=True,
            output_bias=True,
            rotary=None,
            scale=spec.attention_scale(index),
        ),
        output_norm=spec.norm(),
        ffn=FeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation, bias=True),
    )


MAPPING = ParameterMapping(
    layers={
        "embedder.token_embedding": "transformer.wte",
        "embedder.position_embedding": "transformer.wpe",
        "decoder.blocks.{n}.self_attention_norm": "transformer.h.{n}.ln_1",
        **fused(
            "decoder.blocks.{n}.self_attention",
            ("query", "key", "value"),
            "transformer.h.{n}.attn.c_attn",
            transposed=True,
        ),
        "decoder.blocks.{n}.self_attention.output": Theirs(layer="transformer.h.{n}.attn.c_proj", transposed=True),
        "decoder.blocks.{n}.output_norm": "transformer.h.{n}.ln_2",
        "decoder.blocks.{n}.ffn.intermediate": Theirs(layer="transformer.h.{n}.mlp.c_fc", transposed=True),
        "decoder.blocks.{n}.ffn.output": Theirs(layer="transformer.h.{n}.mlp.c_proj", transposed=True),
        "output_norm": "transformer.ln_f",
        "language_modeling_head.output": "lm_head",
        "sequence_classification_head.output": "score",
        "token_classification_head.output": "classifier",
        "question_answering_head.output": "qa_outputs",
    },
    prefix="transformer.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
    # Buffers that older versions of transformers saved: the causal mask, and what it writes at masked scores.
    ignored=("*.attn.bias", "*.attn.masked_bias"),
)

register(
    Architecture(
        name="gpt2",
        spec=GPT2Spec,
        build=lambda spec: DecoderModel(spec, gpt2_block),
        mapping=MAPPING,
        classes={
            "GPT2LMHeadModel": "causal_lm",
            "GPT2ForSequenceClassification": "sequence_classification",
            "GPT2ForTokenClassification": "token_classification",
            "GPT2ForQuestionAnswering": "question_answering",
            "GPT2Model": "base",
        },
    )
)

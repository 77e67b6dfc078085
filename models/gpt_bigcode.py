"""GPT-BigCode: SantaCoder and StarCoder (BigCode; Li et al. 2023, "StarCoder"; modeling_gpt_bigcode.py).

Against GPT-2: all query heads share one key and value head (multi_query), and kernels lie (out, in) in the file. With
as many key and value heads as query heads, query, key and value of a head follow each other there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from bombus.layers import Attention, Block, FeedForward, LayerNorm
from bombus.models.decoder import DecoderModel
from bombus.models.mapping import ParameterMapping, fused
from bombus.models.registry import Architecture, register
from bombus.models.spec import DecoderSpec, hf


@dataclass(frozen=True, kw_only=True)
class GPTBigCodeSpec(DecoderSpec):
    """GPT-BigCode's numbers. Sizes that its config has no key for follow from the others."""

    only: ClassVar[dict[str, Any]] = {"add_cross_attention": False}
    unused: ClassVar[frozenset[str]] = frozenset({
        "num_key_value_heads",  # transformers writes it, and reads multi_query
        # Scores and softmax are in float32 here whatever they say.
        "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
        # How early versions ran the model, and sizes of their buffers.
        "inference_runner", "validate_runner_input", "pre_allocate_kv_cache", "pad_key_length", "max_batch_size",
        "max_sequence_length", "n_ctx",
        # Of heads that its transformers' classes do not have.
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    })  # fmt: skip
    rotary_keys: ClassVar[frozenset[str]] = frozenset()

    hidden_size: int = hf("n_embd", "hidden_size")
    num_blocks: int = hf("n_layer", "num_hidden_layers")
    num_heads: int = hf("n_head", "num_attention_heads")
    intermediate_size: int = hf("n_inner", default=0)
    num_kv_heads: int = field(default=0, init=False)
    head_dim: int = field(default=0, init=False)
    activation: str = hf("activation_function", default="gelu_pytorch_tanh")
    max_positions: int = hf("n_positions", "max_position_embeddings", default=1024)
    norm_epsilon: float = hf("layer_norm_epsilon", default=1e-5)
    tie_word_embeddings: bool = hf("tie_word_embeddings", default=True)
    rotary: None = None
    scale_attn_weights: bool = hf("scale_attn_weights", default=True)
    multi_query: bool = hf("multi_query", default=True)

    def __post_init__(self) -> None:
        """The feed-forward is four times as wide as the stream unless the config says."""
        object.__setattr__(self, "intermediate_size", self.intermediate_size or 4 * self.hidden_size)
        object.__setattr__(self, "num_kv_heads", 1 if self.multi_query else self.num_heads)
        super().__post_init__()

    def norm(self, size: int | None = None) -> LayerNorm:
        """A LayerNorm."""
        return LayerNorm(size or self.hidden_size, epsilon=self.norm_epsilon)

    @property
    def position_embeddings(self) -> int:
        """Every position has one."""
        return self.max_positions

    @property
    def fused_chunk(self) -> int:
        """How many outputs of query, key and value follow each other in turn; 0: all of them."""
        return 0 if self.multi_query else self.head_dim


def gpt_bigcode_block(spec: GPTBigCodeSpec, index: int) -> Block:
    """Decoder block `index` of GPT-BigCode."""
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
            scale=None if spec.scale_attn_weights else 1.0,
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
            chunk="fused_chunk",
        ),
        "decoder.blocks.{n}.self_attention.output": "transformer.h.{n}.attn.c_proj",
        "decoder.blocks.{n}.output_norm": "transformer.h.{n}.ln_2",
        "decoder.blocks.{n}.ffn.intermediate": "transformer.h.{n}.mlp.c_fc",
        "decoder.blocks.{n}.ffn.output": "transformer.h.{n}.mlp.c_proj",
        "output_norm": "transformer.ln_f",
        "language_modeling_head.output": "lm_head",
        "sequence_classification_head.output": "score",
        "token_classification_head.output": "classifier",
    },
    prefix="transformer.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
)

register(
    Architecture(
        name="gpt_bigcode",
        spec=GPTBigCodeSpec,
        build=lambda spec: DecoderModel(spec, gpt_bigcode_block),
        mapping=MAPPING,
        classes={
            "GPTBigCodeForCausalLM": "causal_lm",
            "GPTBigCodeForSequenceClassification": "sequence_classification",
            "GPTBigCodeForTokenClassification": "token_classification",
            "GPTBigCodeModel": "base",
        },
    )
)

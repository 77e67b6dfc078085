"""GPT-NeoX and Pythia (EleutherAI; Black et al. 2022, "GPT-NeoX-20B"; transformers' modeling_gpt_neox.py).

Against Llama: LayerNorm, attention and feed-forward beside each other, rotary positions on a part of each head, biases
on all layers, a feed-forward without a gate. In the file query, key and value of a head follow each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from bombus.layers import Attention, Block, FeedForward, LayerNorm
from bombus.models.decoder import DecoderModel
from bombus.models.mapping import ParameterMapping, fused
from bombus.models.registry import Architecture, register
from bombus.models.spec import DecoderSpec, hf


@dataclass(frozen=True, kw_only=True)
class GPTNeoXSpec(DecoderSpec):
    """GPT-NeoX's numbers. Sizes that its config has no key for follow from the others."""

    # Dropout, and a switch that transformers only warns about.
    unused: ClassVar[frozenset[str]] = frozenset({
        "attention_probs_dropout_prob", "hidden_dropout_prob", "is_decoder",
    })  # fmt: skip
    theta_keys: ClassVar[tuple[str, ...]] = ("rotary_emb_base",)
    fraction_keys: ClassVar[tuple[str, ...]] = ("rotary_pct",)
    default_fraction: ClassVar[float] = 0.25

    num_kv_heads: int = field(default=0, init=False)
    head_dim: int = field(default=0, init=False)
    activation: str = hf("hidden_act", default="gelu")
    norm_epsilon: float = hf("layer_norm_eps", default=1e-5)
    attention_bias: bool = hf("attention_bias", default=True)
    use_parallel_residual: bool = hf("use_parallel_residual", default=True)

    def norm(self, size: int | None = None) -> LayerNorm:
        """A LayerNorm."""
        return LayerNorm(size or self.hidden_size, epsilon=self.norm_epsilon)


def gpt_neox_block(spec: GPTNeoXSpec, index: int) -> Block:
    """Decoder block `index` of GPT-NeoX."""
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
        ),
        output_norm=spec.norm(),
        ffn=FeedForward(spec.hidden_size, spec.intermediate_size, activation=spec.activation, bias=True),
        parallel=spec.use_parallel_residual,
    )


MAPPING = ParameterMapping(
    layers={
        "embedder.token_embedding": "gpt_neox.embed_in",
        "decoder.blocks.{n}.self_attention_norm": "gpt_neox.layers.{n}.input_layernorm",
        **fused(
            "decoder.blocks.{n}.self_attention",
            ("query", "key", "value"),
            "gpt_neox.layers.{n}.attention.query_key_value",
            chunk="head_dim",
        ),
        "decoder.blocks.{n}.self_attention.output": "gpt_neox.layers.{n}.attention.dense",
        "decoder.blocks.{n}.output_norm": "gpt_neox.layers.{n}.post_attention_layernorm",
        "decoder.blocks.{n}.ffn.intermediate": "gpt_neox.layers.{n}.mlp.dense_h_to_4h",
        "decoder.blocks.{n}.ffn.output": "gpt_neox.layers.{n}.mlp.dense_4h_to_h",
        "output_norm": "gpt_neox.final_layer_norm",
        "language_modeling_head.output": "embed_out",
        "sequence_classification_head.output": "score",
        "token_classification_head.output": "classifier",
        "question_answering_head.output": "qa_outputs",
    },
    prefix="gpt_neox.",
    ties={"language_modeling_head.output": "embedder.token_embedding"},
    # Buffers that older versions of transformers saved: the causal mask, what it writes at masked scores, and the
    # rotary frequencies, which the config determines.
    ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
)

register(
    Architecture(
        name="gpt_neox",
        spec=GPTNeoXSpec,
        build=lambda spec: DecoderModel(spec, gpt_neox_block),
        mapping=MAPPING,
        classes={
            "GPTNeoXForCausalLM": "causal_lm",
            "GPTNeoXForSequenceClassification": "sequence_classification",
            "GPTNeoXForTokenClassification": "token_classification",
            "GPTNeoXForQuestionAnswering": "question_answering",
            "GPTNeoXModel": "base",
        },
    )
)

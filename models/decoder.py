"""The body and the heads that decoders share: embedding, blocks, norm, and what stands on them.

Shapes: B batch, T tokens, S cached tokens, D hidden, V vocabulary, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bombus.layers import AttentionContext, Block, Cache, Dense, Embedding, LayerCache
from bombus.models.spec import DecoderSpec

_LOGITS_TYPE = jnp.dtype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model returns.

    logits: (B, T, V), or (B, 1, V) for the last position only; (B, L) for a sequence_classification, (B, T, L) for a
        token_classification; (B, T, 2), start and end of the answer, for question_answering; None for `base`.
    hidden_state: (B, T, D), after the last norm. cache: the updated cache, None when none was given.
    """

    logits: jax.Array | None
    hidden_state: jax.Array
    cache: Cache | None


class Embedder(nnx.Module):
    """Holds the token embedding, and the position embedding of models that have one."""

    def __init__(self, spec: DecoderSpec) -> None:
        self.token_embedding = Embedding(spec.vocab_size, spec.hidden_size)
        if spec.position_embeddings:
            self.position_embedding = Embedding(spec.position_embeddings, spec.hidden_size)


class Blocks(nnx.Module):
    """Holds the decoder blocks."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = nnx.List(blocks)


class Head(nnx.Module):
    """Holds the output layer of a head."""

    def __init__(self, hidden_size: int, outputs: int, *, bias: bool = False) -> None:
        self.output = Dense(hidden_size, outputs, bias=bias, output_type=_LOGITS_TYPE)


class DecoderModel(nnx.Module):
    """tokens (B, T) -> Output. block(spec, n) builds decoder block n; `spec.head` chooses the head."""

    def __init__(self, spec: DecoderSpec, block: Callable[[Any, int], Block]) -> None:
        self.spec = spec
        self.embedder = Embedder(spec)
        self.decoder = Blocks([block(spec, index) for index in range(spec.num_blocks)])
        self.output_norm = spec.norm()
        if spec.head == "causal_lm" and not spec.tie_word_embeddings:
            self.language_modeling_head = Head(spec.hidden_size, spec.vocab_size, bias=spec.head_bias)
        if spec.head == "sequence_classification":
            self.sequence_classification_head = Head(spec.hidden_size, spec.num_labels)
        if spec.head == "token_classification":
            self.token_classification_head = Head(spec.hidden_size, spec.num_labels, bias=True)
        if spec.head == "question_answering":
            self.question_answering_head = Head(spec.hidden_size, 2, bias=True)

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> Output:
        if last_only and self.spec.head != "causal_lm":
            raise ValueError(f"last_only is for the logits of a causal_lm, and this model's head is {self.spec.head}")
        mask_BT = jnp.ones(tokens_BT.shape, jnp.bool_) if mask is None else mask.astype(jnp.bool_)
        if positions is None:
            positions = jnp.maximum(jnp.cumsum(mask_BT, axis=1, dtype=jnp.int32) - 1, 0)
            if cache is not None:
                positions = positions + cache.positions[:, None]
        context, cache = _context(positions, mask_BT, cache)
        x = self.embed(tokens_BT, positions)
        layers = []
        for index, block in enumerate(self.decoder.blocks):
            x, cached = _run_block(*nnx.split(block), x, context, None if cache is None else cache.layers[index])
            if cached is not None:
                layers.append(cached)
        if cache is not None:
            cache = replace(cache, layers=tuple(layers), length=cache.length + tokens_BT.shape[1])
        hidden = self.output_norm(x)
        return Output(logits=self._logits(hidden, mask_BT, last_only), hidden_state=hidden, cache=cache)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """What the first block reads, (B, T, D)."""
        x = self.embedder.token_embedding(tokens_BT)
        if self.spec.embedding_scale is not None:
            # Rounded to the type of the rows, as Gemma was trained.
            x = x * jnp.asarray(self.spec.embedding_scale, x.dtype)
        if self.spec.position_embeddings:
            x = x + self.embedder.position_embedding(positions_BT).astype(x.dtype)
        return x

    def _logits(self, hidden_BTD: jax.Array, mask_BT: jax.Array, last_only: bool) -> jax.Array | None:
        match self.spec.head:
            case "sequence_classification":
                last_B = mask_BT.shape[1] - 1 - jnp.argmax(mask_BT[:, ::-1], axis=1)
                last_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
                return self.sequence_classification_head.output(last_BD)
            case "token_classification":
                return self.token_classification_head.output(hidden_BTD)
            case "question_answering":
                return self.question_answering_head.output(hidden_BTD)
            case "causal_lm":
                return self._next_token(hidden_BTD[:, -1:] if last_only else hidden_BTD)
        return None

    def _next_token(self, hidden_BTD: jax.Array) -> jax.Array:
        if self.spec.tie_word_embeddings:
            logits = self.embedder.token_embedding.attend(hidden_BTD, _LOGITS_TYPE)
        else:
            logits = self.language_modeling_head.output(hidden_BTD)
        cap = self.spec.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


# jit: blocks that are alike are traced and lowered once. XLA inlines the calls and shares what they have in common.
@partial(jax.jit, static_argnums=0)
def _run_block(
    graph: nnx.GraphDef[Block], state: nnx.State, x: jax.Array, context: AttentionContext, cached: LayerCache | None
) -> tuple[jax.Array, LayerCache | None]:
    return nnx.merge(graph, state)(x, context, cached)


def _context(positions: jax.Array, mask_BT: jax.Array, cache: Cache | None) -> tuple[AttentionContext, Cache | None]:
    if cache is None:
        return AttentionContext(positions_BT=positions, keys_BS=mask_BT), None
    keys_BS = lax.dynamic_update_slice(cache.mask, mask_BT, (0, cache.length))
    next_positions = cache.positions + mask_BT.sum(axis=1, dtype=jnp.int32)
    context = AttentionContext(positions_BT=positions, keys_BS=keys_BS, length=cache.length)
    return context, replace(cache, mask=keys_BS, positions=next_positions)


# Our names <- transformers' names for the parts that all decoders of this shape share; a model adds its own.
DECODER_LAYERS = {
    "embedder.token_embedding": "model.embed_tokens",
    "decoder.blocks.{n}.self_attention_norm": "model.layers.{n}.input_layernorm",
    "decoder.blocks.{n}.self_attention.query": "model.layers.{n}.self_attn.q_proj",
    "decoder.blocks.{n}.self_attention.key": "model.layers.{n}.self_attn.k_proj",
    "decoder.blocks.{n}.self_attention.value": "model.layers.{n}.self_attn.v_proj",
    "decoder.blocks.{n}.self_attention.output": "model.layers.{n}.self_attn.o_proj",
    "decoder.blocks.{n}.output_norm": "model.layers.{n}.post_attention_layernorm",
    "decoder.blocks.{n}.ffn.gate": "model.layers.{n}.mlp.gate_proj",
    "decoder.blocks.{n}.ffn.intermediate": "model.layers.{n}.mlp.up_proj",
    "decoder.blocks.{n}.ffn.output": "model.layers.{n}.mlp.down_proj",
    "output_norm": "model.norm",
    "language_modeling_head.output": "lm_head",
    "sequence_classification_head.output": "score",
    "token_classification_head.output": "score",
    "question_answering_head.output": "qa_outputs",
}

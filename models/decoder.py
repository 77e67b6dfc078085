"""The body and the heads that decoders share: embedding, blocks, norm, and what stands on them.

Shapes: B batch, T tokens, S cached tokens, D hidden, V vocabulary, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bombus.layers import AttentionContext, Block, Cache, Dense, Embedding, RMSNorm
from bombus.models.spec import DecoderSpec

_LOGITS_TYPE = jnp.dtype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model returns.

    logits: (B, T, V), or (B, 1, V) for the last position only, or (B, L) for a classification; None for `base`.
    hidden_state: (B, T, D), after the last norm. cache: the updated cache, None when none was given.
    """

    logits: jax.Array | None
    hidden_state: jax.Array
    cache: Cache | None


class Embedder(nnx.Module):
    """Holds the token embedding."""

    def __init__(self, spec: DecoderSpec) -> None:
        self.token_embedding = Embedding(spec.vocab_size, spec.hidden_size)


class Blocks(nnx.Module):
    """Holds the decoder blocks."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = nnx.List(blocks)


class Head(nnx.Module):
    """Holds the output layer of a head."""

    def __init__(self, hidden_size: int, outputs: int) -> None:
        self.output = Dense(hidden_size, outputs, output_type=_LOGITS_TYPE)


class DecoderModel(nnx.Module):
    """tokens (B, T) -> Output. `block` builds one decoder block; `spec.head` chooses the head."""

    def __init__(self, spec: DecoderSpec, block: Callable[[Any], Block]) -> None:
        self.spec = spec
        self.embedder = Embedder(spec)
        self.decoder = Blocks([block(spec) for _ in range(spec.num_blocks)])
        self.output_norm = RMSNorm(spec.hidden_size, epsilon=spec.norm_epsilon)
        if spec.head == "sequence_classification":
            self.sequence_classification_head = Head(spec.hidden_size, spec.num_labels)
        if spec.head == "causal_lm" and not spec.tie_word_embeddings:
            self.language_modeling_head = Head(spec.hidden_size, spec.vocab_size)

    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> Output:
        mask_BT = jnp.ones(tokens_BT.shape, jnp.bool_) if mask is None else mask.astype(jnp.bool_)
        if positions is None:
            positions = jnp.maximum(jnp.cumsum(mask_BT, axis=1, dtype=jnp.int32) - 1, 0)
            if cache is not None:
                positions = positions + cache.positions[:, None]
        context, cache = self._context(positions, mask_BT, cache)
        x = self.embedder.token_embedding(tokens_BT)
        layers = []
        for index, block in enumerate(self.decoder.blocks):
            cached = None if cache is None else (cache.keys[index], cache.values[index])
            x, cached = block(x, context, cached)
            layers.append(cached)
        if cache is not None:
            keys, values = zip(*layers, strict=True)
            cache = replace(cache, keys=keys, values=values, length=cache.length + tokens_BT.shape[1])
        hidden = self.output_norm(x)
        return Output(logits=self._logits(hidden, mask_BT, last_only), hidden_state=hidden, cache=cache)

    def _context(
        self, positions: jax.Array, mask_BT: jax.Array, cache: Cache | None
    ) -> tuple[AttentionContext, Cache | None]:
        tokens = mask_BT.shape[1]
        rotary = self.spec.rotary.tables(positions, self.spec.head_dim)
        if cache is None:
            keys_BS, first = mask_BT, jnp.int32(0)
        else:
            keys_BS, first = lax.dynamic_update_slice(cache.mask, mask_BT, (0, cache.length)), cache.length
            next_positions = cache.positions + mask_BT.sum(axis=1, dtype=jnp.int32)
            cache = replace(cache, mask=keys_BS, positions=next_positions)
        slots = jnp.arange(keys_BS.shape[1], dtype=jnp.int32)
        causal_TS = slots[None, :] <= first + jnp.arange(tokens, dtype=jnp.int32)[:, None]
        return (
            AttentionContext(
                rotary=rotary,
                mask_BTS=keys_BS[:, None, :] & causal_TS[None],
                length=None if cache is None else first,
            ),
            cache,
        )

    def _logits(self, hidden_BTD: jax.Array, mask_BT: jax.Array, last_only: bool) -> jax.Array | None:
        if self.spec.head == "base":
            return None
        if self.spec.head == "sequence_classification":
            last_B = mask_BT.shape[1] - 1 - jnp.argmax(mask_BT[:, ::-1], axis=1)
            last_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
            return self.sequence_classification_head.output(last_BD)
        if last_only:
            hidden_BTD = hidden_BTD[:, -1:]
        if self.spec.tie_word_embeddings:
            return self.embedder.token_embedding.attend(hidden_BTD, _LOGITS_TYPE)
        return self.language_modeling_head.output(hidden_BTD)


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
}

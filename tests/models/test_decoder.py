"""The decoder body: what a spec may ask of it, against NumPy around a block that adds a known vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy_attention import fill

from bombus.layers import CacheShape, LayerNorm
from bombus.models import LlamaSpec
from bombus.models.decoder import DecoderModel, Output
from bombus.models.registry import HEADS

V, D, L, BLOCKS, EPSILON = 11, 6, 3, 2, 0.02
TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
MASK = np.array([[True] * 5, [True] * 3 + [False] * 2])


@dataclass(frozen=True, kw_only=True)
class FullSpec(LlamaSpec):
    """Every option that the body reads."""

    logit_softcap: float | None = 2.0

    def norm(self, size: int | None = None) -> LayerNorm:
        return LayerNorm(size or self.hidden_size, epsilon=self.norm_epsilon)

    @property
    def embedding_scale(self) -> float:
        return self.hidden_size**0.5

    @property
    def position_embeddings(self) -> int:
        return 8

    @property
    def head_bias(self) -> bool:
        return True


class Adds(nnx.Module):
    """A block that adds its number plus one, and leaves what is cached."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, x: jax.Array, context: Any, cached: Any = None) -> Any:
        return x + jnp.asarray(self.index + 1, x.dtype), cached


def _model(kind: type[LlamaSpec], **changes: Any) -> tuple[DecoderModel, dict[str, np.ndarray]]:
    sizes = {"vocab_size": V, "hidden_size": D, "intermediate_size": 4, "num_blocks": BLOCKS, "num_heads": 1}
    spec = kind(**sizes, norm_epsilon=EPSILON, num_labels=L, **changes)
    build: Callable[..., Any] = lambda spec, index: Adds(index)  # noqa: E731
    module = DecoderModel(spec, build)
    return module, fill(module, size=1.0)


def _hidden(values: dict[str, np.ndarray], positions: np.ndarray) -> np.ndarray:
    x = values["embedder.token_embedding.embedding"][TOKENS] * np.float32(D**0.5)
    x = x + values["embedder.position_embedding.embedding"][positions] + 3
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return normal * values["output_norm.scale"] + values["output_norm.bias"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_on_every_option(head: str, tied: bool) -> None:
    """Scaled tokens plus positions, blocks in order, a LayerNorm, and the head: its shape, bias and softcap."""
    module, values = _model(FullSpec, head=head, tie_word_embeddings=tied)
    output: Output = jax.jit(lambda: module(TOKENS, mask=jnp.asarray(MASK)))()
    hidden = _hidden(values, np.maximum(np.cumsum(MASK, 1) - 1, 0))
    np.testing.assert_allclose(output.hidden_state, hidden, atol=1e-5)
    heads = {path for path in values if "head" in path}
    if head == "base":
        assert (output.logits, heads) == (None, set())
        return
    if head == "sequence_classification":
        hidden = hidden[[0, 1], [4, 2]]
    if head == "causal_lm" and tied:
        assert heads == set()
        expected = hidden @ values["embedder.token_embedding.embedding"].T
    else:
        name = {"causal_lm": "language_modeling"}.get(head, head) + "_head.output"
        assert heads == {f"{name}.kernel"} | (set() if head == "sequence_classification" else {f"{name}.bias"})
        expected = hidden @ values[f"{name}.kernel"].T + values.get(f"{name}.bias", 0.0)
    width = {"causal_lm": V, "question_answering": 2}.get(head, L)
    assert expected.shape == ((2, width) if head == "sequence_classification" else (2, 5, width))
    expected = 2 * np.tanh(expected / 2) if head == "causal_lm" else expected
    assert output.logits is not None
    assert output.logits.dtype == jnp.float32
    np.testing.assert_allclose(output.logits, expected, atol=2e-5)


def test_positions_are_looked_up_as_they_are_given() -> None:
    """Not by their place among the tokens."""
    module, values = _model(FullSpec, head="base")
    positions = np.array([[7, 0, 3, 3, 1], [2, 2, 4, 6, 5]])
    found = module(jnp.asarray(TOKENS), positions=jnp.asarray(positions)).hidden_state
    np.testing.assert_allclose(found, _hidden(values, positions), atol=1e-5)


def test_the_embedding_scale_is_rounded_to_the_type_of_the_rows() -> None:
    """sqrt(6) = 2.4495 is 2.453125 in bfloat16, in which Gemma multiplies."""
    module, _ = _model(FullSpec)
    table = jnp.ones((V, D), jnp.bfloat16)
    module.embedder.token_embedding.embedding.set_value(table)
    module.embedder.position_embedding.embedding.set_value(jnp.zeros((8, D), jnp.bfloat16))
    found = module.embed(jnp.asarray(TOKENS), jnp.zeros_like(TOKENS))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.unique(found.astype(jnp.float32)), [2.453125])


def test_nothing_is_there_unless_a_spec_asks() -> None:
    """Llama has no positions, no scale, no bias and no softcap; a cache has its keys and values."""
    module, values = _model(LlamaSpec)
    assert set(values) == {
        "embedder.token_embedding.embedding",
        "output_norm.scale",
        "language_modeling_head.output.kernel",
    }
    np.testing.assert_allclose(
        module.embed(jnp.asarray(TOKENS), jnp.asarray(TOKENS)),
        values["embedder.token_embedding.embedding"][TOKENS],
        rtol=1e-6,
    )
    assert module.spec.cache_shape == CacheShape(num_kv_heads=1, key_dim=D, value_dim=D)


@pytest.mark.parametrize("head", [head for head in HEADS if head != "causal_lm"])
def test_last_only_is_for_the_next_token(head: str) -> None:
    """Another head refuses it."""
    module, _ = _model(LlamaSpec, head=head)
    with pytest.raises(
        ValueError, match=f"^last_only is for the logits of a causal_lm, and this model's head is {head}$"
    ):
        module(jnp.asarray(TOKENS), last_only=True)

"""Our greedy tokens against those of transformers' `generate`.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bombus

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NEW_TOKENS = 32


def generate_with_transformers(model: Any, prompts: Sequence[Sequence[int]], stop: int | None) -> list[list[int]]:
    """The new tokens of every prompt, padded on the left; transformers fills a row up with 0 after `stop`."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    # In place of the repository's: what is None in an argument would be taken from there.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=stop, pad_token_id=0
    )
    with torch.no_grad():
        return model.generate(tokens, attention_mask=mask)[:, longest:].tolist()


def generate_with_bombus(loaded: bombus.LoadedModel, prompts: Sequence[Sequence[int]], stop: int | None) -> Any:
    return bombus.generate_tokens(
        loaded,
        prompts,
        max_new_tokens=NEW_TOKENS,
        temperature=0,
        stop_token_ids=() if stop is None else (stop,),
    )


def assert_same_tokens(comparison: Any, folder: Path, prompts: Sequence[Sequence[int]]) -> None:
    """All 32 tokens; and again with a stop id, the one that transformers wrote in the middle of the first row."""
    model, loaded = comparison.read_transformers(folder), bombus.load_model(folder)
    expected = generate_with_transformers(model, prompts, None)
    generated = generate_with_bombus(loaded, prompts, None)
    assert [row.tokens for row in generated] == expected
    assert {row.finish_reason for row in generated} == {"length"}
    stop = expected[0][NEW_TOKENS // 2]
    for row, tokens in zip(
        generate_with_bombus(loaded, prompts, stop), generate_with_transformers(model, prompts, stop), strict=True
    ):
        end = tokens.index(stop) if stop in tokens else len(tokens)
        assert row.tokens == tokens[:end]
        assert row.finish_reason == ("stop" if stop in tokens else "length")


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("qwen3", {"seed": 1}),
        ("qwen3", {"preset": "original", "seed": 2, "tie_word_embeddings": False}),
        ("llama", {"seed": 3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    ],
    ids=["qwen3", "qwen3-original", "llama"],
)
def test_tiny_models_write_the_same(
    comparison: Any, tiny: Callable[..., Path], architecture: str, options: dict[str, Any]
) -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(1, 256, size).tolist() for size in (21, 8)]
    assert_same_tokens(comparison, tiny(architecture, "f32", **options), prompts)


def test_trained_model_writes_the_same(comparison: Any, data: Path) -> None:
    folder = data / "stories260K-hf"
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), bombus.load_tokenizer(folder)
    texts = ["Once upon a time, there was a little", "Tom and his dog"]
    prompts = [ours.encode(text) for text in texts]
    assert prompts == [theirs(text)["input_ids"] for text in texts]
    assert len(prompts[0]) != len(prompts[1])
    assert_same_tokens(comparison, folder, prompts)

"""Rows of a batch against the same prompts alone: in every cache format, read at once and in chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.generation.loop import NEXT_TOKEN, prefill
from bombus.generation.request import make_request
from bombus.generation.sizes import chunked_bucket, prefill_bytes, prefill_chunk
from bombus.generation.state import Plan
from bombus.kernels import native

random = np.random.default_rng(5)
# All of one bucket, so that they take one program alone; test_a_chunk_of_padding_alone has others.
PROMPTS = [random.integers(0, 256, size).tolist() for size in (48, 33, 41)]
FORMATS: dict[str, Any] = {
    "full": None,
    "f8_e4m3fn": "f8_e4m3fn",
    "int8": "int8",
    "int4 and int8": {"keys": "int8", "values": "int4", "full_layers": [0]},
    "int4, recent 16": {"keys": "int4", "values": "int4", "recent": 16},
}


def tokens(loaded: bombus.LoadedModel, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 16, "stop_token_ids": (), **options}
    return [row.tokens for row in bombus.generate_tokens(loaded, prompts, **options)]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_what_they_are_alone(loaded: bombus.LoadedModel, name: str) -> None:
    """Greedy and sampled rows of one batch, at once and in chunks of 16, against each prompt by itself."""
    alone = [
        tokens(loaded, [prompt], cache_format=FORMATS[name], temperature=1.0, seed=[row], prefill_chunk=None)[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    for chunk in (None, 16):
        together = tokens(
            loaded, PROMPTS, cache_format=FORMATS[name], temperature=1.0, seed=[0, 1, 2], prefill_chunk=chunk
        )
        assert together == alone, chunk
    assert len({tuple(row) for row in alone}) == 3


def test_a_chunk_of_padding_alone(loaded: bombus.LoadedModel) -> None:
    """Short rows beside a long one, whose first chunks are padding and nothing else."""
    prompts = [PROMPTS[0], PROMPTS[1][:3], PROMPTS[2][:18]]
    alone = [tokens(loaded, [prompt], cache_format=FORMATS["int4, recent 16"])[0] for prompt in prompts]
    assert tokens(loaded, prompts, cache_format=FORMATS["int4, recent 16"], prefill_chunk=16) == alone


def test_formats_are_not_all_the_same(loaded: bombus.LoadedModel) -> None:
    """Four-bit keys and values do change the logits: the format reaches the cache."""

    def logprobs(name: str) -> Mapping[int, float]:
        (row,) = bombus.generate_tokens(
            loaded, PROMPTS[:1], cache_format=FORMATS[name], max_new_tokens=16, stop_token_ids=(), top_logprobs=20
        )
        assert row.top_logprobs is not None
        return row.top_logprobs[0]

    full, int8, int4 = map(logprobs, ("full", "int8", "int4, recent 16"))

    def distance(found: Mapping[int, float]) -> float:
        return float(np.mean([abs(found[token] - full[token]) for token in full.keys() & found.keys()]))

    assert 0 < 3 * distance(int8) < distance(int4) < 0.5


def test_chunks_are_read_in_bounded_memory(loaded: bombus.LoadedModel) -> None:
    """A prompt of 384 tokens: the compiled program's buffers stay within the estimate, which bounds the chunk."""
    sizes = {}
    slots = 384 + 16
    for chunk in (384, 96, 32):
        request = make_request(loaded, [[1] * 384] * 2, {"max_new_tokens": 16, "prefill_chunk": chunk}, has_text=False)
        assert (request.bucket, request.plan.chunk) == (384, chunk)
        arrays = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in request.padded()]
        program = prefill.lower(loaded.model, loaded.params, *arrays, request.call, plan=request.plan).compile()
        sizes[chunk] = program.memory_analysis().temp_size_in_bytes
    # At most: what is dequantized, which the C++ kernels do in registers.
    in_registers = native.library().loaded is not None
    weights = 0 if in_registers else sum(leaf.size * 4 for leaf in jax.tree.leaves(loaded.params))
    for chunk, size in sizes.items():
        assert size <= prefill_bytes(loaded.model, 2, chunk, slots) + weights, sizes
    assert sizes[32] < sizes[96] < sizes[384]
    assert sizes[384] - weights > prefill_bytes(loaded.model, 2, 384, slots) / 8, sizes  # no idle estimate


def test_the_chunk_follows_from_the_memory(loaded: bombus.LoadedModel) -> None:
    """All of the prompt where it fits, else the power of two that does, and never less than 16."""
    model = loaded.model
    whole = prefill_bytes(model, 1, 512, 512 + 64)
    assert prefill_chunk(model, 1, 500, 64, whole) == 512
    assert prefill_chunk(model, 1, 500, 64, whole - 1) == 256
    assert prefill_chunk(model, 1, 500, 64, whole // 5) == 64
    assert prefill_chunk(model, 1, 500, 64, 1) == 16
    request = make_request(loaded, [[1] * 400], {"prefill_memory": whole // 8, "max_new_tokens": 8}, has_text=False)
    assert prefill_bytes(model, 1, request.plan.chunk, 448) <= whole // 8
    assert 16 < request.plan.chunk < 100


@pytest.mark.parametrize("prompt", [1, 16, 17, 65, 100, 500, 1000, 5000])
@pytest.mark.parametrize("chunk", [16, 64, 256, 10_000])
def test_chunks_divide_the_bucket(prompt: int, chunk: int) -> None:
    """In equal parts, with at most 16 tokens a part more than the bucket without chunks."""
    bucket, part = chunked_bucket(prompt, chunk)
    plain, whole = chunked_bucket(prompt, 10**9)
    assert plain == whole >= prompt
    assert bucket % part == 0
    assert part <= chunk or part == bucket == plain
    assert plain <= bucket < plain + 16 * (bucket // part)


def test_any_number_of_rows(loaded: bombus.LoadedModel) -> None:
    """Nine rows run in a program for ten; the tenth changes nothing and is not returned."""
    prompts = [[*PROMPTS[row % 3][row:], row] for row in range(9)]
    found = tokens(loaded, prompts, max_new_tokens=4)
    assert len(found) == 9
    assert found[7] == tokens(loaded, prompts[7:8], max_new_tokens=4)[0]


def test_several_texts_of_a_prompt(loaded: bombus.LoadedModel, tokenizer: bombus.Tokenizer) -> None:
    """num_return_sequences: rows of the same prompt with seeds of their own."""
    texts = bombus.generate(loaded, tokenizer, "ab", num_return_sequences=3, temperature=1.5, max_new_tokens=8, seed=4)
    assert texts == bombus.generate(loaded, tokenizer, ["ab"] * 3, temperature=1.5, max_new_tokens=8, seed=[4, 5, 6])
    assert len(set(texts)) == 3


def test_a_row_that_ended_changes_nothing_for_the_others(loaded: bombus.LoadedModel) -> None:
    """One row is stopped after its first token, the other goes on as if alone."""
    first, second = tokens(loaded, PROMPTS[:2])
    stop = first[0] if first[0] not in second else first[1]
    ended, going = bombus.generate_tokens(loaded, PROMPTS[:2], max_new_tokens=16, stop_token_ids=[stop])
    assert (ended.finish_reason, len(ended.tokens)) == ("stop", first.index(stop))
    assert (going.tokens, going.finish_reason) == (second, "length")


def test_windows_are_kept_as_rings(tiny: Callable[..., Path]) -> None:
    """A model that sees eight tokens back gives the same in chunks, in a batch and alone, over many of its windows."""
    folder = tiny("mistral", "f32", sliding_window=8)
    loaded = bombus.load_model(folder)
    alone = [tokens(loaded, [prompt], max_new_tokens=32)[0] for prompt in PROMPTS[:2]]
    assert tokens(loaded, PROMPTS[:2], max_new_tokens=32, prefill_chunk=16) == alone
    cache = jax.eval_shape(lambda: loaded.model.init_cache(1, 100))
    assert {layer.keys.codes.shape[1] for layer in cache.layers} == {8}
    text = PROMPTS[0] + alone[0]
    logits = jax.jit(loaded.model.apply)(loaded.params, jnp.asarray([text])).logits
    assert np.asarray(logits)[0, len(PROMPTS[0]) - 1 : -1].argmax(-1).tolist() == alone[0]


def test_plans_are_equal_when_their_programs_are() -> None:
    """What a program is compiled for is compared by value: the cache of programs finds it again."""
    plan = Plan(new_tokens=16, chunk=16, strategy=NEXT_TOKEN, cache_format=bombus.CacheFormat(keys="int8"))
    again = Plan(new_tokens=16, chunk=16, strategy=NEXT_TOKEN, cache_format=bombus.CacheFormat(keys="int8"))
    assert plan == again
    assert hash(plan) == hash(again)

"""Generation: a trained model's text, streams, batches, stop ids, compilations, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.cli import main
from bombus.generation.sizes import batch_bucket, size_bucket

PROMPTS = [[5, 9, 11], [7, 1, 2, 3, 4, 5, 6, 250], [3]]


def tokens(loaded: bombus.LoadedModel, prompts: list[list[int]] = PROMPTS[:1], **options: object) -> list[list[int]]:
    """The new tokens of each prompt, without stop ids unless they are given."""
    options = {"max_new_tokens": 12, "stop_token_ids": (), **options}
    return [row.tokens for row in bombus.generate_tokens(loaded, prompts, **options)]


def test_the_command_line_tells_the_golden_story(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stories260K, greedy: the first 400 characters of the reference text; a stream prints the same."""
    golden = (data / "stories260K-hf" / "golden_greedy.txt").read_text()
    call = ["generate", str(data / "stories260K-hf"), "--prompt", "Once upon a time", "--max-new-tokens", "200"]
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert printed[:400] == golden[:400]
    assert golden.startswith(printed.rstrip("\n"))
    assert main([*call, "--stream"]) == 0
    assert capsys.readouterr().out == printed


def test_greedy_tokens_are_the_argmax_of_apply(loaded: bombus.LoadedModel) -> None:
    """The compiled loop equals choosing the best token of a full pass, one token at a time."""
    text = list(PROMPTS[1])
    apply = jax.jit(loaded.model.apply)
    for _ in range(6):
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(text)] = text
        logits = apply(loaded.params, padded, mask=np.arange(16)[None] < len(text)).logits
        text.append(int(np.asarray(logits)[0, len(text) - 1].argmax()))
    assert tokens(loaded, PROMPTS[1:2], max_new_tokens=6) == [text[len(PROMPTS[1]) :]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_gives_each_row_what_it_gets_alone(loaded: bombus.LoadedModel, temperature: float) -> None:
    """Prompts of different lengths, sampled with seeds of their own, in any company and order."""
    seeds = [3, 1, 4]
    together = tokens(loaded, PROMPTS, temperature=temperature, seed=seeds)
    alone = [
        tokens(loaded, [prompt], temperature=temperature, seed=[seed])[0]
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    assert together == alone
    assert tokens(loaded, PROMPTS[::-1], temperature=temperature, seed=seeds[::-1]) == alone[::-1]
    assert len({tuple(row) for row in alone}) == 3


def test_seeds_change_samples_and_repeat_them(loaded: bombus.LoadedModel) -> None:
    """One number means that number, plus one for each further row."""
    first = tokens(loaded, PROMPTS[:1] * 2, temperature=1.0, seed=7)
    assert first[0] != first[1]
    assert tokens(loaded, PROMPTS[:1] * 2, temperature=1.0, seed=[7, 8]) == first
    assert tokens(loaded, PROMPTS[:1] * 2, temperature=1.0, seed=8)[0] == first[1]


def test_stop_ids_end_a_row(loaded: bombus.LoadedModel) -> None:
    """The text before the first stop id, with the reason; other rows go on."""
    (plain,) = tokens(loaded)
    cut = next(index for index in range(2, 12) if plain[index] not in plain[:index])
    stopped = bombus.generate_tokens(loaded, PROMPTS[:1], max_new_tokens=12, stop_token_ids=[plain[cut], 3])
    assert stopped == [bombus.Generated(tokens=plain[:cut], finish_reason="stop")]
    both = bombus.generate_tokens(loaded, PROMPTS[:2], max_new_tokens=12, stop_token_ids=[plain[cut]])
    assert both[0].tokens == plain[:cut]
    assert both[1].tokens == tokens(loaded, PROMPTS[1:2])[0][: len(both[1].tokens)]
    unlimited = bombus.generate_tokens(loaded, PROMPTS[:1], max_new_tokens=5, stop_token_ids=())
    assert unlimited == [bombus.Generated(tokens=plain[:5], finish_reason="length")]


def test_the_files_eos_is_the_default_stop(loaded: bombus.LoadedModel) -> None:
    """generation_config.json's list of eos ids ends a text unless the caller says otherwise."""
    (plain,) = tokens(loaded)
    config = dataclasses.replace(loaded.generation_config, eos_token_ids=(plain[2], 256))
    (row,) = bombus.generate_tokens(loaded, PROMPTS[:1], max_new_tokens=12, generation_config=config)
    assert row == bombus.Generated(tokens=plain[: plain.index(plain[2])], finish_reason="stop")


def test_changing_a_request_compiles_nothing(loaded: bombus.LoadedModel, compilations: list[str]) -> None:
    """Temperature, top-k, top-p, seed, stop ids and lengths within a bucket are data of the same two programs."""
    tokens(loaded)
    jnp.arange(3) + 1  # whatever else this process compiles lazily
    compilations.clear()
    for options in (
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.5, "seed": 9},
        {"stop_token_ids": [5]},
        {"stop_token_ids": list(range(30))},
        {"max_new_tokens": 9},
    ):
        tokens(loaded, **options)
        tokens(loaded, [[1, 2, 3, 4, 5, 6]], **options)
    assert compilations == []
    tokens(loaded, [list(range(20))])
    assert len(compilations) >= 1  # another bucket does compile: the counter counts


def test_a_stream_is_the_text_in_pieces(loaded: bombus.LoadedModel, tokenizer: bombus.Tokenizer) -> None:
    """Concatenated pieces equal the text that is returned at once."""
    text = bombus.generate(loaded, tokenizer, "Bombus", max_new_tokens=24, temperature=1.0, seed=2)
    pieces = list(bombus.generate(loaded, tokenizer, "Bombus", max_new_tokens=24, temperature=1.0, seed=2, stream=True))
    assert "".join(pieces) == text
    assert len(pieces) > 3
    assert bombus.generate(loaded, tokenizer, ["Bombus"], max_new_tokens=24, temperature=1.0, seed=[2]) == [text]


@pytest.mark.parametrize(
    ("prompts", "options", "text"),
    [
        ([[]], {}, "prompt 0: has no tokens. Write something, if only a line break, or give token ids"),
        ([], {}, "prompts: must be lists of token ids (expected at least one, found [])"),
        (
            [[1], [320, 5]],
            {},
            "prompt 1: goes past the vocabulary of 320 tokens (found [320])",
        ),
        (
            [[1]],
            {"temperature": -1.0},
            "temperature: is out of range (expected a number from 0.0 to 10000.0, found -1.0)",
        ),
        ([[1]], {"temperature": float("nan")}, "temperature: is out of range"),
        ([[1]], {"top_p": 2.0}, "top_p: is out of range (expected a number from 0.0 to 1.0, found 2.0)"),
        ([[1]], {"top_k": -1}, "top_k: is out of range (expected an integer from 0 to 2147483647, found -1)"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens: is out of range (expected an integer from 1, found 0)"),
        ([[1] * 500], {"max_new_tokens": 20}, "with a prompt of 500 tokens goes past the model's 512 positions"),
        (
            [[1]],
            {"stop_token_ids": [999]},
            "stop_token_ids: is out of range (expected ids below the vocabulary of 320, found (999,))",
        ),
        (
            [[1], [2]],
            {"seed": [1]},
            "seed: is out of range (expected a number from 0 to 4294967295, or 2, one per row, found [1])",
        ),
    ],
)
def test_requests_that_cannot_be_met(
    loaded: bombus.LoadedModel, prompts: list[list[int]], options: dict, text: str
) -> None:
    """A GenerationError says which value, what is allowed and what was given."""
    with pytest.raises(bombus.GenerationError) as caught:
        bombus.generate_tokens(loaded, prompts, **options)
    assert text in str(caught.value)


def test_all_problems_of_a_request_come_at_once(loaded: bombus.LoadedModel, tokenizer: bombus.Tokenizer) -> None:
    """And fields of generation_config.json that nothing implements are refused, not ignored."""
    config = bombus.GenerationConfig.from_hf({"do_sample": True, "guidance_scale": 1.1})
    with pytest.raises(bombus.GenerationError) as caught:
        bombus.generate_tokens(loaded, [[1]], temperature=-1, top_p=3, generation_config=config)
    assert len(caught.value.problems) == 3
    assert "asks for guidance_scale=1.1, which this version does not implement" in str(caught.value)
    with pytest.raises(bombus.GenerationError, match="stream: takes one prompt and gives one text"):
        bombus.generate(loaded, tokenizer, ["a", "b"], stream=True)


def test_only_a_causal_model_generates(tiny: Callable[..., Path]) -> None:
    """A classifier says what is needed instead of returning noise."""
    classifier = bombus.load_model(tiny("llama", "f32", head="sequence_classification"))
    with pytest.raises(bombus.GenerationError, match="expected the head causal_lm, found 'sequence_classification'"):
        bombus.generate_tokens(classifier, [[1]])


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 64, 65, 100, 500, 511, 512, 513, 3000])
def test_buckets_waste_at_most_a_quarter(size: int) -> None:
    """Never smaller than asked, never more than a quarter (or sixteen) too large, and few of them."""
    bucket = size_bucket(size)
    assert size <= bucket <= max(size * 1.25, size + 15)
    assert size_bucket(bucket) == bucket
    assert len({size_bucket(other) for other in range(1, 4097)}) <= 30


def test_batches_waste_at_most_a_quarter() -> None:
    """Up to eight rows as they are, then at most a quarter more."""
    assert [batch_bucket(rows) for rows in range(1, 13)] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12]
    for rows in range(1, 1000):
        assert rows <= batch_bucket(rows) <= 1.25 * rows
        assert batch_bucket(batch_bucket(rows)) == batch_bucket(rows)

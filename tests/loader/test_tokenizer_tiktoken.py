"""tokenizer.model of tiktoken, Llama 3's: ids of tiktoken itself, special tokens, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import ranks_of, tiktoken_file

import bombus
from bombus.loader import tiktoken_file as reader

GOLDENS = Path(__file__).parents[1] / "goldens"
BYTES = [bytes([byte]) for byte in range(256)]
SMALL = [*BYTES, b"ab", b"bc", b"abc", b" a", b"x y"]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., bombus.Tokenizer]:
    """`load(tokens, **config)`: the tokenizer of a folder with those ranks and that tokenizer_config.json."""

    def make(tokens: list[bytes], **config: Any) -> bombus.Tokenizer:
        (tmp_path / "tokenizer.model").write_bytes(tiktoken_file(tokens))
        if config:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return bombus.load_tokenizer(tmp_path)

    return make


def test_tiktokens_own_ids(load: Callable[..., bombus.Tokenizer], data: Path) -> None:
    """Two thousand real ranks, words cut as by Llama 3."""
    goldens = json.loads((GOLDENS / "tokenizers.json").read_text())
    tokenizer = load(ranks_of(data / "qwen2-tokenizer" / "tokenizer.json", 2000))
    for text, ids in zip(goldens["texts"], goldens["tiktoken"], strict=True):
        assert tokenizer.encode(text) == [2000, *ids]
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text


def test_merges_by_rank_and_whole_words_first(load: Callable[..., bombus.Tokenizer]) -> None:
    """A word that is a token needs no merges; another one takes the best neighbours, the first of equals."""
    tokenizer = load(SMALL, add_bos_token=False)
    ranks = {token: rank for rank, token in enumerate(SMALL)}

    def ids(*tokens: bytes) -> list[int]:
        return [ranks[token] for token in tokens]

    assert tokenizer.encode("abc") == ids(b"abc")
    assert tokenizer.encode("abbc") == ids(b"ab", b"bc")
    assert tokenizer.encode("bcab") == ids(b"bc", b"ab")
    assert tokenizer.encode("a a") == ids(b"a", b" a")
    assert tokenizer.encode("x y") == ids(b"x", b" ", b"y")  # two words
    assert tokenizer.encode("é") == ids(b"\xc3", b"\xa9")
    # A token of which no two parts are tokens is only ever a whole word.
    whole = load([*SMALL, b"pqr"], add_bos_token=False)
    assert whole.encode("pqr") == [len(SMALL)]
    assert whole.encode("pqrs") == [*b"pqrs"]


def test_words_are_cut_as_by_llama_3(load: Callable[..., bombus.Tokenizer]) -> None:
    """At most three digits; endings whatever their case; line ends with the signs before them, spaces but for one."""
    words = [b"123", b"1234", b"'RE", b"'REd", b"!\n", b"\n\n", b"  ", b" a", b"  a", b"(a"]
    tokenizer = load([*BYTES, *words], add_bos_token=False)

    def cut(text: str) -> list[bytes]:
        return [[*BYTES, *words][number] for number in tokenizer.encode(text)]

    assert cut("1234") == [b"123", b"4"]
    assert cut("'REd") == [b"'RE", b"d"]
    assert cut("!\n") == [b"!\n"]
    assert cut("\n\n") == [b"\n\n"]
    assert cut("   a") == [b"  ", b" a"]
    assert cut("(a") == [b"(a"]


def test_the_special_tokens_of_llama_3(load: Callable[..., bombus.Tokenizer]) -> None:
    tokenizer = load(SMALL)
    first = len(SMALL)
    assert tokenizer.vocab_size == first + 256
    # Meta's tokenizer.py of Llama 3 and 3.1: <|begin_of_text|> is 128000, <|eot_id|> 128009.
    places = {
        "<|begin_of_text|>": 0,
        "<|end_of_text|>": 1,
        "<|reserved_special_token_0|>": 2,
        "<|reserved_special_token_1|>": 3,
        "<|finetune_right_pad_id|>": 4,
        "<|start_header_id|>": 6,
        "<|end_header_id|>": 7,
        "<|eom_id|>": 8,
        "<|eot_id|>": 9,
        "<|python_tag|>": 10,
        "<|reserved_special_token_247|>": 255,
    }
    assert {name: tokenizer.backend.token_to_id(name) for name in places} == {
        name: first + place for name, place in places.items()
    }
    assert tokenizer.special_tokens == {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    assert tokenizer.eos_token_id == first + 1
    prompt = "<|start_header_id|>abc<|end_header_id|>"
    assert tokenizer.encode(prompt) == [first, first + 6, 258, first + 7]
    assert tokenizer.decode(tokenizer.encode(prompt)) == "abc"


def test_a_config_decides(load: Callable[..., bombus.Tokenizer]) -> None:
    """What ends a text, what stands around it, and names of special tokens."""
    first = len(SMALL)
    named = {str(first + 2): {"content": "<|image|>", "special": True}}
    config = {"eos_token": "<|eot_id|>", "add_eos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = load(SMALL, added_tokens_decoder=named, **config)
    assert tokenizer.eos_token_id == first + 9
    assert tokenizer.encode("a<|image|>") == [first, 97, first + 2, first + 9]


@pytest.mark.parametrize("more", [0, 1])
def test_no_more_ranks_than_llama_3_has(
    more: int, load: Callable[..., bombus.Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 4 has 200,000, which words are cut otherwise."""
    assert reader.MAX_RANKS == 128_000
    monkeypatch.setattr(reader, "MAX_RANKS", len(SMALL) - more)
    if not more:
        assert load(SMALL).encode("abc") == [len(SMALL), 258]
        return
    with pytest.raises(bombus.CheckpointError) as caught:
        load(SMALL)
    assert str(caught.value).endswith(
        "tokenizer.model: tokenizer: is not Llama 3's: how another one cuts words, and what its special tokens are, "
        "is not in the file (expected at most 260 ranks, found 261). Save it with a fast tokenizer of transformers, "
        "which writes tokenizer.json"
    )

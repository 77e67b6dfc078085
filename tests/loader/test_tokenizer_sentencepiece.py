"""tokenizer.model of sentencepiece: the ids and texts of sentencepiece itself, options, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import (
    BPE,
    BYTES,
    CHAR,
    CONTROL,
    LLAMA_NORMALIZER,
    LLAMA_TRAINER,
    NORMAL,
    SPECIAL,
    UNIGRAM,
    UNUSED,
    USER_DEFINED,
    WORD,
    field,
    llama_file,
    message,
    sentencepiece_file,
    small_pieces,
)

import bombus

GOLDENS = Path(__file__).parents[1] / "goldens"
SAVE = "Save it with a fast tokenizer of transformers, which writes tokenizer.json"
TEXTS = [
    *("", " ", "  ", "Once upon a time, there was a little girl.", " leading", "trailing  ", "a\nb\n\n c\t"),
    *("many      spaces", "▁ ▁▁", "Bombus terrestris, 熊蜂 🐝", "é ñ ﬁ", "<s>Hello</s>world", "<unk>", "<0x41>"),
]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., bombus.Tokenizer]:
    """`load(file, **config)`: the tokenizer of a folder with that tokenizer.model and tokenizer_config.json."""

    def make(raw: bytes, **config: Any) -> bombus.Tokenizer:
        (tmp_path / "tokenizer.model").write_bytes(raw)
        if config:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return bombus.load_tokenizer(tmp_path)

    return make


def test_a_real_model_is_the_same_as_its_tokenizer_json(load: Callable[..., bombus.Tokenizer], data: Path) -> None:
    expected = bombus.load_tokenizer(data / "stories260K-hf")
    found = load(llama_file(data / "stories260K-hf" / "tokenizer.json"))
    story = (data / "stories260K-hf" / "golden_greedy.txt").read_text(encoding="utf-8")
    wiki = (data / "texts" / "wikitext2_test.txt").read_text(encoding="utf-8")[:20_000]
    for text in (*TEXTS, story, wiki):
        ids = found.encode(text)
        assert ids == expected.encode(text)
        assert found.decode(ids) == expected.decode(ids)
        assert found.decode(ids, skip_special_tokens=False) == expected.decode(ids, skip_special_tokens=False)
    assert found.backend.get_vocab() == expected.backend.get_vocab()
    assert found.special_tokens == expected.special_tokens
    assert (found.vocab_size, found.eos_token_id) == (512, 2)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_models_of_sentencepiece_give_its_ids(kind: str, load: Callable[..., bombus.Tokenizer]) -> None:
    """Trained by sentencepiece: bytes and a piece of its own, or replacements and single spaces."""
    goldens = json.loads((GOLDENS / "tokenizers.json").read_text())
    tokenizer = load((GOLDENS / f"sentencepiece_{kind}.model").read_bytes())
    bos, unknown = 1, 0
    for text, ids, back in zip(goldens["texts"], goldens[kind], goldens[f"{kind} texts"], strict=True):
        assert tokenizer.encode(text) == [bos, *ids]
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        # For the unknown sentencepiece writes a sign, and of spaces at the start it takes away one from each piece.
        if unknown not in ids and not text.startswith("▁"):
            assert tokenizer.decode(ids) == back
    assert any(unknown in ids for ids in goldens["unigram"])
    assert not any(unknown in ids for ids in goldens["bpe"])


def test_pieces_are_merged_by_score_and_from_the_left(load: Callable[..., bombus.Tokenizer]) -> None:
    """`abc` from ab and c, or a and bc; `aaa` of the two a that were merged first."""
    raw = sentencepiece_file(small_pieces(("bc", -1.0), ("ab", -2.0), ("abc", -3.0), ("aa", -4.0), ("aaa", -5.0)))
    tokenizer = load(raw, add_bos_token=False, add_prefix_space=False)

    def pieces(text: str) -> list[str | None]:
        return [tokenizer.backend.id_to_token(number) for number in tokenizer.encode(text)]

    assert pieces("abc") == ["abc"]
    assert pieces("abab") == ["ab", "ab"]
    assert pieces("aaaa") == ["aa", "aa"]
    assert pieces("aaaaa") == ["aa", "aaa"]
    assert pieces("é") == ["<0xC3>", "<0xA9>"]


@pytest.mark.parametrize(
    ("config", "ids", "text"),
    [
        ({}, [1, "▁a", "b"], "ab"),
        ({"add_bos_token": False}, ["▁a", "b"], "ab"),
        ({"add_eos_token": True}, [1, "▁a", "b", 2], "ab"),
        ({"add_bos_token": False, "add_eos_token": True}, ["▁a", "b", 2], "ab"),
        ({"add_prefix_space": False}, [1, "a", "b"], "ab"),
        ({"bos_token": "</s>", "eos_token": {"content": "<s>"}}, [2, "▁a", "b"], "ab"),
        ({}, [1, 1, "▁a", 2, "▁a"], "<s>a</s>a"),
        ({"legacy": True}, [1, 1, "▁a", 2, "▁a"], "<s>a</s>a"),
        ({"legacy": False}, [1, "▁a", 2, "a"], "a</s>a"),
        ({"legacy": False}, [1, 1, "a", 2, "▁a"], "<s>a</s> a"),
    ],
)
def test_what_a_config_puts_around_a_text(
    config: dict[str, Any], ids: list[Any], text: str, load: Callable[..., bombus.Tokenizer]
) -> None:
    tokenizer = load(sentencepiece_file(small_pieces(("▁a", -1.0))), **config)
    expected = [tokenizer.backend.token_to_id(token) if isinstance(token, str) else token for token in ids]
    assert tokenizer.encode(text) == expected
    assert tokenizer.eos_token_id == (1 if "eos_token" in config else 2)
    assert tokenizer.decode(tokenizer.encode("lab tele")) == "lab tele"


def test_roles_of_special_pieces(load: Callable[..., bombus.Tokenizer]) -> None:
    """By the names that the trainer gives, and only where they are control pieces."""
    pieces = [("<u>", 0.0, SPECIAL[0][2]), ("[B]", 0.0, CONTROL), ("[P]", 0.0, CONTROL), ("a", -1.0, NORMAL)]
    tokenizer = load(sentencepiece_file(pieces, trainer={3: BPE, 46: "[B]", 47: "a", 48: "[P]"}))
    assert tokenizer.special_tokens == {"bos_token": "[B]", "pad_token": "[P]", "unk_token": "<u>"}
    assert tokenizer.eos_token_id is None
    assert tokenizer.encode("aéa") == [1, 0, 3, 0, 3]  # the space is no piece
    assert tokenizer.decode([1, 3, 2, 3]) == "aa"


def test_added_tokens_get_their_ids(load: Callable[..., bombus.Tokenizer], tmp_path: Path) -> None:
    raw = sentencepiece_file(small_pieces(("▁a", -1.0)))
    size = len(small_pieces(("▁a", -1.0)))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size + 1, "<img>": size}))
    decoder = {"1": {"content": "<s>", "special": True}, str(size + 2): {"content": "<|im|>", "special": True}}
    tokenizer = load(raw, added_tokens_decoder=decoder, pad_token="<pad>")
    assert tokenizer.encode("a<pad>a<|im|><img>") == [1, size - 1, size + 1, size - 1, size + 2, size]
    assert tokenizer.decode([size + 1, size + 2, size]) == "<img>"  # which alone is not special
    assert tokenizer.vocab_size == size + 3
    with pytest.raises(bombus.CheckpointError) as caught:
        load(raw, added_tokens_decoder={"5": {"content": "<s>"}, "900": {"content": "<x>"}})
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.model'}: 2 problems\n"
        "  - added token '<s>': does not have the id that it should have (expected 5, found 1)\n"
        f"  - added token '<x>': does not have the id that it should have (expected 900, found {size + 2})"
    )
    with pytest.raises(
        bombus.CheckpointError, match=r"added token 'x': must have an id and its text \(found \['<s>'\]"
    ):
        load(raw, added_tokens_decoder={"x": ["<s>"]})


def test_user_defined_pieces_are_found_first(load: Callable[..., bombus.Tokenizer]) -> None:
    pieces = [*small_pieces(("▁a", -1.0)), ("<sep>", 0.0, USER_DEFINED), ("▁▁", 0.0, USER_DEFINED)]
    size = len(pieces)
    numbers = {text: number for number, (text, _, _) in enumerate(pieces)}
    a, b, space, prefixed = (numbers[text] for text in ("a", "b", "▁", "▁a"))
    tokenizer = load(sentencepiece_file(pieces))
    assert tokenizer.encode("a<sep>b") == [1, prefixed, size - 2, b]
    assert tokenizer.encode("<sep>") == [1, space, size - 2]
    assert tokenizer.encode("b  a") == [1, space, b, size - 1, a]
    assert tokenizer.decode([prefixed, size - 2, b, size - 1, a]) == "a<sep>b  a"


def test_what_a_unigram_model_finds_in_text(load: Callable[..., bombus.Tokenizer]) -> None:
    """Never the pieces of bytes; those of its own before better ones; of the others the best in all."""
    letters = [(letter, -3.0, NORMAL) for letter in "<0x41>abc"]
    words = [("ab", -4.0, NORMAL), ("bc", -3.5, NORMAL), ("abc", -7.0, NORMAL), ("cab", -50.0, USER_DEFINED)]
    pieces = [*SPECIAL, *BYTES, *letters, *words]
    raw = sentencepiece_file(pieces, {3: UNIGRAM, 35: True}, {**LLAMA_NORMALIZER, 3: False})
    tokenizer = load(raw, add_bos_token=False)

    def found(text: str) -> list[str]:
        return [pieces[number][0] for number in tokenizer.encode(text)]

    assert found("<0x41>") == [*"<0x41>"]
    assert found("abc") == ["a", "bc"]
    assert found("abcab") == ["ab", "cab"]
    assert found("\u00e9") == ["<0xC3>", "<0xA9>"]


REFUSED: list[tuple[str, bytes, dict[str, Any], str]] = [
    (
        "words",
        sentencepiece_file(SPECIAL, {3: WORD}),
        {},
        f"model_type: is 'word', and only bpe and unigram are implemented. {SAVE}",
    ),
    (
        "characters",
        sentencepiece_file(SPECIAL, {3: CHAR}),
        {},
        f"model_type: is 'char', and only bpe and unigram are implemented. {SAVE}",
    ),
    (
        "spaces at the end",
        sentencepiece_file(SPECIAL, {24: True}),
        {},
        f"treat_whitespace_as_suffix: is set, and not implemented. {SAVE}",
    ),
    (
        "spaces as they are",
        sentencepiece_file(SPECIAL, {}, {5: False}),
        {},
        f"escape_whitespaces: is not set, and not implemented. {SAVE}",
    ),
    (
        "text that is changed back",
        sentencepiece_file(SPECIAL, {}, back=field(5, message({2: b"\0\4\0\0"}))),
        {},
        f"denormalizer_spec: changes text that comes back, which is not implemented. {SAVE}",
    ),
    (
        "unused pieces",
        sentencepiece_file([*SPECIAL, *BYTES, ("a", -1.0, UNUSED), ("b", -1.0, UNUSED)]),
        {},
        f"pieces: 2 are of type unused, first 'a', which is not implemented. {SAVE}",
    ),
    (
        "equal scores",
        sentencepiece_file(small_pieces(("ab", -1.0), ("bc", -1.0), ("cd", -2.0), ("de", -2.0))),
        {},
        "pieces 'ab' and 'bc': have the same score: sentencepiece merges what stands first in a text, which ranked "
        f"merges cannot say; 4 pieces share theirs. {SAVE}",
    ),
    (
        "a letter that is no piece",
        sentencepiece_file(small_pieces(("xy", -1.0))),
        {},
        f"piece 'xy': has a character that is no piece, so that no merge of pieces makes it. {SAVE}",
    ),
    (
        "letters that are no pieces",
        sentencepiece_file(small_pieces(("xy", -1.0), ("ax", -2.0))),
        {},
        "piece 'xy': has a character that is no piece, so that no merge of pieces makes it; there are 2 of this kind. "
        + SAVE,
    ),
    (
        "another class",
        sentencepiece_file(SPECIAL, {3: UNIGRAM}),
        {"tokenizer_class": "XLMRobertaTokenizer"},
        "tokenizer_class 'XLMRobertaTokenizer': may give the pieces of tokenizer.model other ids or add other tokens, "
        f"and is not implemented (expected LlamaTokenizer or CodeLlamaTokenizer or GemmaTokenizer). {SAVE}",
    ),
]


@pytest.mark.parametrize(("raw", "config", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_the_library_cannot_do_is_refused(
    raw: bytes, config: dict[str, Any], text: str, load: Callable[..., bombus.Tokenizer], tmp_path: Path
) -> None:
    with pytest.raises(bombus.CheckpointError) as caught:
        load(raw, **config)
    assert str(caught.value) == f"{tmp_path / 'tokenizer.model'}: {text}"


def test_all_that_is_refused_is_listed(load: Callable[..., bombus.Tokenizer]) -> None:
    with pytest.raises(bombus.CheckpointError) as caught:
        load(sentencepiece_file(small_pieces(("ab", -1.0), ("bc", -1.0)), LLAMA_TRAINER | {24: True}, {5: False}))
    assert [problem.subject for problem in caught.value.problems] == [
        "treat_whitespace_as_suffix",
        "escape_whitespaces",
        "pieces 'ab' and 'bc'",
    ]


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizerFast"])
def test_known_classes(name: str, load: Callable[..., bombus.Tokenizer]) -> None:
    assert load(sentencepiece_file(small_pieces()), tokenizer_class=name).encode("a") != []


def test_tokenizer_json_goes_first(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "stories260K-hf" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    assert bombus.load_tokenizer(tmp_path).vocab_size == 512


def test_runs_of_spaces_are_one_unless_the_model_says_otherwise(load: Callable[..., bombus.Tokenizer]) -> None:
    pieces = small_pieces(("▁a", -1.0))
    text = "  a   a "
    kept = load(sentencepiece_file(pieces))
    assert kept.decode(kept.encode(text)) == text
    single = load(sentencepiece_file(pieces, normalizer={**LLAMA_NORMALIZER, 4: True}))
    assert single.encode(text) == single.encode("a a")
    assert single.decode(single.encode(text)) == "a a"
    assert single.encode("<s>  a </s> a") == [1, 1, single.encode("a")[-1], 2, single.encode("a")[-1]]

"""Tokenizers and chat templates against the libraries that they stand for: sentencepiece, tiktoken, transformers."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CONVERSATIONS, TOOLS, templates, variables
from tokenizer_files import ranks_of, tiktoken_file

import bombus
from bombus.loader import tiktoken_file as reader
from bombus.loader.chat_template import render_chat_template

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

# What makes a difference to a tokenizer: spaces of all kinds, accents that stand alone, letters that are written in
# several ways, signs that span characters, and what looks like a piece.
ALPHABET = [
    *"abehosTt01.,'!<>\n\t\r  ",
    *(
        "\u2581",
        "\xe9",
        "e\u0300",
        "\u0301",
        "\u0308",
        "\ufb01",
        "\uff11",
        "\xb2",
        "\u6f22",
        "\u5b57",
        "\u30ab",
        "\uff76",
    ),
    *("\uff9e", "\ud55c", "\u1112", "\u1161", "\u11ab", "\U0001f41d", "\U0001f469\u200d\U0001f52c", "\u3000", "\xa0"),
    *("\u200b", "\x85", "\u2028", "\u017f", "\u212a", "'s", "'LL", "<sep>", "<0x41>", "\r\n", "the", " and"),
]
SPECIAL = ("<unk>", "<s>", "</s>", "<ctl>")
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
OWN = {"user_defined_symbols": ["<sep>", "\u2581\u2581", "aaa"], "control_symbols": ["<ctl>"], "pad_id": 3}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "split_digits": True, **IDENTITY},
    "llama, no prefix": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, **IDENTITY},
    "pieces of its own": {"model_type": "bpe", "byte_fallback": True, **OWN, **IDENTITY},
    "pieces of its own, no prefix": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, **OWN},
    "pieces over words": {"model_type": "bpe", "split_by_whitespace": False, **IDENTITY},
    "no bytes": {"model_type": "bpe", **IDENTITY},
    "single spaces": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "nmt_nfkc": {"model_type": "bpe"},
    "nfkc": {"model_type": "bpe", "normalization_rule_name": "nfkc", "byte_fallback": True},
    "unigram": {"model_type": "unigram", **IDENTITY},
    "unigram, bytes": {"model_type": "unigram", "byte_fallback": True, **IDENTITY},
    "unigram, pieces of its own": {"model_type": "unigram", "user_defined_symbols": ["<sep>", "\u2581\u2581"]},
    "unigram, nmt_nfkc": {"model_type": "unigram"},
    "unigram, nmt_nfkc_cf": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"},
    "unigram, nfkc_cf": {"model_type": "unigram", "normalization_rule_name": "nfkc_cf"},
}


@pytest.fixture(scope="module")
def texts(data: Path) -> list[str]:
    """Real text and three thousand random ones."""
    chance = random.Random(0)
    shakespeare = (data / "texts" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    wiki = (data / "texts" / "wikitext2_test.txt").read_text(encoding="utf-8")
    pieces = [shakespeare[at : at + chance.randint(1, 300)] for at in range(0, 100_000, 997)]
    made = ["".join(chance.choices(ALPHABET, k=chance.randint(1, 30))) for _ in range(3000)]
    return ["", " ", "   ", "\n\n", shakespeare[:20_000], wiki[:50_000], *pieces, *made]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], bombus.Tokenizer]:
    def make(raw: bytes) -> bombus.Tokenizer:
        folder = tmp_path_factory.mktemp("model")
        (folder / "tokenizer.model").write_bytes(raw)
        return bombus.load_tokenizer(folder)

    return make


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece(name: str, data: Path, texts: Sequence[str], load: Callable[[bytes], bombus.Tokenizer]) -> None:
    """The same ids for every text that spells out no special piece, and the same text back where all is known."""
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = (data / "texts" / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n")
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in lines if line),
        model_writer=file,
        vocab_size=1000,
        minloglevel=2,
        num_threads=1,
        **MODELS[name],
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    ours = load(file.getvalue())
    bytes_too = ("<0x41>",) if name == "unigram, bytes" else ()
    compared = [text for text in texts if not any(special in text for special in (*SPECIAL, *bytes_too))]
    assert len(compared) > 0.7 * len(texts)
    expected = theirs.encode(compared)
    assert [ours.encode(text, add_special_tokens=False) for text in compared] == expected
    assert ours.vocab_size == theirs.vocab_size()
    assert ours.eos_token_id == theirs.eos_id()
    # Of spaces at the start that a text had as signs sentencepiece takes away one from each piece.
    known = [ids for ids, text in zip(expected, compared, strict=True) if 0 not in ids and "\u2581" not in text]
    assert len(known) > 50
    assert [ours.decode(ids) for ids in known] == theirs.decode(known)


@pytest.mark.parametrize("count", [300, 20_000])
def test_tiktoken(count: int, data: Path, texts: Sequence[str], load: Callable[[bytes], bombus.Tokenizer]) -> None:
    """The same ids, special tokens too, for real ranks."""
    tiktoken = pytest.importorskip("tiktoken")
    tokens = ranks_of(data / "qwen2-tokenizer" / "tokenizer.json", count)
    ours = load(tiktoken_file(tokens))
    special = {name: count + place for place, name in enumerate(("<|begin_of_text|>", "<|end_of_text|>"))}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("llama3", pat_str=reader.WORDS, mergeable_ranks=ranks, special_tokens=special)
    for text in (*texts, "a<|end_of_text|> b<|begin_of_text|>"):
        ids = theirs.encode(text, allowed_special="all")
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids, skip_special_tokens=False) == text == theirs.decode(ids)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_chat_templates(conversation: str, data: Path) -> None:
    """The text of transformers, or both fail and say the same."""
    for name, template in templates(data).items():
        given = variables(conversation)
        messages = given.pop("messages")
        render = transformers.utils.chat_template_utils.render_jinja_template
        failure = ""
        try:
            expected = render([messages], chat_template=template, **given)[0][0]
        except Exception as error:
            failure = str(error)
        if failure:
            with pytest.raises(bombus.GenerationError) as caught:
                render_chat_template(template, variables(conversation))
            assert str(caught.value).endswith(failure)
        else:
            assert render_chat_template(template, variables(conversation)) == expected, name


def test_qwen3s_tokenizer_writes_the_same_prompts(data: Path, tmp_path: Path) -> None:
    """Through apply_chat_template of both, with special tokens, and the ids of the prompts."""
    shutil.copy(data / "qwen2-tokenizer" / "tokenizer.json", tmp_path)
    shutil.copy(data / "qwen2-tokenizer" / "qwen3_tokenizer_config.json", tmp_path / "tokenizer_config.json")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), bombus.load_tokenizer(tmp_path)
    for conversation in CONVERSATIONS.values():
        given = {key: value for key, value in conversation.items() if key != "messages"}
        given = {"add_generation_prompt": True, **given}
        for more in ({}, {"enable_thinking": False}, {"tools": TOOLS}):
            options = {**given, **more}
            expected = theirs.apply_chat_template(conversation["messages"], tokenize=False, **options)
            found = ours.apply_chat_template(conversation["messages"], **options)
            assert found == expected
            assert ours.encode(found) == theirs(found)["input_ids"]

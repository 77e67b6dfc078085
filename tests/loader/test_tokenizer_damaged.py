"""Damaged files in the place of tokenizer.model: each one error of ours, with the place in the file."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizer_files import (
    BPE,
    BYTE,
    BYTES,
    LLAMA_NORMALIZER,
    NORMAL,
    SPECIAL,
    field,
    message,
    piece,
    sentencepiece_file,
    small_pieces,
    tiktoken_file,
    varint,
)

import bombus
from bombus.loader import tokenizer_model
from bombus.loader.tokenizer_model import read_tokenizer_model

GOLDENS = Path(__file__).parents[1] / "goldens"
AGAIN = "Download the file again, for example with `hf download`"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 499723\n"
ALL = [bytes([byte]) for byte in range(256)]
WHOLE = sentencepiece_file(small_pieces(("ab", -1.0)))


def trie(*units: int, texts: bytes = b"x\0", size: int | None = None) -> bytes:
    """A model with a precompiled_charsmap: units of its trie, filled up to 256, and its texts."""
    raw = b"".join(unit.to_bytes(4, "little") for unit in (*units, *[0] * (256 - len(units))))
    charsmap = (len(raw) if size is None else size).to_bytes(4, "little") + raw + texts
    return sentencepiece_file(SPECIAL, {3: BPE}, {**LLAMA_NORMALIZER, 2: charsmap})


# (name, the file's bytes, what the message says after "is not a valid tokenizer: ").
INVALID = [
    ("cut in a length", b"\n\x80", "it ends early, in the number at byte 1"),
    ("cut in a piece", b"\n\x50abc", "it ends early: 80 bytes are announced at byte 0, and 3 are there"),
    ("cut in a field of a piece", b"\n\x02\n\x05", "it ends early: 5 bytes are announced at byte 2, and 0 are there"),
    (
        "a field longer than its piece",
        b"\n\x02\n\x05" + piece("abcde"),
        "it ends early: 5 bytes are announced at byte 2, and 0 are there",
    ),
    ("a number of 70 bits", b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "the number at byte 1 has more than 64"),
    (
        "a number of 65 bits",
        b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
        "the number at byte 1 has more than 64 bits",
    ),
    ("field 0", b"\n\x00" + varint(2), "piece 0 must have from 1 to 512 characters"),
    ("field 0 after a piece", piece("a") + varint(2), "there is no field number 0, which stands at byte 12"),
    ("a group", piece("a") + varint(9 << 3 | 3), "byte 12 has wire type 3, which is not known"),
    ("a trainer that is a number", piece("a") + field(2, 5), "trainer at byte 12 has wire type 0"),
    ("a score that is a number", field(1, message({1: "a", 2: 5})), "score at byte 5 has wire type 0"),
    ("a type that is a text", field(1, message({1: "a", 3: "b"})), "kind at byte 5 has wire type 2"),
    ("not UTF-8", field(1, message({1: b"\xff\xfe"})), "text at byte 2 is not UTF-8: 'utf-8' codec can't decode byte"),
    ("an empty piece", piece(""), "piece 0 must have from 1 to 512 characters"),
    ("a long piece", piece("a" * 513), "piece 0 must have from 1 to 512 characters"),
    ("a type of piece", piece("a", 0.0, 7), "the type of piece 0 is 7, which is not known"),
    ("a negative type of piece", piece("a", 0.0, -1), "the type of piece 0 is -1, which is not known"),
    ("NaN", piece("a", float("nan")), "piece 0 has the score nan"),
    ("infinity", piece("a", float("-inf")), "piece 0 has the score -inf"),
    ("a type of model", sentencepiece_file(SPECIAL, {3: 9}), "the model type is 9, which is not known"),
    ("a truth value of 2", sentencepiece_file(SPECIAL, {35: 2}), "byte_fallback at byte 47 is 2, not true or false"),
    ("two trainers", WHOLE + field(2, b""), f"trainer stands twice, the second time at byte {len(WHOLE) + 2}"),
    ("no unknown piece", piece("a"), "it has 0 pieces of type unknown, and must have 1"),
    ("two unknown pieces", piece("a", 0.0, 2) + piece("b", 0.0, 2), "it has 2 pieces of type unknown, and must have 1"),
    ("a piece twice", sentencepiece_file([*SPECIAL, *SPECIAL]), "pieces 0 and 3 are both '<unk>'"),
    (
        "a byte that is none",
        sentencepiece_file([*SPECIAL, ("<0x0a>", 0.0, BYTE)]),
        "piece 3 is of type byte, but it is",
    ),
    (
        "bytes missing",
        sentencepiece_file([*SPECIAL, *BYTES[1:]]),
        "it falls back to bytes, and lacks 1 of the 256, first <0x00>",
    ),
    (
        "a byte that is a word",
        sentencepiece_file([*SPECIAL, *BYTES[:-1], ("<0xFF>", 0.0, NORMAL)]),
        "it falls back to bytes, and lacks 1 of the 256, first <0xFF>",
    ),
    ("replacements cut short", trie(size=2048), "precompiled_charsmap is cut short"),
    ("half a block of replacements", trie(size=1020), "precompiled_charsmap is cut short"),
    ("no replacements", trie(size=0), "precompiled_charsmap is cut short"),
    ("a root that is a value", trie(1 << 31), "the trie of precompiled_charsmap leaves its array"),
    ("a step out of the array", trie(1 << 20), "the trie of precompiled_charsmap leaves its array"),
    (
        "a text out of the texts",
        trie(1 << 10 | 1 << 8, 1 << 31 | 7),
        "the trie of precompiled_charsmap leaves its texts",
    ),
    ("a text without an end", trie(1 << 10 | 1 << 8, texts=b"x"), "the trie of precompiled_charsmap leaves its texts"),
    (
        "a text from within a letter",
        trie(1 << 10 | 1 << 8, 1 << 31 | 1, texts=b"\xc3\xa9\0"),
        "the trie of precompiled_charsmap leaves its texts",
    ),
    ("texts that are not UTF-8", trie(texts=b"\xff\0"), "the texts of precompiled_charsmap are not UTF-8"),
    ("a token that is not base64", b"YQ= 0\n", "line 1 is not base64: "),
    ("a line that is cut", tiktoken_file(ALL)[:-4], "line 256 is not a token in base64 and its rank: b'/w== '"),
    (
        "a negative rank",
        tiktoken_file(ALL) + b"YWI= -1\n",
        "line 257 is not a token in base64 and its rank: b'YWI= -1'",
    ),
    ("an empty line", tiktoken_file(ALL) + b"\n", "line 257 is not a token in base64 and its rank: b''"),
    ("a rank twice", tiktoken_file(ALL) + b"YWI= 7\n", "rank 7 stands twice, the second time in line 257"),
    ("a rank that is missing", tiktoken_file(ALL) + b"YWI= 257\n", "rank 256 is missing"),
    ("a token twice", tiktoken_file([*ALL, b"a"]), "1 tokens stand twice"),
    ("bytes that are missing", tiktoken_file([*ALL[:-2], b"ab"]), "it has 254 of the 256 single bytes"),
    ("a long token", tiktoken_file([*ALL, b"a" * 513]), "the token of line 257 has 513 bytes, and may have 512"),
]


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], str]:
    """`refused(file)`: what is said of it, after its name."""

    def read(raw: bytes) -> str:
        path = tmp_path / "tokenizer.model"
        path.write_bytes(raw)
        with pytest.raises(bombus.CheckpointError) as caught:
            bombus.load_tokenizer(tmp_path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        return text.removeprefix(f"{path}: ")

    return read


@pytest.mark.parametrize(("raw", "text"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID])
def test_a_damaged_file_is_refused_by_place(raw: bytes, text: str, refused: Callable[[bytes], str]) -> None:
    found = refused(raw)
    assert found.startswith(f"file: is not a valid tokenizer: {text}")
    assert found.endswith(f". {AGAIN}")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", f"file: is empty. {AGAIN}"),
        (LFS, "file: is a Git LFS pointer, not the tokenizer. Run `git lfs pull` in the folder, or download the file "),
        (b"\n <!DOCTYPE html><html>", f"file: is an HTML page, not the tokenizer. {AGAIN}"),
        (
            b'{"model": {}}',
            f"file: is neither a sentencepiece model nor a file of tiktoken (found b'{{\"model\": {{}}}}'). {AGAIN}",
        ),
        (b"\x80\x04\x95", "file: is neither a sentencepiece model nor a file of tiktoken (found b'\\x80\\x04\\x95'). "),
    ],
)
def test_what_stands_in_its_place_is_named(raw: bytes, text: str, refused: Callable[[bytes], str]) -> None:
    assert refused(raw).startswith(text)


def test_a_file_that_is_too_large(refused: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_model, "_MAX_BYTES", len(WHOLE) - 1)
    assert refused(WHOLE) == (
        f"file: is too large for a tokenizer (expected at most {len(WHOLE) - 1} bytes, found {len(WHOLE)}). {AGAIN}"
    )
    monkeypatch.setattr(tokenizer_model, "_MAX_BYTES", len(WHOLE))
    assert refused(WHOLE[:-1]).startswith("file: is not a valid tokenizer: it ends early")


def test_fields_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(
        WHOLE + field(200, "new") + field(201, 7) + field(202, 1.5) + varint(203 << 3 | 1) + b"8 bytes!"
    )
    assert bombus.load_tokenizer(tmp_path).encode("ab") != []


def test_nothing_but_our_error_comes_of_damage(tmp_path: Path) -> None:
    """Bytes of whole files changed, taken out and put in, six hundred times; what is read can be used."""
    path = tmp_path / "tokenizer.model"
    whole = [path.read_bytes() for path in sorted(GOLDENS.glob("sentencepiece_*.model"))]
    whole += [trie(1 << 10 | 1 << 8, 1 << 31), tiktoken_file([*ALL, b"ab"])]
    chance = random.Random(0)
    read = 0
    for _ in range(600):
        raw = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 1, 3))):
            start = chance.randrange(len(raw))
            stop = min(start + chance.choice((0, 1, 1, 30)), len(raw))
            raw[start:stop] = chance.randbytes(chance.choice((stop - start, stop - start, 0, 5)))
        path.write_bytes(raw)
        with contextlib.suppress(bombus.CheckpointError):
            found = read_tokenizer_model(path, config={}, special_tokens={}, added={})
            text = "To be, e\u0301 \u20ac \U0001f41d\n"
            found.backend.decode(found.backend.encode(found.normalize(text) if found.normalize else text).ids)
            read += 1
    assert 30 < read < 450


def test_a_field_that_is_left_out_has_the_formats_value(tmp_path: Path) -> None:
    """Without trainer and normalizer: unigram, with a space before, and single spaces."""
    (tmp_path / "tokenizer.model").write_bytes(
        b"".join(piece(*entry) for entry in [*SPECIAL, ("▁", -1.0, NORMAL), ("a", -2.0, NORMAL), ("▁a", -2.5, NORMAL)])
    )
    assert bombus.load_tokenizer(tmp_path).encode("a   a ") == [1, 5, 5]

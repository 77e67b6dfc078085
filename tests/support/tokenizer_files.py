"""tokenizer.model files written for the tests: sentencepiece's ModelProto, field by field, and tiktoken's lines."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bombus.loader.tiktoken_file import _letters_of_bytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE, WORD, CHAR = range(1, 5)
# Meta's own settings, of Llama 1 and 2.
LLAMA_TRAINER = {3: BPE, 35: True}
LLAMA_NORMALIZER: Mapping[int, Any] = {1: "identity", 3: True, 4: False, 5: True}
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
SPECIAL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]


def varint(value: int) -> bytes:
    """A number, seven bits a byte, the low ones first."""
    value %= 1 << 64
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def field(number: int, value: Any) -> bytes:
    """A field: a text, bytes, a message's bytes, a float, a number or a truth value."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def message(fields: Mapping[int, Any]) -> bytes:
    """Fields by number, one after the other."""
    return b"".join(field(number, value) for number, value in fields.items())


def piece(text: str, score: float = 0.0, kind: int = NORMAL) -> bytes:
    """An entry of the vocabulary, as a field of the model."""
    return field(1, message({1: text, 2: score, 3: kind}))


def sentencepiece_file(
    pieces: Iterable[tuple[str, float, int]],
    trainer: Mapping[int, Any] = LLAMA_TRAINER,
    normalizer: Mapping[int, Any] = LLAMA_NORMALIZER,
    **more: bytes,
) -> bytes:
    """A model; `more` is what comes after it."""
    body = b"".join(piece(*entry) for entry in pieces)
    return body + field(2, message(trainer)) + field(3, message(normalizer)) + b"".join(more.values())


def small_pieces(*merged: tuple[str, float]) -> list[tuple[str, float, int]]:
    """The special pieces, those of the 256 bytes, some letters, and pieces that are merged of them."""
    letters = [(letter, -100.0 - place, NORMAL) for place, letter in enumerate("▁abcdehlost")]
    return [*SPECIAL, *BYTES, *letters, *((text, score, NORMAL) for text, score in merged)]


def llama_file(tokenizer_json: Path) -> bytes:
    """The tokenizer.model of which a tokenizer.json of Llama's kind was made: the rank of a merge is its score."""
    model = json.loads(tokenizer_json.read_text(encoding="utf-8"))["model"]
    scores: dict[str, float] = {}
    for rank, pair in enumerate(model["merges"]):
        scores.setdefault("".join(pair), -float(rank))
    kinds = {text: kind for text, _, kind in [*SPECIAL, *BYTES]}
    ordered = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return sentencepiece_file(
        (text, scores.get(text, -1e4 - place), kinds.get(text, NORMAL)) for place, text in enumerate(ordered)
    )


def ranks_of(tokenizer_json: Path, count: int) -> list[bytes]:
    """The first tokens of a byte-level tokenizer.json, whose ids are ranks."""
    vocab = json.loads(tokenizer_json.read_text(encoding="utf-8"))["model"]["vocab"]
    bytes_of = {letter: byte for byte, letter in enumerate(_letters_of_bytes())}
    ordered = sorted(vocab, key=vocab.__getitem__)[:count]
    return [bytes(map(bytes_of.__getitem__, token)) for token in ordered]


def tiktoken_file(tokens: Sequence[bytes]) -> bytes:
    """Lines of a token and its rank."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))

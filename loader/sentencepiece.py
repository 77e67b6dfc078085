"""A strict reader of sentencepiece's model files: the message ModelProto in the wire format of protocol buffers.

Source: sentencepiece_model.proto of the sentencepiece project, and the encoding guide of protocol buffers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_PIECES = 1 << 20  # four times the largest vocabulary of a published model
_MAX_PIECE = 512
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user_defined", 5: "unused", 6: "byte"}
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

# Number -> (name, type). Every other field is read past: it has no say in how text becomes ids.
_MODEL = {
    1: ("pieces", "message"),
    2: ("trainer", "message"),
    3: ("normalizer", "message"),
    5: ("denormalizer", "message"),
}
_PIECE = {1: ("text", "text"), 2: ("score", "float"), 3: ("kind", "integer")}
_TRAINER = {
    3: ("model_type", "integer"),
    24: ("whitespace_as_suffix", "flag"),
    35: ("byte_fallback", "flag"),
    46: ("bos_piece", "text"),
    47: ("eos_piece", "text"),
    48: ("pad_piece", "text"),
}
_NORMALIZER = {
    1: ("name", "text"),
    2: ("charsmap", "bytes"),
    3: ("add_dummy_prefix", "flag"),
    4: ("remove_extra_whitespaces", "flag"),
    5: ("escape_whitespaces", "flag"),
}
_WIRES = {"message": _DELIMITED, "text": _DELIMITED, "bytes": _DELIMITED, "float": _FIXED32}


class Malformed(ValueError):
    """Why bytes are not a sentencepiece model; the caller knows the file."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An entry of the vocabulary; its id is its place. kind: normal, unknown, control, user_defined, unused, byte."""

    text: str
    score: float = 0.0
    kind: str = "normal"


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What of a model file decides how text becomes ids and ids become text. The defaults are the format's.

    charsmap: a trie of what is replaced before anything else, empty for none; denormalizer_charsmap: the same for
    text that comes back.
    """

    pieces: tuple[Piece, ...]
    model_type: str = "unigram"
    whitespace_as_suffix: bool = False
    byte_fallback: bool = False
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"
    pad_piece: str = "<pad>"
    normalizer: str = ""
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    denormalizer_charsmap: bytes = b""


def parse_model(data: bytes) -> SentencePieceModel:
    """The SentencePieceModel in a file's bytes. Raises Malformed."""
    pieces: list[Piece] = []
    parts: dict[str, dict[str, Any]] = {}
    for name, (start, stop) in _known(data, 0, len(data), _MODEL):
        if name == "pieces":
            if len(pieces) == _MAX_PIECES:
                raise Malformed(f"it has more than {_MAX_PIECES:,} pieces")
            pieces.append(_piece(data, start, stop, len(pieces)))
        elif name in parts:
            raise Malformed(f"{name} stands twice, the second time at byte {start}")
        else:
            parts[name] = dict(_known(data, start, stop, _TRAINER if name == "trainer" else _NORMALIZER))
    fields = parts.get("trainer", {}) | parts.get("normalizer", {})
    if "name" in fields:
        fields["normalizer"] = fields.pop("name")
    if "model_type" in fields:
        fields["model_type"] = _named(fields["model_type"], _MODEL_TYPES, "model type")
    model = SentencePieceModel(
        pieces=tuple(pieces),
        denormalizer_charsmap=parts.get("denormalizer", {}).get("charsmap", b""),
        **fields,
    )
    _check(model)
    return model


def _piece(data: bytes, start: int, stop: int, number: int) -> Piece:
    fields = dict(_known(data, start, stop, _PIECE))
    if "kind" in fields:
        fields["kind"] = _named(fields["kind"], _KINDS, f"type of piece {number}")
    if not 0 < len(fields.get("text", "")) <= _MAX_PIECE:
        raise Malformed(f"piece {number} must have from 1 to {_MAX_PIECE} characters")
    if not math.isfinite(fields.get("score", 0.0)):
        raise Malformed(f"piece {number} has the score {fields['score']}")
    return Piece(**fields)


def _named(value: int, names: Mapping[int, str], what: str) -> str:
    if value not in names:
        raise Malformed(f"the {what} is {value}, which is not known")
    return names[value]


def _check(model: SentencePieceModel) -> None:
    seen: dict[str, int] = {}
    for number, piece in enumerate(model.pieces):
        if piece.text in seen:
            raise Malformed(f"pieces {seen[piece.text]} and {number} are both {piece.text!r}")
        seen[piece.text] = number
    unknown = sum(piece.kind == "unknown" for piece in model.pieces)
    if unknown != 1:
        raise Malformed(f"it has {unknown} pieces of type unknown, and must have 1")
    for number, piece in enumerate(model.pieces):
        if piece.kind == "byte" and piece.text not in BYTE_PIECES:
            raise Malformed(f"piece {number} is of type byte, but it is {piece.text!r}")
    if model.byte_fallback:
        missing = [text for text in BYTE_PIECES if text not in seen or model.pieces[seen[text]].kind != "byte"]
        if missing:
            raise Malformed(f"it falls back to bytes, and lacks {len(missing)} of the 256, first {missing[0]}")


def _known(data: bytes, start: int, stop: int, fields: Mapping[int, tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """(name, value) of the known fields of a message; of a message within, where it starts and stops."""
    at = start
    while at < stop:
        first = at
        key, at = _varint(data, at, stop)
        number, wire = key >> 3, key & 7
        name, kind = fields.get(number, ("", ""))
        if not 0 < number < 1 << 29:
            raise Malformed(f"there is no field number {number}, which stands at byte {first}")
        if name and wire != _WIRES.get(kind, _VARINT):
            raise Malformed(f"{name} at byte {first} has wire type {wire}")
        if wire == _VARINT:
            value, at = _varint(data, at, stop)
            if name:
                yield name, _integer(value, kind, name, first)
            continue
        if wire == _DELIMITED:
            length, at = _varint(data, at, stop)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise Malformed(f"byte {first} has wire type {wire}, which is not known")
        if length > stop - at:
            raise Malformed(f"it ends early: {length} bytes are announced at byte {first}, and {stop - at} are there")
        if kind == "message":
            yield name, (at, at + length)
        elif name:
            yield name, _value(data[at : at + length], kind, name, first)
        at += length


def _integer(value: int, kind: str, name: str, at: int) -> int | bool:
    if kind == "flag":
        if value > 1:
            raise Malformed(f"{name} at byte {at} is {value}, not true or false")
        return bool(value)
    return value - (1 << 64) if value >> 63 else value


def _value(raw: bytes, kind: str, name: str, at: int) -> Any:
    if kind == "float":
        return struct.unpack("<f", raw)[0]
    if kind == "bytes":
        return raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"{name} at byte {at} is not UTF-8: {error}") from error


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= stop:
            raise Malformed(f"it ends early, in the number at byte {at}")
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + place + 1
    raise Malformed(f"the number at byte {at} has more than 64 bits")

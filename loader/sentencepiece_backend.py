"""A sentencepiece model as a tokenizer of the tokenizers library: the same ids for the same text, or a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from bombus.loader.merges import derive_merges
from bombus.loader.sentencepiece import Piece, SentencePieceModel
from bombus.loader.sentencepiece_normalizer import TextNormalizer
from bombus.loader.tiktoken_file import INSTEAD
from bombus.policies.errors import Problem

_SPACE = "▁"  # what sentencepiece writes for a space
# Below every real score: the library matches these entries in text, which sentencepiece never does.
_NEVER = -1e9


def build_backend(
    model: SentencePieceModel, *, prefix: Literal["every", "first", "none"], special: Sequence[str] = ()
) -> tuple[tokenizers.Tokenizer, TextNormalizer | None]:
    """(backend, what a text goes through before it) of a model that `unsupported` has nothing against.

    prefix: where a space goes before a text, see TextNormalizer. special: tokens beside the model's own.
    None for what the backend does itself. It puts no special tokens around a text. Raises Malformed.

    Control pieces are found in text, as in every tokenizer.json of such models and unlike in sentencepiece: a chat
    template writes them as text.
    """
    is_bpe = model.model_type == "bpe"
    backend = tokenizers.Tokenizer(_bpe(model) if is_bpe else _unigram(model))
    own, user_defined = _texts(model, "unknown", "control"), _texts(model, "user_defined")
    replaces = bool(model.charsmap or model.remove_extra_whitespaces)
    # The library normalizes what it looks for in a normalized text as well, which would give that a prefix too.
    simple = prefix == "every" and not replaces and not (is_bpe and user_defined)
    before = [normalizers.Prepend(_SPACE)] if simple else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix != "none" or model.remove_extra_whitespaces else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in own])
    if is_bpe:
        backend.add_tokens([AddedToken(text, normalized=True, special=False) for text in user_defined])
    if simple or (prefix == "none" and not replaces):
        return backend, None
    return backend, TextNormalizer(
        special=[*own, *special],
        kept=user_defined,
        charsmap=model.charsmap,
        single_spaces=model.remove_extra_whitespaces,
        prefix=prefix,
    )


def unsupported(model: SentencePieceModel) -> list[Problem]:
    """What of a model the tokenizers library cannot do as sentencepiece does it."""
    problems = []

    def refuse(subject: str, message: str) -> None:
        problems.append(Problem(subject=subject, message=message, remedy=INSTEAD))

    if model.model_type not in ("bpe", "unigram"):
        refuse("model_type", f"is {model.model_type!r}, and only bpe and unigram are implemented")
    if model.whitespace_as_suffix:
        refuse("treat_whitespace_as_suffix", "is set, and not implemented")
    if not model.escape_whitespaces:
        refuse("escape_whitespaces", "is not set, and not implemented")
    if model.denormalizer_charsmap:
        refuse("denormalizer_spec", "changes text that comes back, which is not implemented")
    unused = _texts(model, "unused")
    if unused:
        refuse("pieces", f"{len(unused)} are of type unused, first {unused[0]!r}, which is not implemented")
    if model.model_type == "bpe":
        problems += _unlike_merges(model)
    return problems


def _unlike_merges(model: SentencePieceModel) -> Iterator[Problem]:
    """Where the pieces of a BPE model say something that ranked pairs of pieces cannot."""
    normal = [piece for piece in model.pieces if piece.kind == "normal"]
    # A character that is user-defined is never in a merge, here or there.
    characters = {text for text in _texts(model, "normal", "user_defined") if len(text) == 1}
    lost = [piece.text for piece in normal if not characters.issuperset(piece.text)]
    if lost:
        yield Problem(
            subject=f"piece {lost[0]!r}",
            message="has a character that is no piece, so that no merge of pieces makes it"
            + (f"; there are {len(lost)} of this kind" if len(lost) > 1 else ""),
            remedy=INSTEAD,
        )
    by_score: dict[float, list[str]] = {}
    for piece in normal:
        if len(piece.text) > 1:
            by_score.setdefault(piece.score, []).append(piece.text)
    tied = [texts for texts in by_score.values() if len(texts) > 1]
    if tied:
        yield Problem(
            subject=f"pieces {tied[0][0]!r} and {tied[0][1]!r}",
            message="have the same score: sentencepiece merges what stands first in a text, which ranked merges "
            f"cannot say; {sum(map(len, tied))} pieces share theirs",
            remedy=INSTEAD,
        )


def _bpe(model: SentencePieceModel) -> models.BPE:
    normal = sorted((piece for piece in model.pieces if piece.kind == "normal"), key=lambda piece: -piece.score)
    return models.BPE(
        vocab={piece.text: number for number, piece in enumerate(model.pieces)},
        merges=derive_merges([piece.text for piece in normal], {piece.text for piece in normal}),
        unk_token=_texts(model, "unknown")[0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceModel) -> models.Unigram:
    best = max((piece.score for piece in model.pieces if piece.kind == "normal"), default=0.0)

    def score(piece: Piece) -> float:
        if piece.kind == "user_defined":  # nearly always chosen: sentencepiece's own rule
            return max(best, 0.0) * len(piece.text.encode()) - 0.1
        return piece.score if piece.kind == "normal" else _NEVER

    return models.Unigram(
        vocab=[(piece.text, score(piece)) for piece in model.pieces],
        unk_id=next(number for number, piece in enumerate(model.pieces) if piece.kind == "unknown"),
        byte_fallback=model.byte_fallback,
    )


def _texts(model: SentencePieceModel, *kinds: str) -> list[str]:
    return [piece.text for piece in model.pieces if piece.kind in kinds]

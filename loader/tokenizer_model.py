"""tokenizer.model, which Meta's layout has for tokenizer.json: of sentencepiece (Llama 1, 2) or tiktoken (Llama 3)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, processors

from bombus.loader import sentencepiece_backend, tiktoken_file
from bombus.loader.sentencepiece import SentencePieceModel, parse_model
from bombus.loader.sniff import AGAIN, placeholder
from bombus.policies.errors import CheckpointError, Problem

_MAX_BYTES = 32_000_000  # the largest of a published model has 5 million
# What these add around a text is known. Others (XLM-RoBERTa's, ALBERT's) give the pieces other ids.
_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")


@dataclass(frozen=True, kw_only=True)
class TokenizerModel:
    """What a tokenizer.model gives: a backend, what a text goes through before it, the special tokens by role."""

    backend: tokenizers.Tokenizer
    normalize: Callable[[str], str] | None
    special_tokens: Mapping[str, str]


def read_tokenizer_model(
    path: Path,
    *,
    config: Mapping[str, Any],
    special_tokens: Mapping[str, str],
    added: Mapping[int, AddedToken],
) -> TokenizerModel:
    """The TokenizerModel of a file, of either kind.

    config: the fields of tokenizer_config.json; a text gets the begin token before it unless they say otherwise.
    special_tokens: by role, where they are not what the file says. added: tokens beside the file's own, by id.
    Raises CheckpointError with all that is wrong.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        problem = Problem(subject="file", message=f"cannot be read: {error.strerror or error}")
        raise CheckpointError(problem, where=str(path)) from error
    if len(data) > _MAX_BYTES:
        problem = Problem(
            subject="file",
            message="is too large for a tokenizer",
            expected=f"at most {_MAX_BYTES} bytes",
            found=f"{size}",
            remedy=AGAIN,
        )
        raise CheckpointError(problem, where=str(path))
    instead = placeholder(data[:1000])
    if instead is not None:
        problem = replace(instead, message=instead.message.replace("the weights", "the tokenizer"))
        raise CheckpointError(problem, where=str(path))
    normalize = None
    try:
        if tiktoken_file.is_tiktoken(data[:2000]):
            names = {number: token.content for number, token in added.items()}
            ranked = tiktoken_file.parse_ranks(data)
            if problems := tiktoken_file.unsupported(ranked):
                raise CheckpointError(problems, where=str(path))
            backend = tiktoken_file.build_backend(ranked, names=names)
            roles = dict(tiktoken_file.SPECIAL_TOKENS)
        elif data.startswith(b"\n"):  # field 1 of the message, with a length: the first piece
            model = parse_model(data)
            if problems := [*_unknown_class(config), *sentencepiece_backend.unsupported(model)]:
                raise CheckpointError(problems, where=str(path))
            extra = [token.content for token in added.values() if not token.normalized]
            prefix = _prefix(model, config)
            backend, normalize = sentencepiece_backend.build_backend(model, prefix=prefix, special=extra)
            roles = _roles(model)
        else:
            raise CheckpointError(_neither(data), where=str(path))
    except CheckpointError:
        raise
    except Exception as error:  # ours say Malformed or NotRanks; the library raises plain Exception
        problem = Problem(subject="file", message=f"is not a valid tokenizer: {error}", remedy=AGAIN)
        raise CheckpointError(problem, where=str(path)) from error
    roles |= special_tokens
    _add(backend, added, path)
    _surround(backend, roles, config, path)
    return TokenizerModel(backend=backend, normalize=normalize, special_tokens=roles)


def _unknown_class(config: Mapping[str, Any]) -> Iterator[Problem]:
    name = config.get("tokenizer_class")
    if name is not None and str(name).removesuffix("Fast") not in _CLASSES:
        yield Problem(
            subject=f"tokenizer_class {name!r}",
            message="may give the pieces of tokenizer.model other ids or add other tokens, and is not implemented",
            expected=" or ".join(_CLASSES),
            remedy=tiktoken_file.INSTEAD,
        )


def _neither(data: bytes) -> Problem:
    return Problem(
        subject="file",
        message="is neither a sentencepiece model nor a file of tiktoken" if data else "is empty",
        found=repr(data[:40]) if data else None,
        remedy=AGAIN,
    )


def _prefix(model: SentencePieceModel, config: Mapping[str, Any]) -> Literal["every", "first", "none"]:
    wanted = config.get("add_prefix_space")
    if not (wanted if isinstance(wanted, bool) else model.add_dummy_prefix):
        return "none"
    # Not after a special token: the way of LlamaTokenizer that `legacy` is the opposite of.
    return "first" if config.get("legacy") is False else "every"


def _roles(model: SentencePieceModel) -> dict[str, str]:
    control = {piece.text for piece in model.pieces if piece.kind == "control"}
    roles = {"bos_token": model.bos_piece, "eos_token": model.eos_piece, "pad_token": model.pad_piece}
    unknown = next(piece.text for piece in model.pieces if piece.kind == "unknown")
    return {role: piece for role, piece in roles.items() if piece in control} | {"unk_token": unknown}


def _add(backend: tokenizers.Tokenizer, added: Mapping[int, AddedToken], path: Path) -> None:
    """Adds tokens, which get the ids after the last one, and so must have these."""
    problems = []
    for number, token in sorted(added.items()):
        known = backend.token_to_id(token.content)
        if known is None:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
            known = backend.token_to_id(token.content)
        if known != number:
            problems.append(
                Problem(
                    subject=f"added token {token.content!r}",
                    message="does not have the id that it should have",
                    expected=str(number),
                    found=str(known),
                )
            )
    if problems:
        raise CheckpointError(problems, where=str(path))


def _surround(
    backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], config: Mapping[str, Any], path: Path
) -> None:
    """Has a text begin, and end, with the tokens that say so."""
    first = _token(backend, special_tokens.get("bos_token")) if config.get("add_bos_token", True) else []
    last = _token(backend, special_tokens.get("eos_token")) if config.get("add_eos_token", False) else []
    around = dict([*first, *last])
    for name in around:
        if name.startswith("$") or ":" in name:  # to the library it would be another word than a token
            problem = Problem(
                subject=f"token {name!r}", message="cannot be put around a text", expected="no $ and no :"
            )
            raise CheckpointError(problem, where=str(path))
    if around:
        names_first, names_last = [name for name, _ in first], [name for name, _ in last]
        backend.post_processor = processors.TemplateProcessing(
            single=[*names_first, "$A", *names_last],
            pair=[*names_first, "$A", *names_last, *names_first, "$B", *names_last],
            special_tokens=list(around.items()),
        )


def _token(backend: tokenizers.Tokenizer, name: str | None) -> Sequence[tuple[str, int]]:
    number = None if name is None else backend.token_to_id(name)
    return [] if name is None or number is None else [(name, number)]

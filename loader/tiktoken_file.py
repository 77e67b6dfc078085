"""The tokenizer.model of Llama 3: lines of a token in base64 and its rank, as OpenAI's tiktoken reads them.

Source: Meta's llama3 and llama-models, tokenizer.py. The file says nothing of the pattern that cuts text into words,
nor of the special tokens: those of Llama 3 stand here. Special tokens follow the ranks.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from bombus.loader.merges import derive_merges
from bombus.policies.errors import Problem

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (0|[1-9][0-9]{0,8})\r?")
_MAX_TOKEN = 512  # bytes; the longest of Llama 3 has 128
MAX_RANKS = 128_000
INSTEAD = "save it with a fast tokenizer of transformers, which writes tokenizer.json"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Of Llama 3.1, which gives names to more of the 256 than Llama 3; the others are reserved in both.
_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
_NUM_SPECIAL = 256
SPECIAL_TOKENS: Mapping[str, str] = {"bos_token": _NAMED[0], "eos_token": _NAMED[1]}


class NotRanks(ValueError):
    """Why bytes are not a file of tokens and ranks; the caller knows the file."""


def is_tiktoken(start: bytes) -> bool:
    """Whether a file starts with a line of a token and its rank."""
    return _LINE.fullmatch(start.partition(b"\n")[0]) is not None


def parse_ranks(data: bytes) -> list[bytes]:
    """The tokens of a file by rank. Raises NotRanks unless it has every rank from 0 once, and all 256 bytes."""
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise NotRanks(f"line {number} is not a token in base64 and its rank: {line[:60]!r}")
        try:
            token = base64.b64decode(match[1], validate=True)
        except binascii.Error as error:
            raise NotRanks(f"line {number} is not base64: {error}") from error
        rank = int(match[2])
        if not 0 < len(token) <= _MAX_TOKEN:
            raise NotRanks(f"the token of line {number} has {len(token)} bytes, and may have {_MAX_TOKEN}")
        if tokens.setdefault(rank, token) != token:
            raise NotRanks(f"rank {rank} stands twice, the second time in line {number}")
    ranked = [tokens[rank] for rank in sorted(tokens)]
    if sorted(tokens) != list(range(len(tokens))):
        missing = next(rank for rank in range(len(tokens)) if rank not in tokens)
        raise NotRanks(f"rank {missing} is missing")
    if len(set(ranked)) < len(ranked):
        raise NotRanks(f"{len(ranked) - len(set(ranked))} tokens stand twice")
    singles = set(ranked) & {bytes([byte]) for byte in range(256)}
    if len(singles) < 256:
        raise NotRanks(f"it has {len(singles)} of the 256 single bytes")
    return ranked


def unsupported(ranked: list[bytes]) -> list[Problem]:
    """What tokens by rank say that is not Llama 3's."""
    if len(ranked) <= MAX_RANKS:
        return []
    problem = Problem(
        subject="tokenizer",
        message="is not Llama 3's: how another one cuts words, and what its special tokens are, is not in the file",
        expected=f"at most {MAX_RANKS:,} ranks",
        found=f"{len(ranked):,}",
        remedy=INSTEAD,
    )
    return [problem]


def build_backend(ranked: list[bytes], *, names: Mapping[int, str]) -> tokenizers.Tokenizer:
    """The tokenizers.Tokenizer of tokens by rank, with the special tokens after them; without any around text.

    names: of special tokens by id, where they are not Llama 3.1's.
    """
    letters = _letters_of_bytes()
    written = ["".join(map(letters.__getitem__, token)) for token in ranked]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: rank for rank, name in enumerate(written)},
            merges=derive_merges(written, set(written)),
            ignore_merges=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = [names.get(number, name) for number, name in enumerate(_special_names(), len(ranked))]
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    return backend


def _special_names() -> Iterator[str]:
    reserved = iter(range(_NUM_SPECIAL))
    for place in range(_NUM_SPECIAL):
        yield _NAMED.get(place) or f"<|reserved_special_token_{next(reserved)}|>"


def _letters_of_bytes() -> list[str]:
    """How the library writes every byte: as itself where it prints, else as a letter from U+0100 on (GPT-2's way)."""
    others = iter(range(256, 512))
    prints = {*range(33, 127), *range(161, 256)} - {173}
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]

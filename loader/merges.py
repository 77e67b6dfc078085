"""Merges of byte-pair encoding, for vocabularies that say only how good an entry is, not what it is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

_Text = TypeVar("_Text", str, bytes)
MAX_MERGES = 8_000_000  # a vocabulary of 256,000 has 600,000


def derive_merges(best_first: Iterable[_Text], parts: Collection[_Text]) -> list[tuple[_Text, _Text]]:
    """Every pair of `parts` that makes an entry, in the order in which an encoder takes them.

    sentencepiece and tiktoken merge the neighbours whose union is the best entry, whichever two they are, the first
    of equals. Ranks of pairs say the same, but where pairs (x, y) and (y, z) with one union stand side by side; which
    merging from the left does not leave: of "aaaaa" it makes "aa", "aa" and "a".

    Raises ValueError when there are more than MAX_MERGES.
    """
    merges: list[tuple[_Text, _Text]] = []
    for entry in best_first:
        cuts = range(len(entry) - 1, 0, -1)
        merges += [(entry[:cut], entry[cut:]) for cut in cuts if entry[:cut] in parts and entry[cut:] in parts]
        if len(merges) > MAX_MERGES:
            raise ValueError(f"it needs more than {MAX_MERGES:,} merges")
    return merges

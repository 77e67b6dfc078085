"""What a sentencepiece model does to a text before it cuts it into pieces: replacements, and runs of spaces.

precompiled_charsmap holds the replacements: the size of a trie in bytes (u32), the trie (darts-clone's double array of
u32 units), then texts that end with NUL. Of the keys that start at a character the longest counts.

tokenizers has a normalizer for it, Precompiled, which takes the shortest key and looks at whole graphemes: it loses
an accent after an ideographic space, and does not join the letters of a Hangul syllable or a voiced half-width kana.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from bombus.loader.sentencepiece import Malformed

_LONGEST = 128  # characters of a key; those of sentencepiece's own tables have at most 18
_VALUE = 0x7FFFFFFF
_LABEL = 0x800000FF  # a unit that holds a value has bit 31, which no byte has
# Looked up one by one: with them a set of characters is searched from end to end, and without in one step.
_ASTRAL = "[\U00010000-\U0010ffff]"
_BYTES = np.arange(1, 256)
_MIDDLES = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))  # of a character in UTF-8


class TextNormalizer:
    """Text -> the text that a model's pieces are of, but for the sign for a space.

    special: tokens that stand for themselves, what is between them is a text of its own.
    kept: texts within one that no replacement touches.
    prefix: where a space is put first, in every text, in the first one, or nowhere.
    """

    def __init__(
        self,
        *,
        special: Sequence[str],
        kept: Sequence[str],
        charsmap: bytes,
        single_spaces: bool,
        prefix: Literal["every", "first", "none"],
    ) -> None:
        self._special = re.compile(f"({_longest_first(special)})")
        self._charsmap = Charsmap(charsmap, kept) if charsmap else None
        self._single_spaces = single_spaces
        self._prefix = prefix

    def __call__(self, text: str) -> str:
        """The text as the model sees it."""
        parts = self._special.split(text)
        parts[::2] = map(self._normalize, parts[::2])
        for place in range(0, len(parts), 2):
            if parts[place] and (self._prefix == "every" or (self._prefix == "first" and place == 0)):
                parts[place] = " " + parts[place]
        return "".join(parts)

    def _normalize(self, text: str) -> str:
        text = text if self._charsmap is None else self._charsmap.replace(text)
        return re.sub(" {2,}", " ", text.lstrip(" ")).rstrip(" ▁") if self._single_spaces else text


class Charsmap:
    """The replacements of a precompiled_charsmap, but for the texts in `kept`.

    Raises Malformed when a look-up in the trie could leave it, or its texts.
    """

    def __init__(self, charsmap: bytes, kept: Sequence[str] = ()) -> None:
        size = int.from_bytes(charsmap[:4], "little")
        if len(charsmap) < 4 or not 0 < size <= len(charsmap) - 4 or size % 1024:
            raise Malformed("precompiled_charsmap is cut short")
        units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
        self._texts = charsmap[4 + size :]
        _check(units, self._texts)
        self._units: list[int] = units.tolist()
        self._kept = re.compile(_longest_first(kept))
        # Most characters start no key, or none with what follows them, and are passed over by a regular expression.
        alone, followed, followers = set(), set(), set()
        for character, node, has_text in self._first_characters(units):
            below = _bytes_below(node, units)
            if has_text:
                alone.add(character)
            if below:
                followed.add(character)
                followers.update(below)
        after = f"(?=[{''.join(map(_starting_with, sorted(followers)))}])" if followers else ""
        starts = [_one_of(alone), _one_of(followed) + after, _one_of({text[0] for text in kept}), _ASTRAL]
        self._start = re.compile("|".join(starts))

    def replace(self, text: str) -> str:
        """The text with everything replaced."""
        result = []
        at = 0
        while (match := self._start.search(text, at)) is not None:
            result.append(text[at : match.start()])
            at = match.start()
            kept = self._kept.match(text, at)
            length, replacement = (len(kept[0]), kept[0]) if kept else self._replacement(text[at : at + _LONGEST])
            result.append(replacement)
            at += length
        return "".join([*result, text[at:]])

    def _replacement(self, text: str) -> tuple[int, str]:
        """How many characters the longest key at the start of a text has, and what stands in its place."""
        raw = text.encode()
        node, found = _child(0, self._units[0]), None
        for count, byte in enumerate(raw, 1):
            at = node ^ byte
            unit = self._units[at]
            if byte == 0 or unit & _LABEL != byte:
                break
            node = _child(at, unit)
            # A key that ends within a character is none.
            if unit >> 8 & 1 and raw[count : count + 1] not in _MIDDLES:
                found = count, self._units[node] & _VALUE
        if found is None:
            return 1, text[0]
        count, start = found
        return len(raw[:count].decode()), self._texts[start : self._texts.index(b"\0", start)].decode()

    def _first_characters(self, units: np.ndarray) -> Iterator[tuple[str, int, bool]]:
        """(character, the node below it, whether it is a key) for every character with which a key starts."""
        level = [(_child(0, self._units[0]), b"")]
        for _ in range(4):
            longer = []
            for node, raw in level:
                for byte in _bytes_below(node, units):
                    unit = self._units[node ^ byte]
                    below, text = _child(node ^ byte, unit), raw + bytes([byte])
                    try:
                        yield text.decode(), below, bool(unit >> 8 & 1)
                    except UnicodeDecodeError:
                        longer.append((below, text))
            level = longer
            if len(level) > 1 << 16:
                raise Malformed("the trie of precompiled_charsmap has more starts than there are characters")


def _check(units: np.ndarray, texts: bytes) -> None:
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"the texts of precompiled_charsmap are not UTF-8: {error}") from error
    nodes = np.flatnonzero(units <= _VALUE)
    children = nodes ^ (units[nodes] >> 10 << ((units[nodes] & 0x200) >> 6))
    # The array has whole blocks of 256, so a step from a node in it to any byte stays in it.
    if units[0] > _VALUE or (children >= len(units)).any():
        raise Malformed("the trie of precompiled_charsmap leaves its array")
    values = units[children[units[nodes] >> 8 & 1 == 1]] & _VALUE
    ends = np.frombuffer(texts, np.uint8)
    # 0b10xxxxxx is the middle of a character.
    if len(values) and (values.max() >= len(texts) or texts[-1] != 0 or (ends[values] & 0xC0 == 0x80).any()):
        raise Malformed("the trie of precompiled_charsmap leaves its texts")


def _longest_first(texts: Sequence[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)"


def _child(at: int, unit: int) -> int:
    return at ^ (unit >> 10 << ((unit & 0x200) >> 6))


def _bytes_below(node: int, units: np.ndarray) -> list[int]:
    return _BYTES[units[node ^ _BYTES] & _LABEL == _BYTES].tolist()


def _starting_with(byte: int) -> str:
    """Of the characters whose UTF-8 starts with a byte: those, for a regular expression."""
    if byte < 0x80:
        return re.escape(chr(byte))
    # What follows has six bits in each byte; a byte that starts no character starts no key either.
    after = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3
    first = (byte & (0x3F >> after)) << 6 * after
    low = max(first, (0x80, 0x800, 0x10000)[after - 1])
    high = min(first + (1 << 6 * after) - 1, 0x10FFFF)
    return f"{re.escape(chr(low))}-{re.escape(chr(high))}" if low <= high else ""


def _one_of(characters: set[str]) -> str:
    low = sorted(character for character in characters if character < "\U00010000")
    return f"[{''.join(map(re.escape, low))}]" if low else r"(?!)"

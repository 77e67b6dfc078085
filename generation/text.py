"""The text of new tokens, piece by piece: no character is cut, nothing shown is taken back, stop strings end it.

Three kinds of tokenizers. Of byte-level ones (GPT-2, Llama 3, Qwen) every token is bytes, and the text is their UTF-8.
Those of sentencepiece have pieces of text, and tokens <0x00> ... <0xFF> for what no piece covers. Of all others, and of
the pieces, the text of a token is what the library adds for it after the token before: a first token may lose its
space. So a token costs the same after ten tokens and after ten thousand.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from tokenizers import decoders, pre_tokenizers

from bombus.loader import Tokenizer
from bombus.policies.errors import GenerationError, Problem

_LOST = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 4  # bytes of a character
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_ESCAPED = dict.fromkeys(range(0xDC80, 0xDD00), _LOST)


class TextDecoder:
    """The text of the tokens after a prompt, as they come.

    The pieces of `push` and `finish` together are what decoding everything at once adds to the text of the prompt;
    special tokens have no text. Bytes that are no UTF-8 are U+FFFD. In one respect more is kept than by the library,
    which gives up all of a row of byte tokens when one of them is wrong: here the whole characters stay.
    A character that the prompt has begun and the tokens complete is the tokens'.

    stop_strings: texts that end the text; they are looked for in the new text alone, wherever tokens begin and end.
    The one that is complete first counts, of several that are so at the same character the longest. Neither it nor
    what follows is returned, and `stopped` says which it was. An end that may begin one is held back.
    Special tokens cannot be met this way; stop ids are for them.

    Raises GenerationError for an empty stop string.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop_strings: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self._stop_strings = _checked(stop_strings)
        self._held = ""
        self._backend = tokenizer.backend
        self._hidden = tokenizer.special_ids
        decoder = self._backend.decoder
        self._all_bytes = isinstance(decoder, decoders.ByteLevel)
        self._some_bytes = decoder is not None and decoder.decode(["<0xC3>", "<0xA9>"]) == "é"
        # A sequence in which the library joins bytes: what its other parts do is not known.
        self._joins_bytes = not self._all_bytes and decoder is not None and decoder.decode(["Ã", "©"]) == "é"
        self._previous: int | None = None
        self._pending: list[int] = []
        # The library has one U+FFFD for the start of a character, and one for each byte of a byte token.
        self._errors = "replace" if self._all_bytes else "surrogateescape"
        self._bytes = codecs.getincrementaldecoder("utf-8")(self._errors)
        self._read(prompt_ids)

    def push(self, token: int) -> str:
        """The text that can be shown now that `token` has come; nothing after a stop string."""
        return "" if self.stopped is not None else self._before_stop(self._text(token))

    def finish(self) -> str:
        """The text that was held back, when there are no more tokens."""
        if self.stopped is not None:
            return ""
        text = self._own(self._end_of_bytes() + self._following())
        self._pending = []
        return self._before_stop(text) + self._release()

    def _read(self, prompt: Sequence[int]) -> None:
        """Take up what the end of a prompt means for the tokens after it."""
        tail = b""
        for token in reversed(prompt):
            name = self._name(token)
            if name is None:
                continue
            self._previous = token if self._previous is None else self._previous
            raw = self._raw(name)
            if raw is None or len(tail) >= _LONGEST:
                break
            tail = raw + tail
        self._bytes.decode(tail[1 - _LONGEST :])
        # What the text of the prompt has for a character that it does not end.
        self._begun = _shown(self._bytes.getstate()[0].decode("utf-8", self._errors))

    def _text(self, token: int) -> str:
        name = self._name(token)
        if name is None:
            return ""
        raw = self._raw(name)
        # Whether the first token loses a space, only the library knows.
        if raw is not None and (self._previous is not None or not raw.isascii()):
            text = _shown(self._bytes.decode(raw))
        else:
            self._pending.append(token)
            following = self._following()
            # Nothing follows while a character that was begun before is still not whole.
            if self._joins_bytes and (following or _LOST).endswith(_LOST) and len(self._pending) < _LONGEST:
                return ""
            text = self._end_of_bytes() + following
            self._pending = []
        self._previous = token
        return self._own(text)

    def _own(self, text: str) -> str:
        """A text without what that of the prompt has already."""
        if text and self._begun:
            text, self._begun = text.removeprefix(self._begun), ""
        return text

    def _following(self) -> str:
        """What the library adds to the token before for those that are pending."""
        if not self._pending:
            return ""
        start = [] if self._previous is None else [self._previous]
        before, after = self._backend.decode(start), self._backend.decode([*start, *self._pending])
        same = (index for index, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
        return after[next(same, len(before)) :]

    def _end_of_bytes(self) -> str:
        return _shown(self._bytes.decode(b"", final=True))

    def _name(self, token: int) -> str | None:
        """A token as the vocabulary writes it; None where it has no text."""
        return None if token in self._hidden else self._backend.id_to_token(token)

    def _raw(self, name: str) -> bytes | None:
        """The bytes that a token stands for, or None where it stands for text."""
        if self._all_bytes:
            values = [_BYTE_OF_LETTER.get(letter) for letter in name]
            return name.encode() if None in values else bytes(value for value in values if value is not None)
        match = _BYTE.fullmatch(name) if self._some_bytes else None
        return None if match is None else bytes.fromhex(match[1])

    def _before_stop(self, text: str) -> str:
        if not self._stop_strings:
            return text
        text = self._release() + text
        found = [(start + len(stop), start) for stop in self._stop_strings if (start := text.find(stop)) >= 0]
        if found:
            end, start = min(found)
            self.stopped = text[start:end]
            return text[:start]
        keep = len(text) - max(_begun(text, stop) for stop in self._stop_strings)
        self._held = text[keep:]
        return text[:keep]

    def _release(self) -> str:
        text, self._held = self._held, ""
        return text


def _checked(stop_strings: Sequence[str]) -> tuple[str, ...]:
    given = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
    wrong = [text for text in given if not isinstance(text, str) or not text]
    if wrong:
        raise GenerationError(
            Problem(subject="stop_strings", message="must be texts, none of them empty", found=repr(wrong)[:80])
        )
    return given


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def _shown(text: str) -> str:
    """A text with U+FFFD for the bytes that were no UTF-8; without them it is the same object."""
    return text if text.isascii() else text.translate(_ESCAPED)


def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of the library's byte-level alphabet stands for: itself, or the next that has none."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = [letter for letter in letters if ord(letter) < 256]
    others = (byte for byte in range(256) if chr(byte) not in own)
    return {letter: ord(letter) for letter in own} | dict(zip(letters[len(own) :], others, strict=True))


_BYTE_OF_LETTER = _byte_of_letter()

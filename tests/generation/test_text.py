"""Text from tokens as they come: the same as from all at once, without a cut character, up to a stop string."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

import bombus
from bombus.generation.text import TextDecoder

LOST = "�"
FRAGMENTS = [
    "🐝",
    "👩‍👩‍👧‍👦",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "🇫🇷",
    "熊蜂",
    "e\u0301",
    "ü",
    "नमस्ते",
    "שלום",
    " ",
    "\n\n",
    "the bees",
    "1.5",
    "<b>",
    "\U0001d539",
    "\x00",
]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=12).map("".join)
# Of a few letters, so that they do occur in each other.
STOPS = st.lists(st.text("ab🐝", min_size=1, max_size=4), min_size=1, max_size=3)
relaxed = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def qwen(data: Path) -> bombus.Tokenizer:
    return bombus.load_tokenizer(data / "qwen2-tokenizer")


@pytest.fixture(scope="module")
def stories(data: Path) -> bombus.Tokenizer:
    """A tokenizer of sentencepiece: pieces, and tokens of bytes from 3 to 258."""
    return bombus.load_tokenizer(data / "stories260K-hf")


@pytest.fixture(scope="module")
def single(tiny: Callable[..., Path]) -> bombus.Tokenizer:
    """A tokenizer of single bytes."""
    return bombus.load_tokenizer(tiny("qwen3"))


def pieces(
    tokenizer: bombus.Tokenizer, tokens: Sequence[int], prompt: Sequence[int] = (), stops: Sequence[str] = ()
) -> list[str]:
    """What every push returns, and at last finish."""
    decoder = TextDecoder(tokenizer, prompt, stops)
    return [*map(decoder.push, tokens), decoder.finish()]


def added(before: str, after: str) -> str:
    return after if not before or not after.startswith(before[:1]) else added(before[1:], after[1:])


@relaxed
@given(prompt=TEXTS, text=TEXTS)
def test_a_text_of_qwen(qwen: bombus.Tokenizer, prompt: str, text: str) -> None:
    """Two texts after each other, as a prompt and its answer; U+FFFD is shown only where it is in the text."""
    start, tokens = qwen.encode(prompt), qwen.encode(text)
    found = pieces(qwen, tokens, start)
    assert "".join(found) == qwen.decode(start + tokens).removeprefix(qwen.decode(start)) == qwen.decode(tokens)
    assert "".join(found).count(LOST) == text.count(LOST)


@relaxed
@given(prompt=TEXTS, text=TEXTS)
def test_a_text_of_sentencepiece(stories: bombus.Tokenizer, prompt: str, text: str) -> None:
    """After a prompt, whose first space goes; without one, where that of the answer does."""
    start, tokens = stories.encode(prompt), stories.encode(text, add_special_tokens=False)
    whole = stories.decode(start + tokens)
    assert "".join(pieces(stories, tokens, start)) == added(stories.decode(start), whole)
    assert "".join(pieces(stories, tokens)) == stories.decode(tokens) == text


@relaxed
@given(prompt=st.lists(st.integers(0, 260), max_size=5), tokens=st.lists(st.integers(0, 260), max_size=12))
def test_any_bytes(single: bombus.Tokenizer, prompt: list[int], tokens: list[int]) -> None:
    """Bytes that are no UTF-8, special tokens and ids that no token has: as the library has them, all at once."""
    assert "".join(pieces(single, tokens, prompt)) == added(single.decode(prompt), single.decode(prompt + tokens))


# Of four characters, one of them U+FFFD itself: what is drawn is now whole and now not.
NEARLY = "Aé熊🐝\ufffd"
BYTES = st.sampled_from(sorted(NEARLY.encode()))


@relaxed
@given(prompt=st.lists(BYTES, max_size=5), tokens=st.lists(BYTES, max_size=12))
def test_bytes_that_are_nearly_right(single: bombus.Tokenizer, prompt: list[int], tokens: list[int]) -> None:
    ids = dict(zip(NEARLY.encode(), single.encode(NEARLY), strict=True))
    start, new = [ids[byte] for byte in prompt], [ids[byte] for byte in tokens]
    assert "".join(pieces(single, new, start)) == added(single.decode(start), single.decode(start + new))


@relaxed
@given(
    prompt=st.lists(st.one_of(st.integers(0, 511), BYTES.map(lambda byte: byte + 3)), max_size=4),
    tokens=st.lists(st.one_of(st.integers(0, 511), BYTES.map(lambda byte: byte + 3)), max_size=12),
)
def test_any_tokens_of_sentencepiece(stories: bombus.Tokenizer, prompt: list[int], tokens: list[int]) -> None:
    """In a row of byte tokens what is a character stays, and every other byte is U+FFFD."""
    before, after = by_hand(stories, prompt), by_hand(stories, prompt + tokens)
    assert "".join(pieces(stories, tokens, prompt)) == added(before, after)
    if LOST not in after:
        assert after == stories.decode(prompt + tokens)


def by_hand(stories: bombus.Tokenizer, tokens: Sequence[int]) -> str:
    raw = bytearray()
    for token in tokens:
        if token >= 259:
            raw += stories.backend.id_to_token(token).replace("▁", " ").encode()
        elif token >= 3:
            raw.append(token - 3)
    return re.sub("[\udc80-\udcff]", LOST, raw.decode("utf-8", "surrogateescape")).removeprefix(" ")


def words(model: Any, decoder: Any) -> bombus.Tokenizer:
    """A tokenizer of eight tokens, and a special one."""
    backend = tokenizers.Tokenizer(model)
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["<s>"])
    return bombus.Tokenizer(backend)


def vocabulary(*names: str) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


WORD = vocabulary("the", "##re", "be", "##es", ".", "do", "n't", "é")
SPACED = vocabulary("▁the", "re", "▁be", "es", ".", "▁", "▁▁", "é")
ENDED = vocabulary("the</w>", "re", "be", "es</w>", ".</w>", "x", "n</w>", "é")
LETTERS = vocabulary("Ã", "©", "Ġ", "e", "s", "ç", "Ĩ", "Ĭ")
OTHERS = {
    "word pieces": words(models.WordPiece(WORD, unk_token="."), decoders.WordPiece()),
    "metaspace": words(models.WordLevel(SPACED, unk_token="."), decoders.Metaspace()),
    "metaspace, always a space": words(models.WordLevel(SPACED, unk_token="."), decoders.Metaspace("▁", "never")),
    "ends of words": words(models.WordLevel(ENDED, unk_token="x"), decoders.BPEDecoder()),
    "joined by spaces": words(models.WordLevel(WORD, unk_token="."), None),
}


@relaxed
@given(
    name=st.sampled_from(sorted(OTHERS)),
    prompt=st.lists(st.integers(0, 9), max_size=4),
    tokens=st.lists(st.integers(0, 9), max_size=8),
)
def test_other_tokenizers(name: str, prompt: list[int], tokens: list[int]) -> None:
    tokenizer = OTHERS[name]
    before, after = tokenizer.decode(prompt), tokenizer.decode(prompt + tokens)
    assert after.startswith(before)
    assert "".join(pieces(tokenizer, tokens, prompt)) == after.removeprefix(before)


def test_bytes_inside_a_sequence() -> None:
    """What is done with the bytes afterwards only the library knows; broken ones do not pile up."""
    joined = words(
        models.WordLevel(LETTERS, unk_token="e"), decoders.Sequence([decoders.ByteLevel(), decoders.Replace("s", "z")])
    )
    assert pieces(joined, [0, 1, 4, 8, 5, 6, 7, 2, 3]) == ["", "é", "z", "", "", "", "熊", " ", "e", ""]
    assert pieces(joined, [6, 7], [3, 5]) == ["", "熊", ""]
    assert pieces(joined, [5, 6]) == ["", "", LOST]
    broken = pieces(joined, [1] * 50)
    assert set("".join(broken)) == {LOST}
    assert all("".join(broken[start : start + 4]) for start in range(48))


def test_a_piece_is_a_whole_character(single: bombus.Tokenizer, stories: bombus.Tokenizer) -> None:
    """As soon as its last byte is there, U+FFFD too where a text has it; the broken end of a text is one."""
    tokens = single.encode("a🐝\ufffd!")
    assert pieces(single, tokens) == ["a", "", "", "", "🐝", "", "", LOST, "!", ""]
    assert pieces(single, tokens[:-3]) == ["a", "", "", "", "🐝", "", LOST]
    tokens = stories.encode("a🐝!", add_special_tokens=False)
    assert pieces(stories, tokens, [1]) == ["", "a", "", "", "", "🐝", "!", ""][-len(tokens) - 1 :]
    assert pieces(stories, tokens[:-2]) == [*[""] * (len(tokens) - 6), "a", "", "", "", LOST * 3]


@pytest.mark.parametrize("count", [10_000])
def test_a_token_costs_the_same_at_any_place(stories: bombus.Tokenizer, single: bombus.Tokenizer, count: int) -> None:
    """The library is asked about two tokens at a time, after a long text and in a row of broken bytes."""
    for tokenizer, tokens in ((stories, [300, 400] * (count // 2)), (stories, [131] * count), (single, [200] * count)):
        asked: list[int] = []

        class Counting:
            def __getattr__(self, name: str, backend: Any = tokenizer.backend) -> Any:
                return getattr(backend, name)

            def decode(self, ids: list[int], backend: Any = tokenizer.backend, asked: list[int] = asked) -> str:
                asked.append(len(ids))
                return backend.decode(ids)

        text = "".join(pieces(bombus.Tokenizer(Counting()), tokens, tokens))
        assert len(text) >= count
        assert max(asked, default=0) <= 2
        assert len(asked) <= 2 * count


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, of those the longest, and which it is."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@relaxed
@given(text=st.text("ab🐝", max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4), stops=STOPS)
def test_stop_strings(qwen: bombus.Tokenizer, text: str, cuts: list[int], stops: list[str]) -> None:
    """Whatever the tokens are: of the text, and of parts of it, one after the other."""
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[start:end] for start, end in pairwise(bounds)]
    for tokens in (qwen.encode(text), [token for part in parts for token in qwen.encode(part)]):
        decoder = TextDecoder(qwen, (), stops)
        found = "".join(map(decoder.push, tokens)) + decoder.finish()
        assert (found, decoder.stopped) == first_stop(text, stops)
        assert (decoder.push(tokens[0]) if decoder.stopped else "", decoder.finish()) == ("", "")


@relaxed
@given(text=st.text("ab", max_size=12), stops=STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(single: bombus.Tokenizer, text: str, stops: list[str]) -> None:
    decoder = TextDecoder(single, (), stops)
    for end, shown in enumerate(accumulate(map(decoder.push, single.encode(text))), 1):
        if decoder.stopped:
            break
        held = max(size for size in range(end + 1) for stop in stops if stop.startswith(text[end - size : end]))
        assert shown == text[: end - held]


@pytest.mark.parametrize(
    ("stops", "shown", "stopped"),
    [
        (("was",), "It ", "was"),
        (("It",), "", "It"),
        (("a",), "It w", "a"),
        (("s a g",), "It wa", "s a g"),
        (("mplete", "omp"), "It was a game, c", "omp"),
        (("e, c", "me, comple"), "It was a gam", "e, c"),
        (("as", "was"), "It ", "was"),
        (("game", "t was a g"), "I", "t was a g"),
        (("never", "it"), "It was a game, complete", None),
        (("complete!",), "It was a game, complete", None),
        ((), "It was a game, complete", None),
        ("game", "It was a ", "game"),
    ],
)
def test_which_stop_string_counts(qwen: bombus.Tokenizer, stops: Any, shown: str, stopped: str | None) -> None:
    """Across tokens, within one, at the start, one over another; one that only began is shown at the end."""
    decoder = TextDecoder(qwen, qwen.encode("never "), stops)
    found = "".join(map(decoder.push, qwen.encode("It was a game, complete")))
    assert (found + decoder.finish(), decoder.stopped) == (shown, stopped)


def test_a_stop_string_of_a_broken_character(single: bombus.Tokenizer) -> None:
    """U+FFFD that the end of the tokens makes counts too."""
    decoder = TextDecoder(single, (), [LOST])
    assert "".join(map(decoder.push, single.encode("aé")[:-1])) == "a"
    assert (decoder.stopped, decoder.finish(), decoder.stopped) == (None, "", LOST)


@pytest.mark.parametrize("stops", [["a", ""], "", [None]])
def test_stop_strings_that_are_none(single: bombus.Tokenizer, stops: Any) -> None:
    with pytest.raises(bombus.GenerationError) as caught:
        TextDecoder(single, (), stops)
    found = "[None]" if stops == [None] else "['']"
    assert str(caught.value) == f"stop_strings: must be texts, none of them empty (found {found})"


def test_tokens_that_are_written_in_letters_of_their_own(single: bombus.Tokenizer) -> None:
    """One that was added to a byte-level vocabulary may have characters which stand for no byte."""
    backend = tokenizers.Tokenizer.from_str(single.backend.to_str())
    backend.add_tokens(["<a b 🐝>", "<e>"])
    tokenizer = bombus.Tokenizer(backend)
    tokens = tokenizer.encode("x<a b 🐝>y<e>")
    assert tokens[1:4:2] == [257, 258]
    assert pieces(tokenizer, tokens) == ["x", "<a b 🐝>", "y", "<e>", ""]


def test_a_space_that_is_a_byte(stories: bombus.Tokenizer) -> None:
    """The first of a text goes, as that of a piece does."""
    space = stories.backend.token_to_id("<0x20>")
    assert pieces(stories, [space, space]) == ["", " ", ""]
    assert pieces(stories, [space, space], [1, 2]) == ["", " ", ""]
    assert pieces(stories, [space], [300]) == [" ", ""]


def test_a_token_with_a_stop_string_and_part_of_a_character(qwen: bombus.Tokenizer) -> None:
    """Of what comes after a stop string nothing is shown, U+FFFD neither."""
    tokens = qwen.encode("a 🐝")
    assert qwen.decode(tokens[1:2]) == f" {LOST}"
    decoder = TextDecoder(qwen, (), [" "])
    assert [*map(decoder.push, tokens[:2]), decoder.finish()] == ["a", "", ""]
    assert decoder.stopped == " "

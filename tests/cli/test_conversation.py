"""What lines do to a conversation, with answers that are given: questions, commands, failures, Ctrl-C."""

from __future__ import annotations

import argparse
import io
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bombus
from bombus.chat_cli import add_chat_command, make_ask
from bombus.conversation import Conversation, Message
from bombus.generation import Generated

TIMINGS: Any = SimpleNamespace(tokens_per_second=4.5)


class Given:
    """An answer of given pieces; a function among them is called when its turn comes."""

    def __init__(self, *pieces: str | Callable[[], Any]) -> None:
        self._pieces = pieces
        self._cancelled = False
        self.left = list(pieces)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.left.pop(0)
            if isinstance(piece, str):
                yield piece
            else:
                piece()

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def result(self) -> Generated:
        assert self._cancelled or not self.left
        return Generated(tokens=[1] * 10, finish_reason="length" if "cut" in self._pieces else "stop", timings=TIMINGS)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Said:
    """A conversation with given answers, and the messages that each was asked with."""

    def __init__(self, *answers: Any, **options: Any) -> None:
        self.asked: list[list[Message]] = []
        self.numbers: list[int] = []
        self._answers = iter(answers)
        self.conversation = Conversation(self._ask, **options)

    def _ask(self, messages: Sequence[Message], number: int) -> Any:
        self.asked.append(list(messages))
        self.numbers.append(number)
        answer = next(self._answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Given) else Given(*answer)

    def take(self, *lines: str) -> bool:
        return [self.conversation.take(line) for line in lines][-1]

    @property
    def contents(self) -> list[str]:
        return [message["content"] for message in self.conversation.messages]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    """`terminal(**environment)`: one for all three streams. To be called by the test: pytest sets them before it."""

    def install(**environment: str) -> Screen:
        screen = Screen()
        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(f"sys.{name}", screen)
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in {"TERM": "xterm", **environment}.items():
            monkeypatch.setenv(name, value)
        return screen

    return install


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_question_comes_after_all_that_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(["It ", "is.\n"], ["Yes"], system="Hm.")
    assert said.take("Is it?\n", "\n", " /really? \n")
    system, first = {"role": "system", "content": "Hm."}, {"role": "user", "content": "Is it?"}
    assert said.asked == [
        [system, first],
        [system, first, {"role": "assistant", "content": "It is.\n"}, {"role": "user", "content": "/really?"}],
    ]
    assert said.contents == ["Hm.", "Is it?", "It is.\n", "/really?", "Yes"]
    assert capsys.readouterr() == ("It is.\nYes\n", "")


def test_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer has a number of its own, so that another one to the same question has another seed."""
    said = Said(["1"], ["2"], ["3"], ["4"])
    said.take("a", "b", "/retry")
    assert said.asked[2] == said.asked[1]
    assert said.contents == ["a", "1", "b", "3"]
    assert said.numbers == [0, 1, 2]
    said.take("/undo", "/system  Hm. So. \n")
    assert said.contents == ["Hm. So.", "a", "1"]
    said.take("/reset", "c é")
    assert said.contents == ["Hm. So.", "c é", "4"]
    said.take(f"/save {tmp_path / 'a b.json'}\n", "/system")
    assert [message["content"] for message in json.loads((tmp_path / "a b.json").read_text("utf-8"))] == [
        "Hm. So.",
        "c é",
        "4",
    ]
    assert "c é" in (tmp_path / "a b.json").read_text("utf-8")
    assert said.contents == ["c é", "4"]
    monkeypatch.setenv("HOME", str(tmp_path))
    said.take("/save ~/home.json")
    assert len(json.loads((tmp_path / "home.json").read_text("utf-8"))) == 2
    assert capsys.readouterr() == ("1\n2\n3\n4\n", "")
    assert (said.take("/help"), said.take("/exit\n"), said.conversation.failures) == (True, False, 0)


def test_what_fails_changes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An answer, at once or after a piece of it, whatever raises; a command."""

    def fail() -> None:
        raise MemoryError("too large")

    error = bombus.GenerationError(bombus.policies.errors.Problem(subject="prompt", message="is odd"))
    said = Said(["1"], error, ["2", fail], ["3", fail])
    said.take("a", "b", "c", "/retry", "/fly", "/save", f"/save {tmp_path}", "/")
    assert said.contents == ["a", "1"]
    said.take("/undo", "/undo", "/retry")
    out, err = capsys.readouterr()
    assert out == "1\n2\n3\n"
    known = "there is no such command; known: /help, /reset, /system, /retry, /undo, /save, /exit"
    assert err.splitlines() == [
        "bombus: GenerationError: prompt: is odd",
        "bombus: MemoryError: too large",
        "bombus: MemoryError: too large",
        f"bombus: /fly: {known}",
        "bombus: /save: needs the name of a file",
        f"bombus: IsADirectoryError: [Errno 21] Is a directory: '{tmp_path}'",
        f"bombus: /: {known}",
        "bombus: /undo: nothing was said yet",
        "bombus: /retry: nothing was said yet",
    ]
    assert said.conversation.failures == 9


def test_an_empty_answer_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """So that each question of a script has its line."""
    said = Said([], ["b"])
    said.take("x", "y")
    assert said.contents == ["x", "", "y", "b"]
    assert capsys.readouterr() == ("\nb\n", "")


def test_a_reader_that_goes_away_is_no_failure_of_an_answer() -> None:
    said = Said(BrokenPipeError())
    with pytest.raises(BrokenPipeError):
        said.take("a")


def test_a_terminal_sees_how_an_answer_went(terminal: Callable[..., Screen]) -> None:
    """Dimmed, and after a new line; nothing that a model writes is obeyed."""
    screen = terminal()
    said = Said(["a\x1b[2J\tb\x07", "\x9b1m\x85é"], ["cut"])
    said.take("x", "y")
    assert screen.getvalue() == (
        "a␛[2J\tb␇" + "\ufffd1m\ufffdé\n\x1b[2m(10 tokens, 4.5 tokens/s)\x1b[0m\n"
        "cut\n\x1b[2m(10 tokens, 4.5 tokens/s, cut at the limit)\x1b[0m\n"
    )
    assert said.contents[1] == "a\x1b[2J\tb\x07\x9b1m\x85é"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_cannot_dim(name: str, value: str, terminal: Callable[..., Screen]) -> None:
    screen = terminal(**{name: value})
    Said().take("/help")
    shown = screen.getvalue()
    assert "\x1b" not in shown
    assert "  /save FILE    write the conversation as JSON\n" in shown


def test_the_first_interrupt_stops_an_answer(terminal: Callable[..., Screen]) -> None:
    """What was shown stays; without anything shown the question goes too."""
    screen = terminal()
    answer, silent = Given("a", interrupt, "b", "c"), Given(interrupt, "d", "e")
    said = Said(answer, silent, ["f"])
    before = signal.getsignal(signal.SIGINT)
    said.take("x", "y", "z")
    assert signal.getsignal(signal.SIGINT) is before
    assert (answer.left, silent.left) == (["c"], ["e"])
    assert said.contents == ["x", "a", "z", "f"]
    assert screen.getvalue().count("(stopped; 10 tokens") == 2
    assert [line for line in screen.getvalue().splitlines() if "tokens" not in line] == ["a", "", "f"]
    assert said.conversation.failures == 0


def test_the_second_interrupt_does_not_wait(terminal: Callable[..., Screen]) -> None:
    """Not for the next piece, nor for an answer that has not begun."""
    screen = terminal()
    said = Said(["a", interrupt, interrupt, pytest.fail], KeyboardInterrupt())
    assert said.take("x", "y")
    assert said.contents == ["x", "a"]
    assert screen.getvalue().endswith("(stopped; no tokens)\x1b[0m\n")


def test_an_interrupt_ends_a_pipe() -> None:
    said = Said(["a", interrupt, "b"])
    with pytest.raises(KeyboardInterrupt):
        said.take("x")


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_chat_command(parser.add_subparsers())
    return parser.parse_args(["chat", "repo", *arguments])


def test_options() -> None:
    found = options("--no-thinking", "--system", "Hm.", "--min-p", "0.1", "--policy", "int8", "--offline", "--cache")
    assert (found.thinking, found.system, found.min_p, found.policy) == (False, "Hm.", 0.1, "int8")
    assert (found.repo, found.offline, found.cache) == ("repo", True, "auto")
    assert (options().thinking, options("--thinking").thinking) == (None, True)


@pytest.mark.parametrize(
    ("given", "of_file", "most"),
    [({}, None, 512), ({}, 7, 7), ({"max_new_tokens": 9, "top_k": 2}, 7, 9), ({"max_new_tokens": 4000}, None, 997)],
)
def test_what_an_answer_is_asked_with(
    given: dict[str, Any], of_file: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most as many tokens as there are positions left, and a seed of its own."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(bombus, "chat", lambda loaded, tokenizer, messages, **options: calls.append(options))
    loaded: Any = SimpleNamespace(
        generation_config=SimpleNamespace(max_new_tokens=of_file), spec=SimpleNamespace(max_positions=1000)
    )
    tokenizer: Any = SimpleNamespace(encode_chat=lambda messages, thinking: [*messages, 0, 0])
    ask = make_ask(loaded, tokenizer, {**given, "seed": 5}, {"thinking": False})
    message = {"role": "user", "content": "a"}
    ask([message], 2)
    (options,) = calls
    assert options.pop("template_variables") == {"thinking": False}
    assert options == {**given, "stream": True, "max_new_tokens": most, "seed": 7}
    ask([message] * 997, 0)
    assert calls[1]["max_new_tokens"] == 1
    with pytest.raises(bombus.GenerationError, match=r"positions \(expected below 1000 tokens, found 1000\)\. Start"):
        ask([message] * 998, 0)

"""A conversation at a terminal or through a pipe: what was said, what lines do to it, how an answer is stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from bombus.generation import Generated
from bombus.policies.errors import BombusError, closest

_HELP = {
    "/help": "this list",
    "/reset": "forget the conversation; the system message stays",
    "/system TEXT": "set the system message, or with no TEXT remove it",
    "/retry": "another answer to the last question",
    "/undo": "forget the last question and its answer",
    "/save FILE": "write the conversation as JSON",
    "/exit": "quit, like Ctrl-D",
}
_MORE = "Ctrl-C stops an answer. A question that begins with / needs a space before it."
# A model may write what terminals obey, such as the start of an escape sequence: shown as a picture of it.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {127: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)

Message = dict[str, str]


class Answer(Protocol):
    """An answer while it is made: what bombus.chat returns for a stream."""

    def __iter__(self) -> Iterator[str]: ...

    def cancel(self) -> None: ...

    @property
    def result(self) -> Generated: ...


Ask = Callable[[Sequence[Message], int], Answer]


class Conversation:
    """What was said, and what lines do to it. Answers go to standard output, all else to standard error.

    An answer that fails leaves everything as it was, and counts in `failures`, as does a command that fails. One that
    is stopped is kept as far as it was shown.
    """

    def __init__(self, ask: Ask, *, system: str | None = None) -> None:
        self.system = system
        self.turns: list[Message] = []
        self.failures = 0
        self._ask = ask
        self._answers = 0
        self._interactive = sys.stdin.isatty()
        self._plain = not sys.stderr.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"

    @property
    def messages(self) -> list[Message]:
        """The system message, if there is one, and the turns."""
        return [*([] if self.system is None else [{"role": "system", "content": self.system}]), *self.turns]

    def take(self, line: str) -> bool:
        """Do what a line says, a question or a command. False when it says to quit."""
        try:
            if line.startswith("/"):
                return self._command(*line.split(maxsplit=1))
            if line.strip():
                self._answer([*self.turns, {"role": "user", "content": line.strip()}])
        except BrokenPipeError:
            raise
        except BombusError as error:
            self._fail(f"{type(error).__name__}: {error}")
        except Exception as error:  # an accelerator that is out of memory, say: the next answer may be shorter
            self._fail(f"{type(error).__name__}: {error}")
        return True

    def say(self, text: str) -> None:
        """Print a notice, which a pipe does not need."""
        if self._interactive:
            print(text if self._plain else f"\x1b[2m{text}\x1b[0m", file=sys.stderr, flush=True)

    def _fail(self, text: str) -> None:
        self.failures += 1
        print(f"bombus: {text}", file=sys.stderr, flush=True)

    def _command(self, name: str, rest: str = "") -> bool:
        rest = rest.strip()
        if name == "/exit":
            return False
        if name == "/help":
            self.say("\n".join([*(f"  {command:14}{text}" for command, text in _HELP.items()), _MORE]))
        elif name == "/reset":
            self.turns = []
            self.say("(a new conversation)")
        elif name == "/system":
            self.system = rest or None
            self.say("(the system message is set)" if rest else "(no system message)")
        elif name == "/retry" and self.turns:
            self._answer(self.turns[:-1])
        elif name == "/undo" and self.turns:
            self.turns = self.turns[:-2]
            self.say(f"(back to {len(self.turns)} messages)")
        elif name == "/save" and rest:
            Path(rest).expanduser().write_text(
                json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            self.say(f"({len(self.messages)} messages in {rest})")
        else:
            self._fail(_refusal(name))
        return True

    def _answer(self, turns: list[Message]) -> None:
        """Show the answer to turns, and keep both."""
        pieces: list[str] = []
        self._answers += 1
        answer: Answer | None = None
        stopped = False
        try:
            with _Interrupts(active=self._interactive) as interrupts:
                answer = self._ask([*self.messages[: len(self.messages) - len(self.turns)], *turns], self._answers - 1)
                for piece in answer:
                    if interrupts.count:
                        break
                    pieces.append(piece)
                    print(piece.translate(_PICTURES) if sys.stdout.isatty() else piece, end="", flush=True)
                stopped = interrupts.count > 0
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            stopped = True
        finally:
            if pieces and not pieces[-1].endswith("\n"):
                print(flush=True)
        if stopped and answer is not None:
            answer.cancel()
        if not pieces:
            print(flush=True)
        text = "".join(pieces)
        if text or not stopped:
            self.turns = [*turns, {"role": "assistant", "content": text}]
        self.say(f"({'stopped; ' if stopped else ''}{_summary(answer)})")


class _Interrupts:
    """Counts Ctrl-C while it is entered: the first only counts, so that nothing breaks; the next raises as usual."""

    def __init__(self, *, active: bool) -> None:
        self.count = 0
        self._active = active

    def __enter__(self) -> _Interrupts:
        if self._active:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


def _summary(answer: Answer | None) -> str:
    result = None if answer is None else answer.result
    if result is None or result.timings is None:
        return "no tokens"
    cut = ", cut at the limit" if result.finish_reason == "length" else ""
    return f"{len(result.tokens)} tokens, {result.timings.tokens_per_second:.1f} tokens/s{cut}"


def _refusal(name: str) -> str:
    known = [command.split()[0] for command in _HELP]
    if name not in known:
        return f"{name}: there is no such command; {closest(name, known)}"
    return "/save: needs the name of a file" if name == "/save" else f"{name}: nothing was said yet"

"""The command `chat`: talk with a model at a terminal, or line by line from a pipe."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import bombus
from bombus.arguments import add_command, add_precision, add_repository, add_settings, settings
from bombus.conversation import Answer, Ask, Conversation, Message
from bombus.generate_cli import load
from bombus.generation.request import make_request
from bombus.loader.shipped import SHIPPED
from bombus.policies.errors import GenerationError, Problem

_NEW_TOKENS = 512


def add_chat_command(commands: Any) -> None:
    """Add `chat` to the commands."""
    command = add_command(commands, "chat", _chat, "talk with a model; questions from a pipe are lines")
    add_repository(command, default=next(iter(SHIPPED)))
    add_precision(command)
    command.add_argument("--system", metavar="TEXT", help="the system message")
    command.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="think before the answer, where the template lets one say",
    )
    add_settings(command)
    command.add_argument(
        "--cache", nargs="?", const="auto", metavar="FOLDER", help="keep the converted parameters for the next time"
    )


def _chat(options: argparse.Namespace) -> None:
    given = settings(options)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # neither a pipe nor a terminal has to know every character
            stream.reconfigure(errors="replace")
    loaded, tokenizer = load(options)
    if tokenizer.chat_template is None:
        tokenizer.apply_chat_template([])  # raises, and says so
    # What cannot be met is said before a question is typed; how much fits is settled for each answer.
    make_request(loaded, [[0]], {**given, "max_new_tokens": min(given.get("max_new_tokens", 1), 1)}, has_text=True)
    variables = {} if options.thinking is None else {"enable_thinking": options.thinking}
    conversation = Conversation(make_ask(loaded, tokenizer, given, variables), system=options.system)
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if not conversation.take(line):
                break
        if conversation.failures:
            found = f"{conversation.failures} of them"
            raise GenerationError(Problem(subject="chat", message="could not do what all lines say", found=found))
        return
    conversation.say(f"{options.repo}: /help lists the commands, Ctrl-D quits")
    for line in _typed_lines():
        try:
            if not conversation.take(line):
                break
        except KeyboardInterrupt:
            conversation.say("\n(/exit or Ctrl-D quits)")


def make_ask(
    loaded: bombus.LoadedModel, tokenizer: bombus.Tokenizer, given: Mapping[str, Any], variables: Mapping[str, Any]
) -> Ask:
    """A function from (messages, number of the answer) to an Answer, which fits the model's positions.

    given: settings of bombus.chat; every answer has a seed of its own. The function raises GenerationError where not
    even one token fits.
    """
    asked = given.get("max_new_tokens", loaded.generation_config.max_new_tokens)
    most = _NEW_TOKENS if asked is None else asked
    places = loaded.spec.max_positions

    def ask(messages: Sequence[Message], number: int) -> Answer:
        count = len(tokenizer.encode_chat(messages, **variables))
        if count >= places:
            problem = Problem(
                subject="conversation",
                message="no longer fits the model's positions",
                expected=f"below {places} tokens",
                found=str(count),
                remedy="start a new one with /reset, or take back the last question with /undo",
            )
            raise GenerationError(problem)
        own = {"max_new_tokens": min(most, places - count), "seed": given.get("seed", 0) + number}
        answer: Answer = bombus.chat(
            loaded, tokenizer, messages, stream=True, template_variables=variables, **{**given, **own}
        )
        return answer

    return ask


def _typed_lines() -> Iterator[str]:
    """Lines from the terminal, with editing and a history where Python has readline, until Ctrl-D."""
    with suppress(ImportError):
        importlib.import_module("readline")
    prompt = "> " if sys.stdout.isatty() else ""
    while True:
        try:
            if not prompt:
                print("> ", end="", file=sys.stderr, flush=True)
            yield input(prompt)
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D quits)", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return

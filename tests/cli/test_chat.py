"""`bombus chat` as a program: at a terminal, where Ctrl-C stops an answer, and in a pipe."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chatting import ALPHABET, HANG, Terminal, talking_checkpoint

from bombus.cli import main

DONE = r"\((stopped; )?(\d+) tokens, [\d.]+ tokens/s(, cut at the limit)?\)\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is compiled once for all of these programs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Room for answers that take many minutes: what is to be interrupted is always still going on."""
    return talking_checkpoint(tmp_path_factory.mktemp("endless"), max_positions=200_000)


def test_a_conversation_at_a_terminal(endless: Path, cache: Path, tmp_path: Path) -> None:
    with Terminal("chat", endless, "--max-new-tokens", "150000", "--system", "Hm.", cache=cache) as terminal:
        terminal.until("/help lists the commands, Ctrl-D quits\n> ")
        terminal.type("Letters from a\n")
        terminal.until("Letters from a\n")
        # The answer streams; it would go on for hours.
        shown = terminal.until("bcdefg")
        terminal.type("\x03")
        shown += terminal.until(DONE + "> ")
        letters = shown.partition("^C")[0].partition("\n")[0]
        assert (ALPHABET * 40000).startswith("a" + letters, 0)
        assert "(stopped; " in shown
        # The program goes on, with another question.
        terminal.type("Count from 1\n")
        counted = terminal.until(DONE + "> ")
        assert counted.startswith("Count from 1\n23456789\n(8 tokens, ")
        terminal.type(f"/save {tmp_path / 'first.json'}\n")
        terminal.until(r"\(5 messages in .*first.json\)\n> ")
        # At the prompt Ctrl-C drops the line.
        terminal.type("not sent")
        terminal.until("not sent")
        terminal.press("\x03", until=r"\(/exit or Ctrl-D quits\)\n> ")
        terminal.type("/reset\n")
        terminal.until(r"\(a new conversation\)\n> ")
        terminal.type(f"Now from 7\n/save {tmp_path / 'second.json'}\n")
        assert "\n89\n(2 tokens, " in terminal.until(DONE)
        terminal.until(r"\(3 messages in .*\)\n> ")
        terminal.type("\x04")
        assert terminal.status() == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("first.json", "second.json"))
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [message["role"] for message in first] == roles
    assert first[0]["content"] == "Hm."
    partial = first[2]["content"]
    assert partial.startswith("bcdefg")
    assert len(partial) < 150_000
    assert first[3:] == [{"role": "user", "content": "Count from 1"}, {"role": "assistant", "content": "23456789"}]
    assert [message["content"] for message in second] == ["Hm.", "Now from 7", "89"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--kv-cache", "int5"], "keys and values: int5: is not a cache format. The closest are 'int8', 'int4'"),
        (["--temperature", "-1"], "temperature: is out of range (expected a number from 0.0 to 10000.0, found -1.0)"),
        (["--max-new-tokens", "0"], "max_new_tokens: is out of range (expected an integer from 1, found 0)"),
    ],
)
def test_settings_are_refused_before_a_question(
    options: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", *options]) == 1
    assert capsys.readouterr().err == f"bombus: GenerationError: generate: {text}\n"


def test_lines_from_a_pipe(tmp_path: Path, cache: Path) -> None:
    """Only answers come out, a line each; what cannot be done is said, and the next line is heard.

    Every prompt ends with a 5, as thinking is off.
    """
    folder = talking_checkpoint(tmp_path / "model", max_positions=64)
    saved = tmp_path / "a.json"
    # The last one leaves room for two tokens, and only they are asked for.
    lines = [
        "Count from 1",
        "",
        f"/save {saved}",
        "x" * 61,
        "/fly",
        "/reset",
        "x" * 54,
        "/reset",
        "\udcff",
        "/exit",
        "8",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "bombus", "chat", folder, "--no-thinking", "--max-new-tokens", "8"],
        input="\n".join(lines).encode("utf-8", "surrogateescape"),
        capture_output=True,
        env={**os.environ, "BOMBUS_CACHE": str(cache)},
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stdout.decode()) == (1, "6789\n67\n6789\n"), done.stderr.decode()
    assert done.stderr.decode().splitlines() == [
        "bombus: GenerationError: conversation: no longer fits the model's positions (expected below 64 tokens, "
        "found 104). Start a new one with /reset, or take back the last question with /undo",
        "bombus: /fly: there is no such command; known: /help, /reset, /system, /retry, /undo, /save, /exit",
        "bombus: GenerationError: chat: could not do what all lines say (found 2 of them)",
    ]
    assert [message["content"] for message in json.loads(saved.read_text())] == ["Count from 1", "6789"]

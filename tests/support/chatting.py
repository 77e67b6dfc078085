"""A checkpoint that talks in a way that tests can tell, and a terminal to talk with it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import bombus
from bombus.testing import tiny_checkpoint

# The prompt ends with the last character of the last message, or with a 5 where thinking is switched off.
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('who is nobody?') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}5{% else %}{{ messages[-1].content[-1] }}{% endif %}"
)
ALPHABET = ascii_lowercase
HANG = 180  # seconds without a word, after which a test gives up
_END = 256
# Makes its terminal the one that Ctrl-C comes from, as a shell does, and runs the command.
_START = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "bombus", *sys.argv[1:]])
"""


def talking_checkpoint(folder: Path, *, max_positions: int) -> Path:
    """A model that goes on with the letter or the number after the last one: "a" with "bcd...xyzabc..." without an
    end, "1" with "23456789" and the end of the text.

    Of the one block nothing is added, and the head gives the next token where it sees the embedding of the last one.
    """
    tiny_checkpoint(
        "llama",
        folder,
        "f32",
        preset="original",
        num_blocks=1,
        vocab_size=257,
        tie_word_embeddings=False,
        max_positions=max_positions,
    )
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.0.{name}.weight"][:] = 0
    tensors["model.norm.weight"][:] = 1
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    embedding /= np.linalg.norm(embedding, axis=-1, keepdims=True)
    head[:] = 0
    tokenizer = bombus.load_tokenizer(folder)
    numbers = tokenizer.encode("123456789")
    letters = tokenizer.encode(ALPHABET)
    for now, following in zip(numbers + letters, [*numbers[1:], _END, *letters[1:], letters[0]], strict=True):
        head[following] += embedding[now]
    save_file(tensors, path, {"format": "pt"})
    config = {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


class Terminal:
    """`bombus ...` at a pseudo-terminal: what is typed, and what was on the screen up to something awaited."""

    def __init__(self, *arguments: Any, cache: Path) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", "BOMBUS_CACHE": str(cache), "INPUTRC": os.devnull},
        )
        os.close(slave)
        self._unread = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Press the keys of a text; "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._master, text.encode())

    def press(self, key: str, *, until: str) -> str:
        """Press a key until something awaited is on the screen: Python notes a Ctrl-C that comes between two waits of
        readline for keys, and goes on to wait for the next one."""
        self.type(key)
        deadline = time.monotonic() + HANG
        while re.search(until, self._unread) is None:
            assert time.monotonic() < deadline, f"no {until!r} in {self._unread!r}"
            if select.select([self._master], [], [], 5)[0]:
                self._unread += self._read()
            else:
                self.type(key)
        return self.until(until)

    def until(self, pattern: str) -> str:
        """What came on the screen, up to a match of the pattern and with it."""
        while (match := re.search(pattern, self._unread)) is None:
            more = self._read()
            assert more, f"no {pattern!r} in {self._unread!r}"
            self._unread += more
        found, self._unread = self._unread[: match.end()], self._unread[match.end() :]
        return found

    def status(self) -> int:
        """The exit status, when the program has ended by itself."""
        deadline = time.monotonic() + HANG
        while self._read():
            assert time.monotonic() < deadline
        return self._process.wait(HANG)

    def _read(self) -> str:
        ready, _, _ = select.select([self._master], [], [], HANG)
        assert ready, f"nothing came after {self._unread!r}"
        try:
            return os.read(self._master, 4096).decode("utf-8", "replace").replace("\r\n", "\n")
        except OSError:  # the other side is closed
            return ""

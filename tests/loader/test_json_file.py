"""JSON files: bounded in size and depth, and what is accepted beyond the letter of JSON."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from bombus.loader.json_file import MAX_BYTES, read_json
from bombus.policies.errors import CheckpointError, SpecError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def refusal(file: Path) -> str:
    """The text of the error, which is of the kind that is asked for."""
    for kind in (CheckpointError, SpecError):
        with pytest.raises(kind) as caught:
            read_json(file, kind)
        assert caught.type is kind
    return str(caught.value)


def test_an_object_is_read(file: Path) -> None:
    file.write_text('{"a": {"b": [1, 2.5, "\u00e9", null, true]}}', encoding="utf-8")
    assert read_json(file) == {"a": {"b": [1, 2.5, "\u00e9", None, True]}}


def test_a_file_that_is_too_large_is_not_read(file: Path) -> None:
    file.write_text("{}")
    os.truncate(file, MAX_BYTES + 1)  # sparse: it would be read as zeros
    assert refusal(file) == (
        f"{file}: file: is too large for a configuration, and was not read (expected at most 100000000 bytes, found "
        "100000001). Download it again"
    )
    os.truncate(file, MAX_BYTES)
    assert refusal(file).startswith(f"{file}: file: is not valid JSON: ")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"<!doctype html>", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": 1', "Expecting ',' delimiter: line 1 column 8 (char 7)"),
        (b'{"a": 1} {}', "Extra data: line 1 column 10 (char 9)"),
        (b"{'a': 1}", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b'{"a": NaN}', "it holds NaN, which JSON does not have"),
        (b"\xff\xfe{}", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_what_is_not_json_is_refused_with_the_place(file: Path, raw: bytes, reason: str) -> None:
    file.write_bytes(raw)
    assert refusal(file) == f"{file}: file: is not valid JSON: {reason}. Download it again"


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"])
def test_what_would_exhaust_the_reader_is_refused(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    assert refusal(file).startswith(f"{file}: file: is not valid JSON: ")


@pytest.mark.parametrize("text", ["[]", '"text"', "1", "null"])
def test_what_is_no_object_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    shown = {"[]": "[]", '"text"': "'text'", "1": "1", "null": "None"}[text]
    assert refusal(file) == f"{file}: file: must hold a JSON object (found {shown})"


def test_a_file_that_cannot_be_read_is_not_called_bad_json(file: Path) -> None:
    assert refusal(file) == f"{file}: file: cannot be read: No such file or directory"


def test_what_python_and_transformers_write_is_accepted(file: Path) -> None:
    """Infinity, as in the time_step_limit of Mamba 2; of a key that stands twice the last value."""
    file.write_text('{"limit": [-Infinity, Infinity], "a": 1, "a": 2}')
    assert read_json(file) == {"limit": [-math.inf, math.inf], "a": 2}

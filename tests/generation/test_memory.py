"""Giving freed memory back: asked of the C library after compiling, and passed over where there is no such call."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from bombus.generation import loop
from bombus.generation.memory import give_back


def test_the_c_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    give_back()
    assert asked == [0]


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_c_library_is_passed_over(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(name: None) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    give_back()
    assert asked == [None]


def test_it_is_given_back_when_a_program_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    lowered = SimpleNamespace(compile=lambda: order.append("compiled") or "program")
    monkeypatch.setattr(loop, "give_back", lambda: order.append("given back"))
    assert loop._compile(SimpleNamespace(lower=lambda: lowered)) == "program"  # type: ignore[arg-type]
    assert order == ["compiled", "given back"]

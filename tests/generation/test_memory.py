"""Giving freed memory back: asked of the C library after compiling, and passed over where there is no such call."""

from __future__ import annotations

import ctypes
import weakref
from types import SimpleNamespace
from typing import Any

import jax
import pytest

import bombus
from bombus.generation import engine, loop
from bombus.generation.engine import Run
from bombus.generation.loop import compile_programs
from bombus.generation.memory import give_back
from bombus.generation.request import make_request


def test_the_c_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    give_back()
    assert asked == [0]
    give_back(1 << 20)  # too little to ask for
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


@pytest.mark.parametrize("ends", ["by itself", "early"])
def test_a_cache_is_given_back_when_a_run_ends(
    ends: str, loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a stream that nobody reads to its end; by then no array of it is alive."""
    arrays: list[weakref.ref[Any]] = []
    given: list[int] = []

    def watched(freed: int) -> None:
        assert arrays
        assert not any(array() is not None and not array().is_deleted() for array in arrays)
        given.append(freed)

    request = make_request(loaded, [[1, 2, 3]], {"max_new_tokens": 6}, has_text=False)
    run = Run(loaded, request)
    programs = compile_programs(loaded.model, loaded.params, request.rows, request.bucket, request.call, request.plan)

    def watch(program: Any) -> Any:
        def run(*arguments: Any) -> Any:
            state = program(*arguments)
            arrays.extend(weakref.ref(array) for array in jax.tree.leaves(state.cache))
            return state

        return run

    watching = SimpleNamespace(prefill=watch(programs.prefill), decode=watch(programs.decode))
    monkeypatch.setattr(engine, "start_programs", lambda *_: watching)
    monkeypatch.setattr(engine, "give_back", watched)
    pieces = run.pieces(2)
    next(pieces)
    assert not given
    if ends == "early":
        pieces.close()
    else:
        list(pieces)
    slots = request.bucket + request.plan.new_tokens
    cache = jax.eval_shape(lambda: loaded.model.init_cache(request.rows, slots))
    assert given == [sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(cache))]


def test_it_is_given_back_when_a_program_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    lowered = SimpleNamespace(compile=lambda: order.append("compiled") or "program")
    monkeypatch.setattr(loop, "give_back", lambda: order.append("given back"))
    assert loop._compile(SimpleNamespace(lower=lambda: lowered)) == "program"  # type: ignore[arg-type]
    assert order == ["compiled", "given back"]

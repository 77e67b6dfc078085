"""What a run makes of its programs' tokens, with scripts in place of programs: rows, limits, pieces, results.

Shapes: B rows, N new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bombus
from bombus.generation import engine
from bombus.generation.beam import Beams
from bombus.generation.engine import Row, Run
from bombus.generation.history import History
from bombus.generation.request import make_request
from bombus.generation.state import Call, Logprobs, State


class Decoder:
    """Shows every token but the last one, a text of two letters each; stops at a token."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.held, self.stopped = stop, "", None

    def push(self, token: int) -> str:
        if token == self.stop:
            self.stopped, self.held = "stop string", ""
            return ""
        shown, self.held = self.held, f"{token:02d}"
        return shown

    def finish(self) -> str:
        shown, self.held = self.held, ""
        return shown


class Script:
    """Programs that write these tokens, (B, N), `stride` at a time; they keep what they were asked."""

    def __init__(self, tokens: np.ndarray, stride: int = 1) -> None:
        self.tokens, self.stride = tokens.astype(np.int32), stride
        self.untils: list[int] = []
        self.dones: list[list[bool]] = []

    def prefill(self, params: Any, tokens: np.ndarray, mask: np.ndarray, done: np.ndarray, call: Call) -> State:
        room = ((0, 0), (0, self.tokens.shape[1]))
        steps = np.arange(self.tokens.size, dtype=np.float32).reshape(self.tokens.shape)
        top = np.repeat(np.arange(20)[None, None], self.tokens.size, 0).reshape(*self.tokens.shape, 20)
        length = np.int32(tokens.shape[1])
        history = History(
            tokens_BL=np.pad(tokens, room), real_BL=np.pad(mask, room), length=length, prompt_slots=tokens.shape[1]
        )
        logprobs = Logprobs(chosen=-steps, top_ids=top, top=-top - steps[..., None])
        return State(history=history, done=done, cache=None, processors=(), logprobs=logprobs, passes=np.int32(0))

    def decode(self, params: Any, state: State, done: np.ndarray, call: Call, until: np.int32) -> State:
        self.untils.append(int(until))
        self.dones.append(done.tolist())
        history, passes = state.history, int(state.passes)
        step = int(history.step)
        while step < until:
            step, passes = step + self.stride, passes + 1
        tokens_BL = history.tokens_BL.copy()
        tokens_BL[:, history.prompt_slots : history.prompt_slots + step] = self.tokens[:, :step]
        length = np.int32(history.prompt_slots + step)
        return replace(state, history=replace(history, tokens_BL=tokens_BL, length=length), passes=np.int32(passes))


def run_script(
    loaded: bombus.LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    prompts: Sequence[Sequence[int]],
    script: Script,
    chunk: int,
    decoders: Any = None,
    **options: Any,
) -> tuple[Run, list[list[str]]]:
    monkeypatch.setattr(engine, "start_programs", lambda *_: script)
    run = Run(loaded, make_request(loaded, prompts, {"stop_token_ids": (), **options}, has_text=True), decoders)
    return run, list(run.pieces(chunk))


def test_a_row_ends_at_its_limit() -> None:
    """With exactly so many tokens; what comes later is not taken, and the reason stays."""
    row = Row([1], 3, [9], None)
    assert row.take([5, 6]) == ""
    assert (row.tokens, row.finish_reason) == ([5, 6], None)
    row.take([7, 8])
    assert (row.tokens, row.finish_reason) == ([5, 6, 7], "length")
    row.take([9])
    assert (row.tokens, row.finish_reason) == ([5, 6, 7], "length")


def test_a_row_ends_before_a_stop_id() -> None:
    """Every id of the list counts, and the last place too."""
    for stop in (8, 9):
        row = Row([1], 3, [8, 9], None)
        row.take([5, 6, stop])
        assert (row.tokens, row.finish_reason) == ([5, 6], "stop")


def test_a_row_shows_what_its_decoder_held_back_at_the_end() -> None:
    """At the limit and at a stop id; a stop string's token is a token of the row."""
    row = Row([1], 3, [9], Decoder())
    assert [row.take([5, 6]), row.take([7]), row.take([8])] == ["05", "0607", ""]
    assert (row.text, row.finish_reason) == ("050607", "length")
    row = Row([1], 3, [9], Decoder())
    assert [row.take([5]), row.take([9, 6])] == ["", "05"]
    assert (row.text, row.finish_reason, row.tokens) == ("05", "stop", [5])
    row = Row([1], 3, [9], Decoder(stop=7))
    assert row.take([5, 7, 6]) == ""
    assert (row.text, row.finish_reason, row.tokens) == ("", "stop", [5, 7])


def test_pieces_come_after_one_token_and_every_few(loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more steps than wanted; rows that ended are said to be done, with those that nobody asked for."""
    script = Script(np.arange(100).reshape(10, 10) + 10)
    prompts = [[1] * 2] * 8 + [[1] * 9]
    decoders = [Decoder() for _ in prompts]
    run, pieces = run_script(loaded, monkeypatch, prompts, script, 4, decoders, max_length=12)
    assert script.untils == [1, 5, 9, 10]
    assert script.dones == [[False] * 9 + [True], [False] * 9 + [True], *([[False] * 8 + [True] * 2] * 2)]
    assert [piece[0] for piece in pieces] == ["", "10111213", "14151617", "1819"]
    results = run.results()
    assert [row.tokens for row in results] == [*script.tokens[:8].tolist(), script.tokens[8, :3].tolist()]
    assert {row.finish_reason for row in results} == {"length"}
    assert [row.prompt_tokens for row in results] == [2] * 8 + [9]
    assert results[0].timings.decode_tokens == 9
    assert results[0].timings.passes == 10
    assert results[0].logprobs is None


def test_a_run_ends_when_all_rows_have(loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stop ids later than the first piece end it long before the limit."""
    script = Script(np.array([[5, 9, 1, 1, 1, 1, 1, 1], [5, 5, 5, 9, 1, 1, 1, 1]]))
    run, _ = run_script(loaded, monkeypatch, [[1], [2]], script, 2, max_new_tokens=8, stop_token_ids=[9])
    assert script.untils == [1, 3, 5]
    assert script.dones == [[False, False], [False, False], [True, False]]
    assert [(row.tokens, row.finish_reason) for row in run.results()] == [([5], "stop"), ([5] * 3, "stop")]


def test_several_tokens_a_step_are_cut_at_the_limit(
    loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What prompt lookup finds past the limit is not there, nor counted, nor taken twice."""
    script = Script(np.arange(12)[None] + 10, stride=3)
    run, _ = run_script(loaded, monkeypatch, [[1, 2]], script, 4, max_new_tokens=10)
    assert script.untils == [1, 7, 10]
    (result,) = run.results()
    assert (result.tokens, result.finish_reason) == (list(range(10, 20)), "length")
    assert (result.timings.decode_tokens, result.timings.passes) == (9, 4)


def test_log_probabilities_are_those_of_the_row(loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are tokens, and as many of the most probable ones as asked for."""
    script = Script(np.array([[5, 6, 7, 8], [5, 9, 1, 1]]))
    options = {"max_new_tokens": 4, "stop_token_ids": [9]}
    run, _ = run_script(loaded, monkeypatch, [[1], [2]], script, 2, top_logprobs=2, **options)
    first, second = run.results()
    assert (first.logprobs, second.logprobs) == ([0, -1, -2, -3], [-4])
    assert second.top_logprobs == [{0: -4, 1: -5}]
    assert first.top_logprobs[3] == {0: -3, 1: -4}
    run, _ = run_script(loaded, monkeypatch, [[1], [2]], script, 2, logprobs=True, **options)
    assert [(row.logprobs, row.top_logprobs) for row in run.results()] == [([0, -1, -2, -3], None), ([-4], None)]


def test_cancelling_ends_the_rows_that_go_on(loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that ended keep their reason, and nothing runs afterwards."""
    script = Script(np.array([[9, 1, 1, 1], [5, 5, 5, 5]]))
    monkeypatch.setattr(engine, "start_programs", lambda *_: script)
    run = Run(loaded, make_request(loaded, [[1], [2]], {"max_new_tokens": 4, "stop_token_ids": [9]}, has_text=False))
    pieces = run.pieces(1)
    next(pieces)
    assert not run.finished
    run.cancel()
    assert run.finished
    assert list(pieces) == []
    assert script.untils == [1]
    assert [(row.tokens, row.finish_reason) for row in run.results()] == [([], "stop"), ([5], "cancelled")]


def test_beams_are_texts_of_their_prompt(loaded: bombus.LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four for each of two prompts, in order, each as long as it is."""

    class Search(Script):
        def decode(self, params: Any, state: State, done: Any, call: Call, until: Any) -> State:
            tokens = np.arange(32).reshape(2, 4, 4) + 10
            state = super().decode(params, state, done, call, until)
            return replace(
                state,
                extra=SimpleNamespace(
                    lengths_BM=np.array([[4, 2, 1, 1], [3, 4, 2, 1]]), tokens_BMN=tokens, scores_BM=-tokens[..., 0]
                ),
            )

    assert {"lengths_BM", "tokens_BMN", "scores_BM"} <= set(Beams.__dataclass_fields__)
    script = Search(np.zeros((2, 4)))
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 4, "stop_token_ids": [99]}
    run, pieces = run_script(loaded, monkeypatch, [[1], [2, 3]], script, 2, **options)
    assert (script.untils, len(pieces)) == ([4], 1)
    assert [(row.tokens, row.score, row.finish_reason, row.prompt_tokens) for row in run.results()] == [
        ([10, 11, 12, 13], -10, "length", 1),
        ([14, 15], -14, "length", 1),
        ([18], -18, "length", 1),
        ([26, 27, 28], -26, "length", 2),
        ([30, 31, 32, 33], -30, "length", 2),
        ([34, 35], -34, "length", 2),
    ]

"""Running a request: the programs, piece by piece, and what its rows have become so far."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence

import jax
import numpy as np

from bombus.generation.beam import Beams
from bombus.generation.loop import start_programs
from bombus.generation.memory import give_back
from bombus.generation.request import Request
from bombus.generation.result import FinishReason, Generated, Timings
from bombus.generation.state import State
from bombus.generation.text import TextDecoder
from bombus.loader import LoadedModel


class Row:
    """One row of a run: its tokens and its text so far, and why it ended, if it did."""

    def __init__(self, prompt: Sequence[int], limit: int, stop_ids: Sequence[int], decoder: TextDecoder | None) -> None:
        self.prompt = prompt
        self.limit = limit
        self.stop_ids = frozenset(stop_ids)
        self.decoder = decoder
        self.tokens: list[int] = []
        self.text = ""
        self.score: float | None = None
        self.finish_reason: FinishReason | None = None

    def take(self, tokens: Sequence[int]) -> str:
        """The text to show for these tokens, of which those after the row's end are dropped."""
        pieces = []
        for token in tokens:
            if self.finish_reason is not None:
                break
            if token in self.stop_ids:
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            if self.decoder is not None:
                pieces.append(self.decoder.push(token))
                if self.decoder.stopped is not None:
                    self.finish_reason = "stop"
                    break
            if len(self.tokens) == self.limit:
                self.finish_reason = "length"
        if self.finish_reason is not None and self.decoder is not None:
            pieces.append(self.decoder.finish())
        piece = "".join(pieces)
        self.text += piece
        return piece


class Run:
    """A request while it runs. Iterating gives the new text of every row, after the first token and every few more."""

    def __init__(self, loaded: LoadedModel, request: Request, decoders: Sequence[TextDecoder] | None = None) -> None:
        self.loaded = loaded
        self.request = request
        given = [None] * len(request.asked) if decoders is None else decoders
        self.rows = [
            Row(prompt, limit, request.config.eos_token_ids, decoder)
            for (prompt, limit), decoder in zip(request.asked, given, strict=True)
        ]
        self._logprobs: dict[str, np.ndarray] | None = None
        self._began = time.perf_counter()
        self._first = self._last = self._began
        self._steps = self._passes = self._cache_bytes = 0
        self._compile_seconds = self._loop_compile_seconds = 0.0

    def pieces(self, chunk: int) -> Generator[list[str]]:
        """What there is to show of every row, after the first token and then after every `chunk` more."""
        try:
            yield from self._pieces(chunk)
        finally:
            # The cache is gone, but a C library keeps it for the thread that had it, and the next may be another's.
            give_back(self._cache_bytes)

    def _pieces(self, chunk: int) -> Generator[list[str]]:
        request, params = self.request, self.loaded.params
        began = time.perf_counter()
        programs = start_programs(self.loaded.model, params, request.rows, request.bucket, request.call, request.plan)
        self._compile_seconds = time.perf_counter() - began
        tokens, mask, done = request.padded()
        state = programs.prefill(params, tokens, mask, done, request.call)
        self._cache_bytes = sum(array.nbytes for array in jax.tree.leaves(state.cache))
        if request.plan.strategy.beams == 1 and int(state.history.step):
            yield self._take(state)
        if self.finished:
            return
        began = time.perf_counter()
        decode = programs.decode  # which may take longer than the prompt
        waited = time.perf_counter() - began
        if self._steps:
            self._loop_compile_seconds = waited
        else:
            self._compile_seconds += waited
        if request.plan.strategy.beams > 1:
            self._first = self._time(state)
            yield self._take_beams(decode(params, state, done, request.call, np.int32(request.new_tokens)))
            return
        while not self.finished:
            done[: len(self.rows)] = [row.finish_reason is not None for row in self.rows]
            until = min(self._steps + chunk, request.new_tokens) if self._steps else 1
            state = decode(params, state, done, request.call, np.int32(until))
            yield self._take(state)

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return all(row.finish_reason is not None for row in self.rows)

    def cancel(self) -> None:
        """End every row that has not ended."""
        for row in self.rows:
            row.finish_reason = row.finish_reason or "cancelled"

    def results(self) -> list[Generated]:
        """What every row has become."""
        timings = Timings(
            time_to_first_token=self._first - self._began,
            seconds=self._last - self._began,
            compile_seconds=self._compile_seconds,
            loop_compile_seconds=self._loop_compile_seconds,
            decode_tokens=max(self._steps - 1, 0),
            passes=self._passes,
        )
        return [self._result(index, row, timings) for index, row in enumerate(self.rows)]

    def _take(self, state: State) -> list[str]:
        """Feed the rows with the tokens that are new in the state."""
        history = state.history
        steps = min(int(history.step), self.request.new_tokens)
        new = np.asarray(history.tokens_BL)[:, history.prompt_slots + self._steps : history.prompt_slots + steps]
        self._last = self._time(state)
        if self._steps == 0:
            self._first = self._last
        self._steps = steps
        shown = [row.take(tokens.tolist()) for row, tokens in zip(self.rows, new, strict=False)]
        if bool(self.request.call.wants_logprobs):
            # The state is given away to the next program.
            self._logprobs = {name: np.asarray(value) for name, value in vars(state.logprobs).items()}
        return shown

    def _take_beams(self, state: State) -> list[str]:
        """Feed the rows with the texts that a beam search has ended with."""
        beams: Beams = state.extra
        self._last = self._time(state)
        self._steps = int(state.history.step)
        lengths, tokens, scores = map(np.asarray, (beams.lengths_BM, beams.tokens_BMN, beams.scores_BM))
        shown = []
        for index, row in enumerate(self.rows):
            place = divmod(index, len(self.rows) // len(self.request.prompts))
            row.score = float(scores[place])
            shown.append(row.take(tokens[place][: lengths[place]].tolist()))
            row.finish_reason = row.finish_reason or "length"
        return shown

    def _time(self, state: State) -> float:
        """When the state is there."""
        self._passes = int(state.passes)
        return time.perf_counter()

    def _result(self, index: int, row: Row, timings: Timings) -> Generated:
        count = len(row.tokens)
        logprobs = None
        top: list[Mapping[int, float]] | None = None
        if self._logprobs is not None:
            logprobs = self._logprobs["chosen"][index, :count].tolist()
            if self.request.top_logprobs:
                most = np.s_[index, :count, : self.request.top_logprobs]
                pairs = zip(self._logprobs["top_ids"][most], self._logprobs["top"][most], strict=True)
                top = [dict(zip(ids.tolist(), values.tolist(), strict=True)) for ids, values in pairs]
        return Generated(
            tokens=row.tokens,
            finish_reason=row.finish_reason or "cancelled",
            text=None if row.decoder is None else row.text,
            stop_string=None if row.decoder is None else row.decoder.stopped,
            logprobs=logprobs,
            top_logprobs=top,
            score=row.score,
            prompt_tokens=len(row.prompt),
            timings=timings,
        )

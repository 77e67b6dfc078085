"""What a generation returns besides its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of a call, by the wall clock.

    time_to_first_token: from the call to the first token, compiling included. seconds: to the last one.
    compile_seconds: of time_to_first_token, spent on having the programs; next to nothing when these sizes were there.
    loop_compile_seconds: after the first token, spent on having the loop that makes the others.
    decode_tokens: how many tokens a row was given after the first one, whether they were kept or not.
    passes: how often the model was run for the tokens, the first one's pass over the prompt included; fewer times than
    there are tokens where prompt lookup found some.
    """

    time_to_first_token: float
    seconds: float
    compile_seconds: float
    loop_compile_seconds: float
    decode_tokens: int
    passes: int

    @property
    def tokens_per_second(self) -> float:
        """Of one row, after the first token, while tokens are made."""
        return self.decode_tokens / max(self.seconds - self.time_to_first_token - self.loop_compile_seconds, 1e-9)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The new tokens of one row, without the stop id, and why there are no more.

    finish_reason: "stop" at a stop id or stop string, "length" at the limit, "cancelled" when a stream was.
    text: without what the stop string began; None where no tokenizer was at hand. stop_string: the one that was met.
    logprobs: the natural logarithm of the probability that the model itself gave each token, before any setting
    changed it; top_logprobs: token id -> the same for the most probable ones; None unless asked for.
    score: of a beam search, the sum of log-probabilities over the length to the power of length_penalty.
    """

    tokens: list[int]
    finish_reason: FinishReason
    text: str | None = None
    stop_string: str | None = None
    logprobs: list[float] | None = None
    top_logprobs: list[Mapping[int, float]] | None = None
    score: float | None = None
    prompt_tokens: int = field(default=0, compare=False)
    timings: Timings | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return "" if self.text is None else self.text

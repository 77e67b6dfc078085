"""A checked request: what was asked for, as what the compiled programs take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from bombus.generation.processors import LogitsProcessor, as_processor
from bombus.generation.prompts import SEEDS, row_seeds, token_rows
from bombus.generation.sampling import make_sampling
from bombus.generation.sizes import batch_bucket, chunked_bucket, prefill_chunk, size_bucket
from bombus.generation.state import TOP_LOGPROBS, Call, Plan
from bombus.generation.strategies import choose_strategy, strategy_numbers, strategy_problems
from bombus.layers import CacheFormat, as_cache_format
from bombus.loader import GenerationConfig, LoadedModel
from bombus.loader.generation_settings import Settings
from bombus.policies.errors import GenerationError, PolicyError, Problem

_DEFAULT_NEW_TOKENS = 128
_MOST_TEXTS = 4096  # of several for each prompt
PREFILL_MEMORY = 2**30


class Options(Settings, total=False):
    """What a call may say besides its prompts; see generate_tokens."""

    seed: int | Sequence[int]
    logprobs: bool
    top_logprobs: int
    processors: Sequence[LogitsProcessor | Callable[..., Any]]
    cache_format: CacheFormat | Mapping[str, Any] | str | None
    prefill_chunk: int | Literal["auto"] | None
    prefill_memory: int
    generation_config: GenerationConfig | None


_OWN = frozenset(Options.__annotations__) - frozenset(Settings.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the programs need, and no more.

    prompts: one for every row that is asked for. limits: the most new tokens of each. rows, bucket: how many rows and
    prompt tokens the programs are compiled for.
    """

    prompts: list[list[int]]
    limits: list[int]
    config: GenerationConfig
    call: Call
    plan: Plan
    rows: int
    bucket: int
    top_logprobs: int

    @property
    def new_tokens(self) -> int:
        """The most new tokens of any row."""
        return max(self.limits)

    @property
    def asked(self) -> list[tuple[list[int], int]]:
        """The prompt and the limit of every text that is asked for; of a prompt's beams there may be several."""
        times = self.config.num_return_sequences if self.plan.strategy.beams > 1 else 1
        return [pair for pair in zip(self.prompts, self.limits, strict=True) for _ in range(times)]

    def padded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens (B, T) and mask (B, T), padded on the left, and which of the B rows nobody asked for (B,)."""
        tokens = np.zeros((self.rows, self.bucket), np.int32)
        mask = np.zeros(tokens.shape, np.bool_)
        for row, prompt in enumerate(self.prompts):
            tokens[row, self.bucket - len(prompt) :] = prompt
            mask[row, self.bucket - len(prompt) :] = True
        return tokens, mask, np.arange(self.rows) >= len(self.prompts)


def make_request(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], options: Mapping[str, Any], *, has_text: bool
) -> Request:
    """The request. has_text: whether there is a tokenizer to look for stop strings with.

    Raises GenerationError that lists everything wrong with it.
    """
    own = {name: options[name] for name in options if name in _OWN}
    spec = loaded.spec
    problems: list[Problem] = []

    def check(name: str, value: Any, valid: bool, expected: str) -> None:
        if not valid:
            found = repr(value)[:80]
            problems.append(Problem(subject=name, message="is out of range", expected=expected, found=found))

    config = own.get("generation_config") or loaded.generation_config
    if not isinstance(config, GenerationConfig):
        check("generation_config", config, False, "a bombus.GenerationConfig")
        config = loaded.generation_config
    try:
        config = config.with_settings({name: value for name, value in options.items() if name not in _OWN})
    except GenerationError as error:
        problems += error.problems
    out_of_range = config.problems(vocab_size=spec.vocab_size)
    problems += out_of_range

    check("model", spec.head, spec.head == "causal_lm", "the head causal_lm")
    rows, wrong = token_rows(prompts, spec.vocab_size, config.bos_token_id)
    problems += wrong
    if not out_of_range:
        name = "num_return_sequences" if config.num_beams == 1 else "num_beams"
        times = getattr(config, name)
        few = times == 1 or times * len(rows) <= _MOST_TEXTS
        check(name, times, few, f"at most {_MOST_TEXTS} texts at a time, of {len(rows)} prompts")
        if few and config.num_beams == 1:
            rows = [prompt for prompt in rows for _ in range(times)]
    seeds = row_seeds(own.get("seed", 0), len(rows))
    check("seed", own.get("seed"), seeds is not None, f"a number from 0 to {SEEDS - 1}, or {len(rows)}, one per row")
    logprobs = own.get("logprobs", False)
    check("logprobs", logprobs, isinstance(logprobs, bool), "True or False")
    top = own.get("top_logprobs", 0)
    most = min(TOP_LOGPROBS, spec.vocab_size)
    check("top_logprobs", top, type(top) is int and 0 <= top <= most, f"an integer from 0 to {most}")
    memory, chunk = own.get("prefill_memory", PREFILL_MEMORY), own.get("prefill_chunk", "auto")
    check("prefill_memory", memory, type(memory) is int and memory > 0, "a positive number of bytes")
    chunk_valid = chunk in (None, "auto") if isinstance(chunk, str | None) else type(chunk) is int and chunk > 0
    check("prefill_chunk", chunk, chunk_valid, '"auto", None or a positive integer')
    if config.stop_strings and not has_text:
        problem = Problem(
            subject="stop_strings",
            message="are looked for in text, and generate_tokens has no tokenizer",
            found=repr(list(config.stop_strings)),
            remedy="call generate, or pass stop_strings=()",
        )
        problems.append(problem)
    if config.unsupported:
        problem = Problem(
            subject="generation_config.json",
            message=f"asks for {', '.join(config.unsupported)}, which this version does not implement",
            remedy="pass generation_config=bombus.GenerationConfig(...) without it",
        )
        problems.append(problem)
    try:
        cache_format = as_cache_format(own.get("cache_format"))
    except PolicyError as error:
        problems += error.problems
    processors: tuple[LogitsProcessor, ...] = ()
    given = own.get("processors") or ()
    check("processors", given, isinstance(given, Iterable), "a list of them")
    try:
        processors = tuple(map(as_processor, given if isinstance(given, Iterable) else ()))
    except GenerationError as error:
        problems += error.problems
    if not out_of_range:
        problems += strategy_problems(config, own, processors, spec.vocab_size)
    limits = [] if problems else _limits(config, rows, spec.max_positions, problems)
    if problems:
        raise GenerationError(problems, where="generate")
    assert seeds is not None
    room = size_bucket(max(limits))
    strategy = choose_strategy(config, room)
    longest = max(map(len, rows))
    batch = batch_bucket(len(rows))
    if chunk is None:
        chunk = size_bucket(longest)
    elif chunk == "auto":
        chunk = prefill_chunk(loaded.model, batch, longest, room, memory)
    bucket, chunk = chunked_bucket(longest, chunk)
    sampling = make_sampling(
        config,
        batch=batch * strategy.beams,
        vocab_size=spec.vocab_size,
        steps=room + strategy.lookback,
        max_new_tokens=max(limits),
        stop_ids=config.eos_token_ids,
        seeds=seeds + [0] * (batch * strategy.beams - len(rows)),
    )
    return Request(
        prompts=rows,
        limits=limits,
        config=config,
        call=Call(
            sampling=sampling,
            # Not by jnp.asarray, which would compile something for it.
            wants_logprobs=jax.device_put(np.bool_(logprobs or top)),
            numbers=jax.device_put(strategy_numbers(config, limits + [1] * (batch - len(rows)))),
        ),
        plan=Plan(new_tokens=room, chunk=chunk, strategy=strategy, cache_format=cache_format, processors=processors),
        rows=batch,
        bucket=bucket,
        top_logprobs=top,
    )


def _limits(config: GenerationConfig, rows: list[list[int]], positions: int, problems: list[Problem]) -> list[int]:
    """The most new tokens of every row: max_new_tokens, else max_length, else what fits up to a default."""
    longest = max(map(len, rows))
    if config.max_new_tokens is not None:
        limits = [config.max_new_tokens] * len(rows)
    elif config.max_length is not None:
        limits = [config.max_length - len(prompt) for prompt in rows]
        if min(limits) < 1:
            problem = Problem(
                subject="max_length",
                message=f"leaves no room after a prompt of {longest} tokens",
                expected=f"more than {longest}",
                found=str(config.max_length),
                remedy="pass max_new_tokens",
            )
            problems.append(problem)
    else:
        limits = [min(_DEFAULT_NEW_TOKENS, max(positions - len(prompt), 1)) for prompt in rows]
    past = [
        row for row, (prompt, limit) in enumerate(zip(rows, limits, strict=True)) if len(prompt) + limit > positions
    ]
    if past and len(rows[past[0]]) >= positions:
        problem = Problem(
            subject=f"prompt {past[0]}",
            message="leaves no room for an answer",
            expected=f"below the model's {positions} positions",
            found=f"{len(rows[past[0]])} tokens",
        )
        problems.append(problem)
    elif past:
        name = "max_length" if config.max_new_tokens is None else "max_new_tokens"
        size = len(rows[past[0]]) if name == "max_new_tokens" else 0
        problem = Problem(
            subject=name,
            message=f"with a prompt of {len(rows[past[0]])} tokens goes past the model's {positions} positions",
            expected=f"at most {positions - size}",
            found=str(getattr(config, name)),
        )
        problems.append(problem)
    return limits

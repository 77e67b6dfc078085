"""generate: text in, text out, on top of the compiled programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import jax.numpy as jnp
import numpy as np

from bombus.generation.loop import STOP_SLOTS, compile_programs
from bombus.generation.sampling import Sampling
from bombus.loader import GenerationConfig, LoadedModel, Tokenizer
from bombus.loader.tokenizer import check_vocabulary
from bombus.policies.errors import GenerationError, Problem

_DEFAULT_NEW_TOKENS = 128
_CHUNK = 64  # decode steps between two looks at the keyboard
_STREAM_CHUNK = 4  # and between two pieces of a stream


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The new tokens of one row, without the stop id. finish_reason: "stop" at a stop id, else "length"."""

    tokens: list[int]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A checked request: what the programs need, and no more."""

    prompts: list[list[int]]
    new_tokens: int
    sampling: Sampling
    stop_ids: tuple[int, ...]


@overload
def generate(
    loaded: LoadedModel, tokenizer: Tokenizer, prompt: str, *, stream: Literal[True], **options: Any
) -> Iterator[str]: ...


@overload
def generate(
    loaded: LoadedModel, tokenizer: Tokenizer, prompt: str, *, stream: Literal[False] = ..., **options: Any
) -> str: ...


@overload
def generate(
    loaded: LoadedModel, tokenizer: Tokenizer, prompt: Sequence[str], *, stream: Literal[False] = ..., **options: Any
) -> list[str]: ...


def generate(
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str],
    *,
    stream: bool = False,
    **options: Any,
) -> str | list[str] | Iterator[str]:
    """The text that follows `prompt`; a list of texts for a list of prompts; an iterator of pieces for a stream.

    The options are those of generate_tokens: max_new_tokens, temperature, top_k, top_p, seed, stop_token_ids.
    Raises GenerationError for a request that cannot be met.
    """
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if stream and not isinstance(prompt, str):
        raise GenerationError(Problem(subject="stream", message="takes one prompt", found=f"{len(texts)} prompts"))
    check_vocabulary(tokenizer, loaded.spec.vocab_size)
    prompts = [tokenizer.encode(text) for text in texts]
    if loaded.generation_config.eos_token_ids == () and tokenizer.eos_token_id is not None:
        options.setdefault("stop_token_ids", (tokenizer.eos_token_id,))
    request = _checked(loaded, prompts, **options)
    if stream:
        return tokenizer.stream(prompts[0], _token_stream(loaded, request))
    rows = _run(loaded, request)
    pieces = ["".join(tokenizer.stream(ids, iter(row.tokens))) for ids, row in zip(prompts, rows, strict=True)]
    return pieces[0] if isinstance(prompt, str) else pieces


def generate_tokens(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    stop_token_ids: Iterable[int] | None = None,
    generation_config: GenerationConfig | None = None,
) -> list[Generated]:
    """The new tokens of every prompt.

    temperature 0 is greedy; top_k 0 and top_p 1 filter nothing. What is not given comes from
    generation_config (default: the repository's generation_config.json). A seed per row, or one number for
    seed, seed + 1, ...: a row's sample does not depend on the rows beside it.

    None of these values compiles anything anew; a prompt or an answer of another size bucket, or another number
    of rows, does. Raises GenerationError that lists everything wrong with the request.
    """
    request = _checked(
        loaded,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_token_ids=stop_token_ids,
        generation_config=generation_config,
    )
    return _run(loaded, request)


def size_bucket(size: int) -> int:
    """The size that a program is compiled for: at least 16, and at most a quarter more than `size` above 64."""
    step = max(16, 1 << max(size.bit_length() - 3, 0))
    return -(-size // step) * step


def _run(loaded: LoadedModel, request: _Request) -> list[Generated]:
    *_, tokens = _chunks(loaded, request, _CHUNK)
    return [_trimmed(row.tolist(), request) for row in tokens]


def _token_stream(loaded: LoadedModel, request: _Request) -> Iterator[int]:
    sent = 0
    for tokens in _chunks(loaded, request, _STREAM_CHUNK):
        row = _trimmed(tokens[0].tolist(), request).tokens
        yield from row[sent:]
        sent = len(row)


def _chunks(loaded: LoadedModel, request: _Request, chunk: int) -> Iterator[np.ndarray]:
    """All the tokens so far, (B, count), after the first one and then after every `chunk` more."""
    longest = max(map(len, request.prompts))
    bucket = size_bucket(longest)
    tokens = np.zeros((len(request.prompts), bucket), np.int32)
    mask = np.zeros(tokens.shape, np.bool_)
    for row, prompt in enumerate(request.prompts):
        tokens[row, bucket - len(prompt) :] = prompt
        mask[row, bucket - len(prompt) :] = True
    slots = -(-max(len(request.stop_ids), 1) // STOP_SLOTS) * STOP_SLOTS
    stop = np.full((slots,), -1, np.int32)
    stop[: len(request.stop_ids)] = request.stop_ids
    arguments = (loaded.params, tokens, mask, request.sampling, stop)
    programs = compile_programs(loaded.model, *arguments, new_tokens=size_bucket(request.new_tokens))
    state = programs.prefill(*arguments)
    while True:
        count = int(state.count)
        yield np.asarray(state.tokens)[:, :count]
        if count >= request.new_tokens or bool(state.done.all()):
            return
        until = np.int32(min(count + chunk, request.new_tokens))
        state = programs.decode(loaded.params, state, request.sampling, stop, until)


def _trimmed(row: list[int], request: _Request) -> Generated:
    end = next((index for index, token in enumerate(row) if token in request.stop_ids), None)
    return Generated(tokens=row[:end], finish_reason="length" if end is None else "stop")


def _checked(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    stop_token_ids: Iterable[int] | None = None,
    generation_config: GenerationConfig | None = None,
) -> _Request:
    config = loaded.generation_config if generation_config is None else generation_config
    spec = loaded.spec
    rows = [list(map(int, prompt)) for prompt in prompts]
    problems: list[Problem] = []

    def check(name: str, value: Any, valid: bool, expected: str) -> None:
        if not valid:
            problems.append(Problem(subject=name, message="is out of range", expected=expected, found=repr(value)))

    temperature = config.temperature if temperature is None else temperature
    top_k = config.top_k if top_k is None else top_k
    top_p = config.top_p if top_p is None else top_p
    stop_ids = tuple(config.eos_token_ids if stop_token_ids is None else map(int, stop_token_ids))
    seeds = [seed + row for row in range(len(rows))] if isinstance(seed, int) else list(map(int, seed))
    longest = max(map(len, rows), default=0)
    room = spec.max_positions - longest
    asked = config.max_new_tokens if max_new_tokens is None else max_new_tokens
    new_tokens = min(_DEFAULT_NEW_TOKENS, max(room, 1)) if asked is None else asked
    check("model", spec.head, spec.head == "causal_lm", "the head causal_lm")
    check("temperature", temperature, 0 <= temperature < float("inf"), "a number from 0")
    check("top_k", top_k, 0 <= top_k < 2**31, "an integer from 0")
    check("top_p", top_p, 0 <= top_p <= 1, "a number from 0 to 1")
    check("max_new_tokens", new_tokens, new_tokens >= 1, "at least 1")
    check("seed", seed, len(seeds) == len(rows), f"one number, or one per row ({len(rows)})")
    check("prompts", len(rows), bool(rows), "at least one")
    for row, prompt in enumerate(rows):
        check(f"prompt {row}", "no tokens", bool(prompt), "at least one token")
        outside = [token for token in prompt if not 0 <= token < spec.vocab_size]
        check(f"prompt {row}", outside[:5], not outside, f"token ids below the vocabulary of {spec.vocab_size}")
    outside = [token for token in stop_ids if not 0 <= token < spec.vocab_size]
    check("stop_token_ids", outside, not outside, f"token ids below the vocabulary of {spec.vocab_size}")
    if new_tokens > max(room, 0):
        problems.append(
            Problem(
                subject="max_new_tokens",
                message=f"with a prompt of {longest} tokens goes past the model's {spec.max_positions} positions",
                expected=f"at most {max(room, 0)}",
                found=str(new_tokens),
            )
        )
    if config.unsupported:
        problems.append(
            Problem(
                subject="generation_config.json",
                message=f"asks for {', '.join(config.unsupported)}, which this version does not implement",
                remedy="pass generation_config=bombus.GenerationConfig(...) without it",
            )
        )
    if problems:
        raise GenerationError(problems, where="generate")

    def per_row(value: float, dtype: Any) -> jnp.ndarray:
        return jnp.full((len(rows),), value, dtype)

    return _Request(
        prompts=rows,
        new_tokens=new_tokens,
        sampling=Sampling(
            temperature=per_row(temperature, jnp.float32),
            top_k=per_row(top_k, jnp.int32),
            top_p=per_row(top_p, jnp.float32),
            seed=jnp.asarray([number % 2**32 for number in seeds], jnp.uint32),
        ),
        stop_ids=stop_ids,
    )

"""generate, chat and generate_tokens: text or tokens in, text or tokens out, on top of the compiled programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Unpack, overload

from bombus.generation.engine import Run
from bombus.generation.prompts import integers, listed
from bombus.generation.request import Options, Request, make_request
from bombus.generation.result import Generated
from bombus.generation.text import TextDecoder
from bombus.loader import GenerationConfig, LoadedModel, Tokenizer
from bombus.loader.tokenizer import check_vocabulary
from bombus.policies.errors import GenerationError, Problem

_CHUNK = 64  # decode steps between two looks at the keyboard
_TEXT_CHUNK = 16  # the same where stop strings are looked for
_STREAM_CHUNK = 4  # and between two pieces of a stream

Prompt = str | Sequence[str] | Sequence[int]


class TextStream(Iterator[str]):
    """The pieces of a text while it is made. `cancel` ends it, from inside the loop over it or from another thread."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pieces = run.pieces(_STREAM_CHUNK)

    def __next__(self) -> str:
        while not self._run.finished:
            (piece, *_) = next(self._pieces)
            if piece:
                return piece
        raise StopIteration

    def cancel(self) -> None:
        """No more pieces; the result is what there is so far. Nothing if the stream has ended."""
        self._run.cancel()
        with suppress(ValueError):  # it is running, in the thread that reads: it ends by itself
            self._pieces.close()

    @property
    def result(self) -> Generated:
        """The Generated of the whole text, when the stream has ended. Raises GenerationError before."""
        if not self._run.finished:
            problem = Problem(subject="stream", message="has not ended", remedy="read all of its pieces, or cancel it")
            raise GenerationError(problem)
        return self._run.results()[0]


@overload
def generate(
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    stream: Literal[True],
    return_details: bool = ...,
    **options: Unpack[Options],
) -> TextStream: ...


@overload
def generate(
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    stream: Literal[False] = ...,
    return_details: Literal[False] = ...,
    **options: Unpack[Options],
) -> str: ...


@overload
def generate(
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    stream: bool = ...,
    return_details: bool = ...,
    **options: Unpack[Options],
) -> Any: ...


def generate(
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    stream: bool = False,
    return_details: bool = False,
    **options: Unpack[Options],
) -> str | list[str] | Generated | list[Generated] | TextStream:
    """The text that follows `prompt`; a list of texts for a list of prompts; a TextStream of its pieces for a stream.

    prompt: a text, several, or the token ids of one. return_details: Generated objects in place of texts, with tokens,
    finish_reason and timings. With num_return_sequences above 1 there are as many texts for each prompt, in a list.
    The other options are those of generate_tokens. Raises GenerationError for a request that cannot be met.
    """
    single = isinstance(prompt, str) or integers(prompt) is not None
    prompts: list[Any] = [prompt] if single else listed(prompt) or []
    check_vocabulary(tokenizer, loaded.spec.vocab_size)
    ids = [tokenizer.encode(text) if isinstance(text, str) else text for text in prompts]
    config = options.get("generation_config") or loaded.generation_config
    if isinstance(config, GenerationConfig) and not config.eos_token_ids and tokenizer.eos_token_id is not None:
        options.setdefault("stop_token_ids", (tokenizer.eos_token_id,))
    request = make_request(loaded, ids, options, has_text=True)
    if stream and request.plan.strategy.beams > 1:
        found = f"num_beams={request.plan.strategy.beams}"
        problem = Problem(subject="stream", message="is not for beams, which are known at the end only", found=found)
        raise GenerationError(problem, where="generate")
    if stream and len(request.prompts) != 1:
        found = f"{len(request.prompts)} of them"
        raise GenerationError(Problem(subject="stream", message="takes one prompt and gives one text", found=found))
    run = Run(loaded, request, _decoders(tokenizer, request))
    if stream:
        return TextStream(run)
    found_rows = finished(run)
    results: list[Any] = found_rows if return_details else [row.text for row in found_rows]
    return results[0] if single and len(results) == 1 else results


def chat(
    loaded: LoadedModel,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    stream: bool = False,
    return_details: bool = False,
    tools: Sequence[Any] | None = None,
    template_variables: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Any:
    """The answer to a conversation, [{"role": "user", "content": ...}, ...], put into the repository's chat template.

    tools: descriptions of functions, for templates that know them. template_variables: what else reaches the template,
    such as {"enable_thinking": False} of Qwen3. The rest as of generate.
    """
    variables = {"tools": tools, **(template_variables or {})}
    ids = tokenizer.encode_chat(messages, **variables)
    return generate(loaded, tokenizer, ids, stream=stream, return_details=return_details, **options)


def generate_tokens(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], **options: Unpack[Options]
) -> list[Generated]:
    """The new tokens of every prompt.

    Settings have the names and meaning of generation_config.json: do_sample, temperature (0 is greedy), top_k, top_p,
    min_p, typical_p, repetition_penalty, max_new_tokens, ...: see GenerationConfig. What is not given comes from
    `generation_config` (default: the repository's), then from the defaults of transformers. A temperature says
    whether to sample where do_sample does not. stop_token_ids: in place of the file's eos ids.

    seed: one per row, or a number for seed, seed + 1, ...: a row does not depend on the rows beside it.
    logprobs, top_logprobs: return log-probabilities of the tokens, and of that many most probable ones (at most 20).
    processors: functions (logits (B, V), history) -> logits, or LogitsProcessor objects with a state, applied before
    sampling; they are compiled into the program.
    cache_format: how keys and values are stored, see CacheFormat ("int8", {"keys": "int8", "values": "int4"}, ...).
    prefill_chunk: how many prompt tokens are read at a time; "auto" for what fits into prefill_memory bytes (1 GiB).

    None of the settings compiles anything anew; a prompt or an answer of another size bucket, another number of rows,
    processors, the cache's format, num_beams, prompt_lookup_num_tokens, and top_k under a penalty_alpha do. Raises
    GenerationError that lists everything wrong with the request.
    """
    return finished(Run(loaded, make_request(loaded, prompts, options, has_text=False)))


def finished(run: Run) -> list[Generated]:
    """The results of a run, when all of its rows have ended."""
    looks = any(row.decoder is not None for row in run.rows) and bool(run.request.config.stop_strings)
    for _ in run.pieces(_TEXT_CHUNK if looks else _CHUNK):
        pass
    return run.results()


def _decoders(tokenizer: Tokenizer, request: Request) -> list[TextDecoder]:
    return [TextDecoder(tokenizer, prompt, request.config.stop_strings) for prompt, _ in request.asked]

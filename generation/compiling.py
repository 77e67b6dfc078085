"""Compiling ahead of time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Unpack

from bombus.generation.loop import compile_programs
from bombus.generation.request import Options, make_request
from bombus.loader import LoadedModel


def warmup(
    loaded: LoadedModel,
    *,
    prompt_tokens: int | Iterable[int] = 16,
    batch_sizes: int | Iterable[int] = 1,
    **options: Unpack[Options],
) -> dict[tuple[int, int], float]:
    """Compile what prompts of these lengths need, in batches of these sizes: (rows, tokens) compiled for -> seconds.

    The options are those of generate_tokens; what is compiled into a program has to be the same in later calls:
    max_new_tokens (to its bucket: fewer take a program of their own), cache_format, processors, prefill_chunk.
    Nothing is generated.
    """
    seconds: dict[tuple[int, int], float] = {}
    for rows in [batch_sizes] if isinstance(batch_sizes, int) else batch_sizes:
        for size in [prompt_tokens] if isinstance(prompt_tokens, int) else prompt_tokens:
            prompts: Sequence[Sequence[int]] = [[0] * size] * rows
            request = make_request(loaded, prompts, options, has_text=True)
            began = time.perf_counter()
            compile_programs(loaded.model, loaded.params, request.rows, request.bucket, request.call, request.plan)
            seconds[request.rows, request.bucket] = time.perf_counter() - began
    return seconds

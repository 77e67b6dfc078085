"""What a request becomes: rows, padding, limits, seeds, and the sizes that programs are compiled for."""

from __future__ import annotations

from typing import Any

import numpy as np

import bombus
from bombus.generation.request import Request, make_request
from bombus.generation.sizes import (
    SMALLEST_CHUNK,
    batch_bucket,
    chunked_bucket,
    prefill_bytes,
    prefill_chunk,
    size_bucket,
)
from bombus.kernels import native


def test_what_a_request_becomes(loaded: bombus.LoadedModel) -> None:
    """Rows, their padding, their limits and seeds; rows that nobody asked for end at once."""
    prompts = [[row + 1] * (row + 2) for row in range(9)]
    request = make_request(loaded, prompts, {"max_length": 40, "seed": list(range(50, 59))}, has_text=False)
    assert (request.rows, request.bucket, request.plan.chunk, request.plan.new_tokens) == (10, 16, 16, 48)
    assert request.limits == list(range(38, 29, -1))
    assert request.new_tokens == 38
    assert request.asked == list(zip(prompts, request.limits, strict=True))
    assert np.asarray(request.call.sampling.seed).tolist() == [*range(50, 59), 0]
    tokens, mask, done = request.padded()
    assert tokens[1].tolist() == [0] * 13 + [2] * 3
    assert mask.sum(axis=1).tolist() == [*range(2, 11), 0]
    assert mask[3, -5:].all()
    assert done.tolist() == [False] * 9 + [True]
    stops = make_request(loaded, [[1]], {"stop_token_ids": [9, 4]}, has_text=False).call.sampling.stop
    assert stops[:3].tolist() == [9, 4, -1]
    several = make_request(
        loaded, [[1], [2]], {"num_return_sequences": 2, "temperature": 1.0, "seed": 7}, has_text=False
    )
    assert (several.prompts, several.limits) == ([[1], [1], [2], [2]], [128] * 4)
    assert np.asarray(several.call.sampling.seed).tolist() == [7, 8, 9, 10]
    assert not bool(several.call.wants_logprobs)
    assert bool(make_request(loaded, [[1]], {"logprobs": True}, has_text=False).call.wants_logprobs)
    assert bool(make_request(loaded, [[1]], {"top_logprobs": 1}, has_text=False).call.wants_logprobs)


def test_how_many_tokens_a_request_may_have(loaded: bombus.LoadedModel) -> None:
    """max_new_tokens before max_length before what fits, up to 128; the file's own forced end is at the last one."""

    def limits(**options: Any) -> Request:
        return make_request(loaded, [[1] * 400, [1]], options, has_text=False)

    assert limits(max_new_tokens=7, max_length=500).limits == [7, 7]
    assert limits(max_length=401).limits == [1, 400]
    assert limits().limits == [112, 128]
    forced = np.asarray(limits(max_new_tokens=7, forced_eos_token_id=3).call.sampling.forced_N)
    assert np.flatnonzero(forced >= 0).tolist() == [6]
    whole = limits(max_new_tokens=7, prefill_chunk=None)
    assert (whole.bucket, whole.plan.chunk) == (448, 448)
    parts = limits(max_new_tokens=7, prefill_chunk=100)
    assert (parts.bucket, parts.plan.chunk) == (480, 96)
    assert limits(max_new_tokens=7, prefill_memory=1).plan.chunk == SMALLEST_CHUNK
    beams = limits(max_length=402, num_beams=3, num_return_sequences=2)
    assert [limit for _, limit in beams.asked] == [2, 2, 401, 401]
    assert beams.call.sampling.seed.shape == (6,)
    lookup = limits(prompt_lookup_num_tokens=4, max_new_tokens=7)
    assert lookup.plan.strategy.lookback >= 4
    assert lookup.call.sampling.forced_N.shape == (16 + lookup.plan.strategy.lookback,)


def test_sizes() -> None:
    """Every bucket up to where steps grow, by numbers."""
    sizes = {1: 16, 16: 16, 17: 32, 64: 64, 65: 80, 127: 128, 128: 128, 129: 160, 256: 256, 257: 320, 1000: 1024}
    assert {size: size_bucket(size) for size in sizes} == sizes
    rows = {1: 1, 8: 8, 9: 10, 16: 16, 17: 20, 33: 40, 65: 80}
    assert {row: batch_bucket(row) for row in rows} == rows
    assert chunked_bucket(100, 64) == (128, 64)
    assert chunked_bucket(100, 112) == (112, 112)
    assert chunked_bucket(100, 111) == (128, 64)
    assert chunked_bucket(300, 100) == (320, 80)
    assert chunked_bucket(400, 100) == (480, 96)
    assert chunked_bucket(33, 16) == (48, 16)


def test_the_estimate_of_memory(loaded: bombus.LoadedModel) -> None:
    """By its formula: the widest kernel, activations, and what a token sees or, with XLA's attention, scores, their
    weights and masks; four bytes each."""
    model = loaded.model
    of_slot = 3 * model.spec.num_heads if native.library().loaded is None else 1
    shapes = [shape for path, shape in model.shapes.items() if path.startswith("decoder.") and len(shape) > 1]
    floats = of_slot * 640 + 4 * max(shape[-2] for shape in shapes) + 8 * model.spec.hidden_size
    assert prefill_bytes(model, 3, 32, 640) == 4 * 3 * 32 * floats
    one = prefill_bytes(model, 2, 1, 512 + 64)
    assert prefill_chunk(model, 2, 500, 64, one * 512) == 512
    assert prefill_chunk(model, 2, 500, 64, one * 512 - 1) == 256
    assert prefill_chunk(model, 2, 400, 128, one * 448) == 448
    assert prefill_chunk(model, 2, 500, 64, one * 128) == 128
    assert prefill_chunk(model, 2, 500, 64, one * 128 - 1) == 64
    assert prefill_chunk(model, 2, 500, 64, one * 7) == SMALLEST_CHUNK

"""The sizes that programs are compiled for: how many rows, prompt tokens and new tokens, and how many at a time."""

from __future__ import annotations

import jax

from bombus.kernels import native
from bombus.models import Model

SMALLEST_CHUNK = 16


def size_bucket(size: int) -> int:
    """The number of tokens that a program is compiled for: at least 16, above 64 at most a quarter more than `size`."""
    step = max(16, 1 << max(size.bit_length() - 3, 0))
    return -(-size // step) * step


def batch_bucket(rows: int) -> int:
    """The number of rows that a program is compiled for: `rows` up to 8, and at most a quarter more above."""
    step = 1 << max((rows - 1).bit_length() - 3, 0)
    return -(-rows // step) * step


def prefill_bytes(model: Model, batch: int, chunk: int, slots: int) -> int:
    """About how many bytes it takes to read `chunk` prompt tokens a row with a cache of `slots`, beside that cache.

    The widest activations of a feed-forward; and which slots a token sees, or the float32 scores and weights of one
    layer's attention where the C++ kernels, which keep none, do not compute it.
    """
    spec = model.spec
    kernels = [shape for path, shape in model.shapes.items() if path.startswith("decoder.") and len(shape) > 1]
    # Each token goes through some of the experts, a stack of kernels, and is copied for each of them.
    chosen = getattr(spec, "num_experts_per_token", 1)
    widest = max(shape[-2] * (chosen if len(shape) == 3 else 1) for shape in kernels)
    keeps_scores = jax.default_backend() != "cpu" or native.library().loaded is None
    of_slot = 3 * spec.num_heads if keeps_scores else 1
    floats = of_slot * slots + 4 * widest + 8 * spec.hidden_size
    return 4 * batch * chunk * floats


def prefill_chunk(model: Model, batch: int, prompt: int, new_tokens: int, memory: int) -> int:
    """The most tokens of every prompt that are read at a time within so many bytes: all of them, or a power of two.

    At least SMALLEST_CHUNK, which may take more.
    """
    bucket = size_bucket(prompt)
    slots = bucket + new_tokens
    if prefill_bytes(model, batch, bucket, slots) <= memory:
        return bucket
    fitting = memory // prefill_bytes(model, batch, 1, slots)
    return max(SMALLEST_CHUNK, 1 << max(fitting.bit_length() - 1, 0))


def chunked_bucket(prompt: int, chunk: int) -> tuple[int, int]:
    """(the bucket of a prompt, how much of it is read at a time): at most `chunk`, and equal parts of the bucket."""
    bucket = size_bucket(prompt)
    pieces = -(-bucket // chunk)
    part = -(-bucket // (pieces * SMALLEST_CHUNK)) * SMALLEST_CHUNK if pieces > 1 else bucket
    return part * pieces, part

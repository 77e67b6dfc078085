"""A program that loads a model through the cache, and lets its parent decide when it goes on.

    python caching_process.py CHECKPOINT CACHE

When its file is written but for the last parameter it prints "writing" and waits for a line; then it prints a digest
of the parameters.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import bombus
from bombus.loader import cache
from bombus.models.model import flat


def digest(params: Any) -> str:
    """A digest of all bits of the parameters, and their paths and types."""
    result = hashlib.sha256()
    for path, value in sorted(flat(params).items()):
        result.update(f"{path} {value.dtype} {value.shape}".encode() + np.asarray(value).tobytes())
    return result.hexdigest()


if __name__ == "__main__":
    real = cache.stream_parameters

    def stream(*arguments: Any) -> Iterator[Any]:
        *first, last = real(*arguments)
        yield from first
        print("writing", flush=True)
        sys.stdin.readline()
        yield last

    cache.stream_parameters = stream
    print(digest(bombus.load_model(sys.argv[1], cache=sys.argv[2]).params), flush=True)

"""How fast this machine reads its memory: what a decode step, which reads every weight once, cannot be faster than."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

SIZE = 1 << 30  # bytes, far past the caches
_PASSES = 6
_PARTS = 8  # for each core, so that one that is held up does not hold up the others


def read_bandwidth(*, size: int = SIZE, passes: int = _PASSES) -> float:
    """Bytes per second that all cores together read from memory: the best of several passes over a buffer of `size`.

    A pass is the maximum of all bytes, of NumPy's reductions the one that is least held up by its own arithmetic;
    they let go of Python's lock.
    """
    cores = os.cpu_count() or 1
    # Of ones: pages that were never written are all the same page, and in the cache.
    parts = np.array_split(np.ones(size, np.uint8), _PARTS * cores)
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(passes):
            began = time.perf_counter()
            found = list(pool.map(np.maximum.reduce, parts))
            best = max(best, size / (time.perf_counter() - began))
            assert set(map(int, found)) == {1}
    return best

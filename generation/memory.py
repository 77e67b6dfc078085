"""What a process holds that nobody uses."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_WORTH_IT = 4 << 20


def give_back(freed: int = _WORTH_IT) -> None:
    """Return freed memory to the system, where its C library can: compilers leave a quarter of a gigabyte behind.

    Takes 5 ms; so for a few bytes, `freed`, it does nothing.
    """
    if freed < _WORTH_IT:
        return
    with suppress(AttributeError, OSError, TypeError):  # another C library than glibc, or none that can be named
        ctypes.CDLL(None).malloc_trim(0)

"""How much work a chat template may do, counted while it runs: steps, memory, sizes of values, depth, time.

A template comes with a checkpoint, so it may be anybody's. Jinja's sandbox keeps it from Python's internals, not from
`'a' * 300000000` or four nested loops. Every list of a template knows its size written out (`[x, x]` has x twice), so
no value is ever larger than what a prompt may be, and whatever is done with one takes a bounded time.
"""

from __future__ import annotations

import sys
from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from time import monotonic
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits. A prompt of a million tokens has five million characters; the largest template known 30,000.

    scopes: names times blocks, a measure of what Jinja does to compile a template.
    A step is a node of the template that is visited; an operation counts as thirty, a call as a hundred, and more
    for long operands. memory: bytes of all values that are made, in all.
    """

    template: int = 131_072
    nodes: int = 20_000
    scopes: int = 500_000
    text: int = 10_000_000
    steps: int = 40_000_000
    memory: int = 1 << 29
    calls: int = 64
    nesting: int = 100
    numbers: int = 100_000
    bits: int = 63
    seconds: float = 30.0


class LimitReached(Exception):
    """A limit that a template went past. No ValueError or TypeError: filters of Jinja take those for an answer."""

    def __init__(self, message: str, expected: str, found: str | None = None) -> None:
        super().__init__(message)
        self.message, self.expected, self.found = message, expected, found


class Sized:
    """A container of a template: `bombus_size` characters written out, `bombus_nesting` containers deep."""

    bombus_size: int
    bombus_nesting: int


class TemplateList(list[Any], Sized):
    """A list that knows its size."""


class TemplateTuple(tuple[Any, ...], Sized):
    """A tuple that knows its size."""


class TemplateDict(dict[Any, Any], Sized):
    """A dict that knows its size."""


_SIZED: dict[type, Any] = {list: TemplateList, tuple: TemplateTuple, dict: TemplateDict}
for _kind, _own in _SIZED.items():  # what messages of Jinja and Python say
    _own.__name__, _own.__module__ = _kind.__name__, "builtins"
_VIEWS = (ItemsView, KeysView, ValuesView)
_OF_A_CONTAINER = 200  # bytes, beside its items
_OF_OTHERS = 128  # characters, at most: of true, a float, a function


class Budget:
    """What is left of the limits in one rendering."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._steps = limits.steps
        self._memory = limits.memory
        self._calls = 0
        self._end = monotonic() + limits.seconds
        self._look = self._steps

    def spend(self, steps: int) -> None:
        """Takes steps from those that are left."""
        self._steps -= steps
        if self._steps < self._look:
            self._look = self._steps - 10_000
            if self._steps < 0:
                raise LimitReached("takes too many steps", f"at most {self.limits.steps:,}")
            if monotonic() > self._end:
                raise LimitReached("takes too long", f"at most {self.limits.seconds:g} seconds")

    def reserve(self, size: int) -> None:
        """Takes bytes from the memory that is left."""
        self._memory -= size
        if self._memory < 0:
            raise LimitReached("makes too many values", f"at most {self.limits.memory:,} bytes in all")

    def check_text(self, size: int) -> None:
        """Refuses a value of `size` characters, before it is made, where that is too long."""
        if size > self.limits.text:
            raise LimitReached("makes too long a text", f"at most {self.limits.text:,} characters", f"{size:,}")

    def check_bits(self, bits: int) -> None:
        """Refuses an integer of `bits`, before it is made, where that is too large."""
        if bits > self.limits.bits:
            raise LimitReached("makes too large a number", f"at most {self.limits.bits} bits")

    def enter(self) -> None:
        """Goes into a call, of which there may be only so many within each other."""
        self._calls += 1
        if self._calls > self.limits.calls:
            raise LimitReached("nests its calls too deeply", f"at most {self.limits.calls}")

    def leave(self) -> None:
        """Comes back from a call."""
        self._calls -= 1

    def size(self, value: Any) -> int:
        """The characters of a value, written out."""
        return self._measure(value)[0]

    def keep(self, value: Any) -> Any:
        """A value that a template has made, checked; a container as one that knows its size."""
        kind = type(value)
        if isinstance(value, str):
            self.check_text(len(value))
            self.reserve(sys.getsizeof(value))
        elif kind in _SIZED:
            value = self._sized(value, kind)
        return value

    def join_lists(self, left: list[Any], right: list[Any]) -> TemplateList:
        """One list after the other. Without looking at every item: templates put lists together one by one."""
        (size, nesting), (more, deeper) = self._measure(left), self._measure(right)
        self.check_text(size + more)
        result = TemplateList(left)
        result += right
        self.reserve(sys.getsizeof(result) + _OF_A_CONTAINER)
        result.bombus_size, result.bombus_nesting = size + more, max(nesting, deeper)
        return result

    def plain(self, value: Any, where: str, problems: list[str], nesting: int = 0) -> Any:
        """A value of the caller, of nothing but the types of JSON; adds to `problems` where it has others."""
        if value is None or isinstance(value, bool):
            return value
        for kind in (str, int, float):
            if isinstance(value, kind):  # of a subclass only the value
                return str.__str__(value) if isinstance(value, str) else kind(value)
        if nesting > self.limits.nesting:
            raise LimitReached("is given values that are nested too deeply", f"at most {self.limits.nesting} deep")
        if isinstance(value, Mapping):
            pairs = {
                self.plain(key, f"a key of {where}", problems, nesting + 1): self.plain(
                    item, f"{where}.{key}", problems, nesting + 1
                )
                for key, item in value.items()
            }
            return self._sized(pairs, dict)
        if isinstance(value, list | tuple):
            items = [self.plain(item, f"{where}[{i}]", problems, nesting + 1) for i, item in enumerate(value)]
            return self._sized(items, list)
        problems.append(f"{where} is {type(value).__name__}")
        return None

    def _sized(self, value: Any, kind: Any) -> Any:
        size, nesting = self._measure(value)
        self.check_text(size)
        if nesting > self.limits.nesting:
            raise LimitReached("nests its lists too deeply", f"at most {self.limits.nesting} deep")
        self.reserve(sys.getsizeof(value) + _OF_A_CONTAINER)
        result = _SIZED[kind](value)
        result.bombus_size, result.bombus_nesting = size, nesting
        return result

    def _measure(self, value: Any) -> tuple[int, int]:
        """(characters written out, how deep the containers are in each other)."""
        if isinstance(value, str):
            return len(value), 0
        if isinstance(value, Sized):
            return value.bombus_size, value.bombus_nesting
        if isinstance(value, int):
            return value.bit_length() // 3 + 2, 0
        if isinstance(value, range):
            return 24 * len(value), 1
        items: Iterable[Any]
        if isinstance(value, dict):
            items = [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, *_VIEWS)):
            items = value
        else:
            # Here and not above: Jinja takes a while to import, and who reads a tokenizer wants the limits alone.
            from jinja2.runtime import Macro

            return _OF_OTHERS + (len(value.name or "") if isinstance(value, Macro) else 0), 0
        size, nesting, count = 2, 0, 0
        for item in items:
            # Quotes, a comma, a space.
            within, depth = self._measure(item)
            size, nesting, count = size + within + 4, max(nesting, depth), count + 1
            self.check_text(size)
        self.spend(count)
        return size, nesting + 1

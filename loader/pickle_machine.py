"""The stack machine that a pickle is a program of, without anything of Python in it: names stay names.

It builds plain values (None, bool, int, float, str, tuple, list, dict) and calls only the functions that it is given.
Values may be nested to any depth and be parts of themselves; so nothing here prints, compares or hashes one that is
not a text or a number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_BYTES = 100_000_000  # as for the header of a safetensors file
_MAX_MEMO = 2_000_000  # torch.save uses 12 places for a parameter
_MAX_MARKS = 1_000
_MAX_TEXT = 1_000_000
_MAX_NAME = 1_000
_MAX_REFUSED = 100
CONVERT = "convert it with the safetensors library where you trust it"

Function = Callable[[tuple[Any, ...]], Any]


class Invalid(Exception):
    """What is wrong with a pickle; raised where it is found, by the machine or by a function that it calls."""

    def __init__(self, text: str, remedy: str = "download the file again") -> None:
        super().__init__(text)
        self.remedy = remedy


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The full name of a class, function or constant, as a pickle spells it; it is never imported."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a pickle may name: functions that it may call, and constants that stand for themselves.

    unsupported: names that are refused in words of their own -> what they stand for.
    """

    functions: Mapping[str, Function] = field(default_factory=dict)
    constants: AbstractSet[str] = frozenset()
    unsupported: Mapping[str, str] = field(default_factory=dict)


def fill(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Adds pairs to a dict. Raises Invalid for a key that is there, or that is neither text nor a small number."""
    for key, value in pairs:
        # The hash of a tuple recurses without a limit, and large numbers can be chosen such that their hashes collide.
        if type(key) is not str and not (type(key) is int and abs(key) < 1 << 32):
            raise Invalid(f"a dict has a key that is a {type(key).__name__}, or too large", CONVERT)
        if key in target:
            raise Invalid(f"a dict has the key {shown(key)} twice")
        target[key] = value


def shown(value: str | int) -> str:
    """A text or number of a file, printable and not long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


class Machine:
    """The state of a pickle that is being read: what is left of it, its stack, its memo, the names it may not use."""

    def __init__(self, file: BinaryIO, names: Names, persistent: Function | None) -> None:
        self.file = file
        self.names = names
        self.persistent = persistent
        self.start = file.tell()
        self.text_bytes = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stack below each open mark
        self.memo: dict[int, Any] = {}
        self.refused: dict[str, None] = {}

    # What follows an opcode.

    @property
    def position(self) -> int:
        """The number of bytes read."""
        return self.file.tell() - self.start

    def take(self, count: int) -> bytes:
        """The next bytes of the file."""
        data = self.file.read(count)
        if len(data) < count:
            raise Invalid("it ends early")
        return data

    def number(self, layout: struct.Struct) -> Any:
        """A number of fixed size."""
        return layout.unpack(self.take(layout.size))[0]

    def counted(self, width: int) -> bytes:
        """Bytes behind their number, which is `width` bytes itself."""
        count = int.from_bytes(self.take(width), "little")
        self.budget(count)
        return self.take(count)

    def budget(self, count: int) -> None:
        """Raises Invalid when a text, or all up to this one, are too long."""
        self.text_bytes += count
        if count > _MAX_TEXT:
            raise Invalid(f"a text has {count} bytes, more than {_MAX_TEXT}", CONVERT)
        if self.text_bytes > MAX_BYTES:
            raise Invalid(f"its texts have more than {MAX_BYTES} bytes", CONVERT)

    def text(self, width: int) -> str:
        """A text behind its number of bytes."""
        return _decoded(self.counted(width))

    def line(self) -> str:
        """A text up to the end of its line."""
        data = self.file.readline(_MAX_NAME)
        if not data.endswith(b"\n"):
            raise Invalid("a name ends early, or is too long")
        return _decoded(data[:-1])

    # The stack and the memo.

    def top(self) -> Any:
        """The last value on the stack, which stays there."""
        if not self.stack:
            raise Invalid("a value is missing on the stack")
        return self.stack[-1]

    def pop(self, count: int) -> list[Any]:
        """The last values, which leave the stack."""
        if len(self.stack) < count:
            raise Invalid("a value is missing on the stack")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def mark(self) -> None:
        """Starts a stack of its own."""
        if len(self.marks) == _MAX_MARKS:
            raise Invalid(f"more than {_MAX_MARKS} marks are open", CONVERT)
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """All values since the last mark."""
        if not self.marks:
            raise Invalid("a mark is missing on the stack")
        values, self.stack = self.stack, self.marks.pop()
        return values

    def put(self, place: int) -> None:
        """Keeps the last value in the memo."""
        if place >= _MAX_MEMO:
            raise Invalid(f"the memo has more than {_MAX_MEMO} places", CONVERT)
        self.memo[place] = self.top()

    def get(self, place: int) -> Any:
        """A value of the memo."""
        if place not in self.memo:
            raise Invalid(f"nothing is at place {place} of the memo")
        return self.memo[place]

    # What values are made of. A name that is refused stands for whatever would have come of it.

    def extend(self, values: list[Any]) -> None:
        """Appends to the list on the stack."""
        target = self.top()
        if type(target) is list:
            target.extend(values)
        elif not self._is_refused(target):
            raise Invalid(f"values are appended to a {type(target).__name__}")

    def update(self, values: list[Any]) -> None:
        """Adds keys and values to the dict on the stack."""
        target = self.top()
        if len(values) % 2:
            raise Invalid("a key has no value")
        if type(target) is dict:
            fill(target, zip(values[::2], values[1::2], strict=True))
        elif not self._is_refused(target):
            raise Invalid(f"keys are set in a {type(target).__name__}")

    def name(self, module: Any, name: Any) -> Global:
        """The name of something of Python; noted as refused when it is not known."""
        if type(module) is not str or type(name) is not str or max(len(module), len(name)) > _MAX_NAME:
            raise Invalid("a global has no name, or one that is too long")
        full = f"{module}.{name}"
        self.budget(len(full))
        if len(self.refused) == _MAX_REFUSED:
            raise Invalid("too many names", CONVERT)
        if full not in self.names.functions and full not in self.names.constants:
            self.refused[full] = None
        return Global(full)

    def call(self, function: Any, arguments: Any) -> Any:
        """What a known function returns."""
        if type(function) is not Global or type(arguments) is not tuple:
            raise Invalid("something is called that is no function, or with no arguments")
        if self._is_refused(function):
            return function
        if function.name not in self.names.functions:
            raise Invalid(f"{function.name} is called, which is no function")
        return self.names.functions[function.name](arguments)

    def build(self, target: Any, attributes: Any) -> Any:
        """The target. Attributes are no part of a value: torch has the versions of modules in them."""
        if type(target) is not dict and not self._is_refused(target):
            raise Invalid(f"attributes are set on a {type(target).__name__}", CONVERT)
        return target

    def refer(self, identity: Any) -> Any:
        """What a persistent id stands for."""
        if self.persistent is None or type(identity) is not tuple:
            raise Invalid("a persistent id stands where none is expected")
        return self.persistent(identity)

    def _is_refused(self, value: Any) -> bool:
        return type(value) is Global and value.name in self.refused


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("a text is not UTF-8") from error

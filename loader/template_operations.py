"""The filters, tests and methods that a chat template may use, and what each costs: see template_limits.

The lists are those of the templates of published models, with some room. What is not there can be done without, and
is there to make text look nice (center, wordwrap, filesizeformat), or would let a width be a billion (format).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bombus.loader.template_limits import Budget, LimitReached

FILTERS = frozenset(
    (
        *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format"),
        *("indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject"),
        *("rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "title"),
        *("tojson", "trim", "unique", "upper"),
    )
)
_AT_ONCE = frozenset(("abs", "count", "d", "default", "first", "last", "length", "round", "safe"))
_ITEM_BY_ITEM = frozenset(
    ("dictsort", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique")
)
_SEARCHES = frozenset(
    (
        *("count", "endswith", "find", "index", "lstrip", "partition", "removeprefix", "removesuffix", "replace"),
        *("rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "startswith", "strip"),
    )
)
TEXT_METHODS = _SEARCHES | {
    *("capitalize", "casefold", "isalnum", "isalpha", "isdecimal", "isdigit", "islower", "isnumeric", "isspace"),
    *("istitle", "isupper", "join", "lower", "splitlines", "swapcase", "title", "upper"),
}
METHODS: Sequence[tuple[type, frozenset[str]]] = (
    (str, frozenset(TEXT_METHODS)),
    (dict, frozenset({"get", "items", "keys", "values"})),
    (list, frozenset({"count", "index"})),
    (tuple, frozenset({"count", "index"})),
)
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_SPACES = _LINE_ENDS + "\t \x1f\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_PLAIN_FORMAT = re.compile(r"(?:[^%]|%[sdi%])*")
_MAX_PLACES = 100
_MAX_INDENT = 16
_OF_A_PIECE = 64  # bytes
CALL = 100  # steps, of everything that goes through several functions of Python
OPERATION = 30


def spend_on_search(budget: Budget, text: int, needle: int) -> None:
    """Takes the steps of a search for a text in another: from the right, it looks at all of it at every place."""
    budget.spend(text * max(needle, 1) // 64)


def before_method(budget: Budget, name: str, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Takes the cost of a method of a text, and refuses one whose result would be too long."""
    values = [*args, *kwargs.values()]
    if name in _SEARCHES:
        needles = values[:1] if name == "replace" else values
        spend_on_search(budget, len(text), max(map(budget.size, needles), default=1))
    else:
        budget.spend(_steps_of(name, len(text)))
    if name == "replace":
        _check_replace(budget, text, values)
    elif name == "join" and values:
        _check_join(budget, text, values[0])
    elif name in ("split", "rsplit"):
        budget.spend(len(text) // 4)
        separator = args[0] if args else kwargs.get("sep")
        most = args[1] if len(args) > 1 else kwargs.get("maxsplit", -1)
        count = _count(text, separator if isinstance(separator, str) and separator else _SPACES)
        budget.reserve(_OF_A_PIECE * (min(count, most) if isinstance(most, int) and most >= 0 else count))
    elif name == "splitlines":
        budget.reserve(_OF_A_PIECE * _count(text, _LINE_ENDS))


def before_filter(budget: Budget, name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Takes the cost of a filter, and refuses one whose result would be too long."""
    values = [*args, *kwargs.values()]
    size, others = budget.size(value), sum(map(budget.size, values))
    items = 0 if isinstance(value, str) or not hasattr(value, "__len__") else len(value)
    budget.spend(CALL + _steps_of(name, size) + (items * (OPERATION + others) if name in _ITEM_BY_ITEM else 0))
    first = values[0] if values else None
    if name == "join":
        _check_join(budget, first, value)
    elif name == "replace":
        text = value if isinstance(value, str) else str(value)
        spend_on_search(budget, len(text), budget.size(values[0]) if values else 1)
        _check_replace(budget, text, values)
    elif name == "trim" and isinstance(value, str):
        spend_on_search(budget, len(value), others)
    elif name == "indent" and isinstance(value, str):
        width = next((v for v in values if isinstance(v, int | str) and not isinstance(v, bool)), 4)
        budget.check_text(
            len(value) + (_count(value, _LINE_ENDS) + 2) * (len(width) if isinstance(width, str) else width)
        )
    elif name in ("list", "title") and isinstance(value, str):
        budget.reserve(_OF_A_PIECE * len(value))
    elif name == "round" and any(isinstance(v, int) and abs(v) > _MAX_PLACES for v in values):
        raise LimitReached("rounds to too many places", f"at most {_MAX_PLACES}")
    elif name == "format":
        check_format(budget, value, values)
    elif name == "tojson":
        for option in (kwargs.get("indent"), *args[1:2]):
            if (len(option) if isinstance(option, str) else option or 0) > _MAX_INDENT:
                raise LimitReached("indents JSON too far", f"at most {_MAX_INDENT}")


def _steps_of(name: str, characters: int) -> int:
    """The steps of a filter or method that goes through a text, or a list."""
    if name in _AT_ONCE:
        return 0
    return 4 * characters if name == "title" else characters if name == "tojson" else characters // 8


def check_format(budget: Budget, text: Any, values: Any) -> None:
    """Refuses a format with more than %s and %d in it: a width may be a billion."""
    budget.spend(budget.size(text))
    if not isinstance(text, str) or not _PLAIN_FORMAT.fullmatch(text):
        raise LimitReached("formats text in a way that is not allowed", "only %s, %d and %%")
    budget.check_text(len(text) + budget.size(values))


def _check_replace(budget: Budget, text: str, values: Sequence[Any]) -> None:
    if len(values) >= 2:
        old, new = str(values[0]), str(values[1])
        budget.check_text(len(text) + text.count(old) * max(len(new) - len(old), 0))


def _check_join(budget: Budget, separator: Any, items: Any) -> None:
    count = len(items) if hasattr(items, "__len__") else 0
    budget.check_text(budget.size(items) + count * (0 if separator is None else budget.size(separator)))


def _count(text: str, separators: str) -> int:
    """How many pieces a text may be cut into: at every one of several characters, or at one longer text."""
    if separators in (_SPACES, _LINE_ENDS):
        return sum(map(text.count, separators)) + 1
    return text.count(separators) + 1

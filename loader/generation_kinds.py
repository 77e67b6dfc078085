"""The kinds of a generation setting: what each may be, how it is kept, and how a file writes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from bombus.policies.errors import Problem

_INT32 = 2**31 - 1
_MOST = 1e30  # Sums of larger biases could leave float32.
_BIAS = f"a bias from {-_MOST} to {_MOST}, or -inf"


class WrongKindError(ValueError):
    """A value is not of its setting's kind, or is outside its range."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a setting may be.

    freeze: the value as it is kept, or WrongKindError; message and expected: what is said then.
    ids: the token ids of a kept value that a model must have. from_json, to_json: between a file's value and ours.
    in_file, in_call: the setting's names there, where they are not its own.
    """

    freeze: Callable[[Any], Any]
    message: str = "is out of range"
    expected: str | None = None
    ids: Callable[[Any], Iterable[int]] = lambda _: ()
    from_json: Callable[[Any], Any] = lambda value: value
    to_json: Callable[[Any], Any] = lambda value: value
    in_file: str | None = None
    in_call: str | None = None

    def problem(self, subject: str, value: Any, shown: Any) -> Problem | None:
        """What is wrong with a value, None when nothing is; shown: the value as it was given."""
        try:
            self.freeze(value)
        except WrongKindError:
            return Problem(subject=subject, message=self.message, expected=self.expected, found=repr(shown)[:80])
        return None


def number(default: float, low: float, high: float, *, above: bool = False, below: bool = False) -> Any:
    """A dataclass field: a number from low to high; above, below: without low, without high."""

    def freeze(value: Any) -> float:
        _require(is_number(value) and low <= value <= high)
        _require(not (above and value == low) and not (below and value == high))
        return float(value)

    expected = f"a number {'above' if above else 'from'} {low} to {'below ' * below}{high}"
    return _field(default, Kind(freeze=freeze, expected=expected))


def whole(default: int | None, low: int, high: int | None = _INT32) -> Any:
    """A dataclass field: an integer from low to high, without high any; None only where that is the default."""

    def freeze(value: Any) -> int | None:
        if value is None and default is None:
            return None
        _require(is_number(value) and low <= value and (high is None or value <= high))
        _require(isinstance(value, Integral) or float(value).is_integer())
        return int(value)

    return _field(default, Kind(freeze=freeze, expected=f"an integer from {low}" + (f" to {high}" if high else "")))


def one_of(default: Any, *values: Any, expected: str) -> Any:
    """A dataclass field: one of the values, and of its type."""

    def freeze(value: Any) -> Any:
        _require(any(type(value) is type(known) and value == known for known in values))
        return value

    return _field(default, Kind(freeze=freeze, expected=expected))


def token_id(*, drawn: bool = True, several: bool = False) -> Any:
    """A dataclass field: a token id or None. drawn: the model must have it; several: the first of a list counts."""

    def freeze(value: Any) -> int | None:
        if several and isinstance(value, list | tuple):
            return next(iter(_ids(value)), None)
        return None if value is None else _id(value)

    def ids(value: int | None) -> tuple[int, ...]:
        return (value,) if drawn and value is not None else ()

    message = "must be a token id or a list of them" if several else "must be a token id"
    return _field(None, Kind(freeze=freeze, message=message, ids=ids, from_json=_only))


def token_ids(in_file: str | None = None, in_call: str | None = None) -> Any:
    """A dataclass field: token ids, or one."""

    def freeze(value: Any) -> tuple[int, ...]:
        return (_id(value),) if isinstance(value, Integral) else _ids(value)

    message = "must be a token id or a list of them"
    kind = Kind(freeze=freeze, message=message, ids=tuple, to_json=list, in_file=in_file, in_call=in_call)
    return _field((), kind)


def words() -> Any:
    """A dataclass field: sequences of token ids, none of them empty."""

    def freeze(value: Any) -> tuple[tuple[int, ...], ...]:
        return tuple(map(_sequence, _items(value)))

    def to_json(value: tuple[tuple[int, ...], ...]) -> list[list[int]]:
        return [list(word) for word in value]

    message = "must be a list of lists of token ids, none of them empty"
    return _field((), Kind(freeze=freeze, message=message, ids=_flat, to_json=to_json))


def sequence_biases() -> Any:
    """A dataclass field: pairs (token ids, the bias of the last one after the others), or a mapping."""

    def freeze(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
        return tuple({_sequence(key): _bias(bias) for key, bias in _pairs(value)}.items())

    def to_json(value: tuple[tuple[tuple[int, ...], float], ...]) -> list[list[Any]]:
        return [[list(word), bias] for word, bias in value]

    message = f"must be pairs of a list of token ids, not empty, and {_BIAS}"
    return _field((), Kind(freeze=freeze, message=message, ids=lambda value: _flat(dict(value)), to_json=to_json))


def biases() -> Any:
    """A dataclass field: pairs (token id, bias), or a mapping, whose ids may be text as in JSON."""

    def freeze(value: Any) -> tuple[tuple[int, float], ...]:
        return tuple({_id(_from_text(key)): _bias(bias) for key, bias in _pairs(value)}.items())

    def to_json(value: tuple[tuple[int, float], ...]) -> dict[str, float]:
        return {str(token): bias for token, bias in value}

    message = f"must be pairs of a token id and {_BIAS}"
    return _field((), Kind(freeze=freeze, message=message, ids=dict, to_json=to_json))


def forced() -> Any:
    """A dataclass field: pairs (index of the new token, token id), or a mapping.

    A file's forced_decoder_ids count the token that a text starts with, which is there already, and null forces none.
    """

    def freeze(value: Any) -> tuple[tuple[int, int], ...]:
        pairs = {_id(index): _id(token) for index, token in _pairs(value)}
        _require(all(index <= _INT32 for index in pairs))
        return tuple(pairs.items())

    def from_json(value: Any) -> Any:
        try:
            pairs = [(_id(index) - 1, token) for index, token in _pairs(value)]
        except WrongKindError:
            return value
        return tuple((index, token) for index, token in pairs if token is not None or index < 0)

    def to_json(value: tuple[tuple[int, int], ...]) -> list[list[int]]:
        return [[index + 1, token] for index, token in value]

    message = "must be pairs of a new token's index (from 0, in forced_decoder_ids from 1) and a token id"
    kind = Kind(freeze=freeze, message=message, ids=lambda value: dict(value).values(), from_json=from_json)
    return _field((), replace(kind, to_json=to_json, in_file="forced_decoder_ids"))


def strings() -> Any:
    """A dataclass field: texts that are not empty, or one."""

    def freeze(value: Any) -> tuple[str, ...]:
        texts = (value,) if isinstance(value, str) else _items(value)
        _require(all(isinstance(text, str) and text for text in texts))
        return tuple(texts)

    return _field(
        (), Kind(freeze=freeze, message="must be a text or a list of texts, none of them empty", to_json=list)
    )


def _field(default: Any, kind: Kind) -> Any:
    return field(default=default, metadata={"kind": kind})


def _require(held: bool) -> None:
    if not held:
        raise WrongKindError


def is_number(value: Any) -> bool:
    """Whether it is an integer or a real number, of Python or NumPy."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _id(value: Any) -> int:
    _require(isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0)
    return int(value)


def _bias(value: Any) -> float:
    _require(is_number(value) and (-_MOST <= value <= _MOST or value == -math.inf))
    return float(value)


def _from_text(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 11 else value


def _only(value: Any) -> Any:
    """The element of a list of one, which is how some files write a token id."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _items(value: Any) -> tuple[Any, ...]:
    _require(isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping))
    return tuple(value)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(map(_id, _items(value)))


def _sequence(value: Any) -> tuple[int, ...]:
    ids = _ids(value)
    _require(bool(ids))
    return ids


def _pairs(value: Any) -> Iterable[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, Mapping) else map(_items, _items(value))
    for pair in pairs:
        _require(len(pair) == 2)
        yield pair


def _flat(words: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(token for word in words for token in word)

"""CacheFormat: what the keys and values of a cache are kept as. What the formats mean is in stored.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias

from bombus.policies.errors import PolicyError, Problem, closest
from bombus.policies.formats import find_format
from bombus.policies.kinds import FLOATS

WHERE = "cache format"
QUANTIZED = ("f8_e4m3fn", "int8", "int4")
CACHED = (*FLOATS, *QUANTIZED)
_SCALES = ("token", "head")
_VERSION = "bombus_cache_format"

# For each layer the largest magnitudes of its keys and of its values, by key/value head.
HeadScales: TypeAlias = tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]


class CacheShape(NamedTuple):
    """What a layer caches of a token: a key of `key_dim` and a value of `value_dim` for each of its heads.

    A value_dim of 0: the keys are the values as well.
    """

    num_kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """What the keys and values of a cache are kept as; nothing is quantized by default.

    keys, values: f32, bf16, f16, f8_e4m3fn, int8 or int4; None for the type that they are computed in.
    scales: "token" for a scale of every slot and head, "head" for one of every head, fixed by calibration.
    zero_points: whether integer codes with scales of their slot have a zero point too; other codes never have one.
    full_layers: layers whose keys and values stay in the type they are computed in; -1 is the last.
    recent: how many of the last slots, its own included, a query reads in the type they were computed in.
    head_scales: what calibration measured, see `HeadScales`; () without.
    Raises PolicyError that lists all that is wrong.
    """

    keys: str | None = None
    values: str | None = None
    scales: Literal["token", "head"] = "token"
    zero_points: bool = True
    full_layers: tuple[int, ...] = ()
    recent: int = 0
    head_scales: HeadScales = ()

    def __post_init__(self) -> None:
        problems: list[Problem] = []
        same = self.keys == self.values
        keys = _format_name("keys and values" if same else "keys", self.keys, problems)
        object.__setattr__(self, "values", keys if same else _format_name("values", self.values, problems))
        object.__setattr__(self, "keys", keys)
        for name in ("full_layers", "head_scales"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        if not problems:
            problems = self._mismatches()
        if problems:
            raise PolicyError(problems, where=WHERE)

    @property
    def is_quantized(self) -> bool:
        """Whether any keys or values are codes."""
        return self.keys in QUANTIZED or self.values in QUANTIZED

    def of_layer(self, index: int, num_layers: int) -> tuple[str | None, str | None]:
        """What the keys and the values of a layer are kept as."""
        full = index in self.full_layers or index - num_layers in self.full_layers
        return (None, None) if full else (self.keys, self.values)

    def check(self, num_layers: int, shape: CacheShape) -> None:
        """Raise PolicyError where this does not fit a model of so many layers that cache this of a token."""
        problems = [
            Problem(
                subject=f"full_layers: layer {layer}",
                message="does not exist",
                expected=f"{-num_layers} to {num_layers - 1}",
            )
            for layer in self.full_layers
            if not -num_layers <= layer < num_layers
        ]
        if shape.value_dim == 0 and self.values not in (None, self.keys):
            problems.append(
                Problem(
                    subject=f"values: {self.values}",
                    message="cannot differ from keys: this model's keys are its values as well",
                    expected=str(self.keys),
                )
            )
        problems += [
            Problem(
                subject=f"{name}: int4",
                message="holds two codes a byte, so that heads need an even size",
                found=str(size),
                remedy="take int8",
            )
            for name, size in (("keys", shape.key_dim), ("values", shape.value_dim))
            if getattr(self, name) == "int4" and size % 2
        ]
        if self.scales == "head":
            heads = (shape.num_kv_heads, shape.num_kv_heads if shape.value_dim else 0)
            expected, found = [heads] * num_layers, [tuple(map(len, layer)) for layer in self.head_scales]
            if found != expected:
                problems.append(
                    Problem(
                        subject="head_scales",
                        message="are of another model",
                        expected=f"{num_layers} layers of {heads[0]} keys and {heads[1]} values",
                        found=f"{len(found)} layers of {found[0][0]} keys and {found[0][1]} values",
                    )
                )
        if problems:
            raise PolicyError(problems, where=WHERE)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` makes the same format of, with the version of its form."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {_VERSION: 1} | {key: _thawed(value) for key, value in given.items()}

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any]) -> CacheFormat:
        """The format in a JSON text or in the object that it holds. Raises PolicyError for anything else."""
        if isinstance(source, str):
            try:
                source = json.loads(source)
            except ValueError as error:
                raise PolicyError(Problem(subject="JSON", message=f"cannot be read: {error}"), where=WHERE) from None
        if not isinstance(source, Mapping):
            raise PolicyError(
                Problem(subject="JSON", message="must be an object", found=type(source).__name__), where=WHERE
            )
        known = [field.name for field in fields(cls)]
        problems = [
            Problem(subject=f"setting {key!r}", message="does not exist", remedy=closest(str(key), known))
            for key in source
            if key not in (*known, _VERSION)
        ]
        if source.get(_VERSION, 1) != 1:
            problems.append(
                Problem(subject=_VERSION, message="is not known", expected="1", found=str(source[_VERSION]))
            )
        if problems:
            raise PolicyError(problems, where=WHERE)
        return cls(**{key: value for key, value in source.items() if key != _VERSION})

    def _mismatches(self) -> list[Problem]:
        wrong = [
            (self.scales not in _SCALES, "scales", "is not known", "token or head", repr(self.scales)),
            (type(self.zero_points) is not bool, "zero_points", "is not known", "yes or no", repr(self.zero_points)),
            (not _count(self.recent), "recent", "must count slots", "0 or more", repr(self.recent)),
            (
                not all(type(layer) is int for layer in self.full_layers),
                *("full_layers", "must be numbers of layers", "whole numbers", str(list(self.full_layers))),
            ),
            (
                not _are_head_scales(self.head_scales),
                *("head_scales", "must be a pair of keys and values for each layer, of the numbers of its heads"),
                *("finite numbers, 0 or more", None),
            ),
        ]
        problems = [
            Problem(subject=subject, message=message, expected=expected, found=found)
            for bad, subject, message, expected, found in wrong
            if bad
        ]
        if problems:
            return problems
        if not self.is_quantized:
            idle = {"recent": self.recent > 0, "scales": self.scales == "head"}
            idle["full_layers"] = bool(self.full_layers) and self.keys is None and self.values is None
            problems += [
                Problem(
                    subject=name,
                    message="changes nothing: neither keys nor values are quantized",
                    remedy=f"give keys or values as {', '.join(QUANTIZED[:-1])} or {QUANTIZED[-1]}",
                )
                for name, is_idle in idle.items()
                if is_idle
            ]
        elif (self.scales == "head") != bool(self.head_scales):
            needs = self.scales == "head"
            problems.append(
                Problem(
                    subject="scales" if needs else "head_scales",
                    message="of heads are fixed by calibration" if needs else "are for scales of heads",
                    remedy="measure head_scales with calibrate_cache" if needs else 'give scales="head"',
                )
            )
        return problems


CacheFormatLike: TypeAlias = str | Mapping[str, Any] | CacheFormat | None


def as_cache_format(value: CacheFormatLike) -> CacheFormat:
    """The CacheFormat that is meant by None (nothing quantized), a format for keys and values both, or a mapping.

    Raises PolicyError.
    """
    if isinstance(value, CacheFormat):
        return value
    if value is None or isinstance(value, str):
        return CacheFormat(keys=value, values=value)
    return CacheFormat.from_json(value)


def _format_name(field: str, value: Any, problems: list[Problem]) -> str | None:
    if value is None:
        return None
    try:
        found = find_format(value)
    except PolicyError:
        shown = value if isinstance(value, str) else str(value)
        problems.append(
            Problem(subject=f"{field}: {shown}", message="is not a cache format", remedy=closest(shown, CACHED))
        )
        return None
    if found.name in CACHED and not found.options:
        return found.name
    options = f"{found.name} without options" if found.name in CACHED else ", ".join(CACHED)
    problems.append(Problem(subject=f"{field}: {found}", message="is not a cache format", expected=options))
    return None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_head_scales(value: Any) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(layer, tuple) and len(layer) == 2 for layer in value):
        return False
    heads = [head for layer in value for heads in layer for head in (heads if isinstance(heads, tuple) else (None,))]
    return all(isinstance(head, int | float) and math.isfinite(head) and head >= 0 for head in heads)

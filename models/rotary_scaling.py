"""The keys of one section that stretches rotary positions, by type, read and written; and the check of a field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bombus.layers.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Scaling,
    YarnScaling,
)
from bombus.policies.errors import Problem

_TYPES: Mapping[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}
_ORIGINAL = "original_max_position_embeddings"
_POSITIONS = "max_position_embeddings"
# The keys of each type and what they hold.
KEYS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "linear": {"factor": "float"},
    "dynamic": {"factor": "float"},
    "llama3": {"factor": "float", "low_freq_factor": "float", "high_freq_factor": "float", _ORIGINAL: "int"},
    "yarn": {
        "factor": "float",
        _ORIGINAL: "int",
        "beta_fast": "float",
        "beta_slow": "float",
        "attention_factor": "float",
        "mscale": "float",
        "mscale_all_dim": "float",
        "truncate": "bool",
    },
    "longrope": {
        "short_factor": "list",
        "long_factor": "list",
        _ORIGINAL: "int",
        "factor": "float",
        "attention_factor": "float",
    },
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
# Keys whose 0 stands for "not given", as in transformers.
_ZERO_IS_NONE = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_NAMES: Mapping[type, str] = {
    LinearScaling: "linear",
    DynamicScaling: "dynamic",
    Llama3Scaling: "llama3",
    YarnScaling: "yarn",
    LongScaling: "longrope",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One object of config.json that says how positions are rotated, and where its problems go.

    `original` is what stands beside the section and goes before its own key; `positions` is the length for which the
    model is made, None when the file does not say it.
    """

    name: str
    values: Mapping[str, Any]
    original: Any
    positions: Any
    problems: list[Problem]

    def refuse(self, key: str, message: str, expected: str | None = None, found: Any = None) -> None:
        """Add one problem of the field `key`."""
        text = None if found is None else repr(found)
        subject = f"field '{self.name}.{key}'"
        self.problems.append(Problem(subject=subject, message=message, expected=expected, found=text))

    def kind(self) -> str | None:
        """The rotary type, None when it is not supported."""
        kind = self.values.get("rope_type") or self.values.get("type") or "default"
        kind = "longrope" if kind == "su" else kind
        if isinstance(kind, str) and kind in KEYS:
            return kind
        *others, last = KEYS
        self.problems.append(
            Problem(
                subject=f"field {self.name!r}",
                message=f"asks for rotary type {kind!r}, which is not supported",
                expected=f"{', '.join(others)} or {last}",
            )
        )
        return None

    def scaling(self, kind: str) -> Scaling | None:
        """The scaling of this type; None for the default, and with a problem more when something is wrong."""
        before = len(self.problems)
        values = self._checked(kind)
        if len(self.problems) > before:
            return None
        if kind == "linear":
            return LinearScaling(**values)
        if kind == "dynamic":
            return DynamicScaling(**values)
        if kind == "llama3":
            if not values["low_freq_factor"] < values["high_freq_factor"]:
                low = f"more than low_freq_factor, {values['low_freq_factor']}"
                self.refuse("high_freq_factor", "is too small", low, values["high_freq_factor"])
                return None
            return Llama3Scaling(**values)
        if kind == "yarn":
            return YarnScaling(**values)
        return self._long(values) if kind == "longrope" else None

    def _checked(self, kind: str) -> dict[str, Any]:
        """The arguments of the scaling: what is given, of the right type and in range."""
        values = {}
        for key, expected in KEYS[kind].items():
            value = self.values.get(key)
            if key == _ORIGINAL:
                value = self._original(kind, value)
            elif value is None and key in _REQUIRED[kind]:
                if kind == "yarn" and key in self.values:
                    continue  # null: the ratio of the two lengths, below
                self.refuse(key, "is missing")
            if value is None or (key in _ZERO_IS_NONE and value == 0):
                continue
            field = "original_max_positions" if key == _ORIGINAL else key
            values[field] = self._numbers(key, value) if expected == "list" else self._number(key, value, expected)
        if kind == "dynamic":
            values["original_max_positions"] = self._max_positions()
        elif kind == "yarn" and "factor" in self.values and "factor" not in values:
            values["factor"] = self._max_positions() / values.get("original_max_positions", 1)
        return values

    def _original(self, kind: str, inner: Any) -> Any:
        value = inner if self.original is None else self.original
        if value is None and kind == "llama3":
            self.refuse(_ORIGINAL, "is missing")
        elif value is None:
            value = self._max_positions()
        return value

    def _max_positions(self) -> Any:
        """The length for which the model is made; 1 and one more problem when there is none."""
        found: list[Problem] = []
        value = self.positions
        if value is None:
            found.append(Problem(subject=f"field {_POSITIONS!r}", message="is missing", expected="int"))
        else:
            value = checked(_POSITIONS, value, "int", found)
            if not found and value < 1:
                found.append(Problem(subject=f"field {_POSITIONS!r}", message="must be positive", found=str(value)))
        # The spec checks this field as well.
        self.problems.extend([problem for problem in found if problem not in self.problems])
        return 1 if found else value

    def _number(self, key: str, value: Any, expected: str) -> Any:
        before = len(self.problems)
        value = checked(f"{self.name}.{key}", value, expected, self.problems)
        if expected != "bool" and len(self.problems) == before and not 0 < value < math.inf:
            self.refuse(key, "must be positive", None, value)
        return value

    def _numbers(self, key: str, value: Any) -> tuple[float, ...]:
        if not isinstance(value, list):
            self.refuse(key, "has the wrong type", "a list of numbers", value)
            return ()
        return tuple(self._number(f"{key}[{index}]", item, "float") for index, item in enumerate(value))

    def _long(self, values: dict[str, Any]) -> LongScaling | None:
        original, factor = values["original_max_positions"], values.pop("factor", None)
        if "attention_factor" not in values:
            before = len(self.problems)
            ratio = self._max_positions() / original if factor is None else factor
            if len(self.problems) > before:
                return None
            if ratio > 1 and original == 1:
                self.refuse(_ORIGINAL, "is too small", "at least 2", original)
                return None
            values["attention_factor"] = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
        return LongScaling(**values)


def scaling_to_hf(scaling: Scaling) -> dict[str, Any]:
    """The section of a scaling, without its theta; `Section.scaling` reads it back to an equal one.

    The original length of type dynamic is `max_position_embeddings`, which does not stand in the section.
    """
    kind = _NAMES[type(scaling)]
    section: dict[str, Any] = {"rope_type": kind}
    for field in fields(scaling):
        key = _ORIGINAL if field.name == "original_max_positions" else field.name
        value = getattr(scaling, field.name)
        if key in KEYS[kind] and value is not None:
            section[key] = list(value) if isinstance(value, tuple) else value
    return section


def positions_to_hf(scaling: Scaling | None) -> dict[str, int]:
    """`max_position_embeddings` of type dynamic, which has its original length there."""
    return {_POSITIONS: scaling.original_max_positions} if isinstance(scaling, DynamicScaling) else {}


def checked(key: str, value: Any, expected: str, problems: list[Problem]) -> Any:
    """`value` when it has the `expected` type ("int", "float", ...); else one more problem, and a number that fits."""
    accepted = _TYPES[expected]
    # bool is an int in Python, but `true` for a size is a mistake.
    if not isinstance(value, accepted) or (isinstance(value, bool) and accepted is not bool):
        problems.append(
            Problem(subject=f"field {key!r}", message="has the wrong type", expected=expected, found=repr(value))
        )
        return 1
    return float(value) if expected == "float" else value

"""Fields of a spec: where config.json has them, and the check of what it has there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, field
from typing import Any

from bombus.models.rotary import checked
from bombus.policies.errors import Problem

_OPTIONAL = " | None"


def hf(key: str, *aliases: str, default: Any = MISSING) -> Any:
    """A spec field that is read from (and written to) `key` of config.json; required unless it has a default.

    Its type is int, float, bool or str; one of these `| None`, where null means None; or a tuple of any length of one
    of them, which is a list in the file.
    """
    return field(default=default, metadata={"hf": (key, *aliases)})


def keys_of(entry: Field[Any]) -> tuple[str, ...]:
    """The keys of config.json that a field is read from, the first of them first; none for a field of another kind."""
    return tuple(entry.metadata.get("hf", ()))


def read_field(entry: Field[Any], config: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """name -> value of a field, as config.json has it; nothing where it does not say, and a problem if it must."""
    keys, expected = keys_of(entry), str(entry.type)
    key = next((key for key in keys if config.get(key) is not None), None)
    if key is not None:
        return {entry.name: _value(key, config[key], expected.removesuffix(_OPTIONAL), problems)}
    if expected.endswith(_OPTIONAL) and any(key in config for key in keys):
        return {entry.name: None}
    if keys and entry.default is MISSING:
        problems.append(Problem(subject=f"field {keys[0]!r}", message="is missing", expected=expected))
    return {}


def _value(key: str, value: Any, expected: str, problems: list[Problem]) -> Any:
    if not expected.startswith("tuple["):
        return checked(key, value, expected, problems)
    of = expected.removeprefix("tuple[").removesuffix(", ...]")
    if not isinstance(value, list | tuple):
        problems.append(
            Problem(subject=f"field {key!r}", message="has the wrong type", expected=f"list of {of}", found=repr(value))
        )
        return ()
    return tuple(checked(f"{key}[{index}]", item, of, problems) for index, item in enumerate(value))


def written(value: Any) -> Any:
    """A field's value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value

"""Parameters as a nested dict, and as a flat one by dotted path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Params: TypeAlias = dict[str, Any]


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict of parameters as path -> leaf."""
    result: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            result |= {f"{name}.{rest}": leaf for rest, leaf in flat(value).items()}
        else:
            result[name] = value
    return result


def nested(values: Mapping[str, Any]) -> Params:
    """path -> leaf as a nested dict; the inverse of `flat`."""
    result: Params = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return result

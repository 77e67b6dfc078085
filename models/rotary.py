"""The fields of config.json that say how positions are rotated, in their two spellings; and the check of a field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bombus.layers.rotary import Llama3Scaling, Rotary
from bombus.policies.errors import Problem

_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_TYPES: Mapping[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}


def rotary_from_hf(config: Mapping[str, Any], *, default_theta: float, problems: list[Problem]) -> Rotary:
    """Rotary positions from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        problems.append(Problem(subject="field 'rope_scaling'", message="must be an object", found=repr(parameters)))
        return Rotary(theta=default_theta)
    theta = next((it["rope_theta"] for it in (parameters, config) if it.get("rope_theta") is not None), default_theta)
    theta = checked("rope_theta", theta, "float", problems)
    if not theta > 0:
        problems.append(Problem(subject="field 'rope_theta'", message="must be positive", found=repr(theta)))
    problems += [
        Problem(subject=f"field 'rope_scaling.{key}'", message=f"is {value!r}, and nothing here reads it")
        for key, value in parameters.items()
        if key not in ("rope_theta", "rope_type", "type", *_LLAMA3_KEYS) and value is not None
    ]
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return Rotary(theta=theta)
    if kind != "llama3":
        problems.append(
            Problem(
                subject="field 'rope_scaling'",
                message=f"asks for rotary type {kind!r}, which is not supported",
                expected="default or llama3",
            )
        )
        return Rotary(theta=default_theta)
    missing = [key for key in _LLAMA3_KEYS if parameters.get(key) is None]
    problems += [Problem(subject=f"field 'rope_scaling.{key}'", message="is missing") for key in missing]
    if missing:
        return Rotary(theta=default_theta)
    factor, low, high = (checked(key, parameters[key], "float", problems) for key in _LLAMA3_KEYS[:3])
    original = checked(_LLAMA3_KEYS[3], parameters[_LLAMA3_KEYS[3]], "int", problems)
    return Rotary(
        theta=theta,
        scaling=Llama3Scaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_positions=original
        ),
    )


def rotary_to_hf(rotary: Rotary) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the spelling that every version of transformers reads."""
    if rotary.scaling is None:
        return {"rope_theta": rotary.theta, "rope_scaling": None}
    scaling = rotary.scaling
    return {
        "rope_theta": rotary.theta,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        },
    }


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

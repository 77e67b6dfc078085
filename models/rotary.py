"""The fields of config.json that say how positions are rotated, in their two spellings, read and written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bombus.layers.rotary import Rotary
from bombus.layers.rotary_scaling import LongScaling
from bombus.models.rotary_scaling import KEYS, Section, checked, positions_to_hf, scaling_to_hf
from bombus.policies.errors import Problem

__all__ = ["checked", "rotary_by_layer_type", "rotary_by_layer_type_to_hf", "rotary_from_hf", "rotary_to_hf"]

_OLD, _NEW = "rope_scaling", "rope_parameters"
_FRACTION = "partial_rotary_factor"
# What older files have for each layer type where transformers 5 nests `rope_parameters` (Gemma 3).
LAYER_THETA_KEYS: Mapping[str, str] = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}


def rotary_from_hf(
    config: Mapping[str, Any],
    *,
    default_theta: float,
    problems: list[Problem],
    theta_keys: Sequence[str] = ("rope_theta",),
    fraction_keys: Sequence[str] = (_FRACTION,),
    default_fraction: float = 1.0,
    max_positions: int | None = None,
) -> Rotary:
    """Rotary positions from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    What stands in the section goes before what stands beside it under `theta_keys` and `fraction_keys`. Without
    `fraction_keys` the model rotates whole heads, and another fraction is refused. `max_positions` counts where the
    file has no `max_position_embeddings`. Returns something to go on with when `problems` grew.
    """
    name = _OLD if config.get(_OLD) else _NEW
    values = config.get(name) or {}
    if not isinstance(values, Mapping):
        problems.append(Problem(subject=f"field {name!r}", message="must be an object", found=repr(values)))
        return Rotary(theta=default_theta)
    original = config.get("original_max_position_embeddings")
    section = _section(config, name, values, original, max_positions, problems)
    return _rotary(section, config, (theta_keys, default_theta), (fraction_keys, default_fraction))


def rotary_by_layer_type(
    config: Mapping[str, Any],
    *,
    default_thetas: Mapping[str, float],
    problems: list[Problem],
    theta_keys: Mapping[str, str] = LAYER_THETA_KEYS,
    scaled: str = "full_attention",
    max_positions: int | None = None,
) -> dict[str, Rotary]:
    """Rotary positions for each layer type of `default_thetas`, of whole heads.

    Read from the sections of `rope_parameters` (transformers 5), or from one theta per type under `theta_keys` and
    `rope_scaling` for the layers of type `scaled` (before). Where both are, `rope_scaling` goes before.
    """
    nested, scaling = config.get(_NEW) or {}, config.get(_OLD) or {}
    found = {}
    for name, values in ((_NEW, nested), (_OLD, scaling)):
        if not isinstance(values, Mapping):
            problems.append(Problem(subject=f"field {name!r}", message="must be an object", found=repr(values)))
            return {kind: Rotary(theta=theta) for kind, theta in default_thetas.items()}
    for key, value in nested.items():
        if key not in default_thetas and value is not None:
            message = f"is {value!r}, and nothing here reads it"
            problems.append(Problem(subject=f"field '{_NEW}.{key}'", message=message))
    for kind, default_theta in default_thetas.items():
        name, values = f"{_NEW}.{kind}", nested.get(kind) or {}
        if not isinstance(values, Mapping):
            problems.append(Problem(subject=f"field {name!r}", message="must be an object", found=repr(values)))
            values = {}
        if kind == scaled and scaling:
            name, values = _OLD, {**values, **scaling}
        section = _section(config, name, values, None, max_positions, problems)
        keys = [theta_keys[kind]] if kind in theta_keys else []
        found[kind] = _rotary(section, config, (keys, default_theta), ((), 1.0))
    return found


def rotary_to_hf(
    rotary: Rotary,
    *,
    theta_key: str = "rope_theta",
    fraction_key: str = _FRACTION,
    default_fraction: float = 1.0,
) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the spelling that every version of transformers reads.

    The fraction is written where it is not the model's `default_fraction`. A length that transformers reads from
    config.json itself is there as well: `max_position_embeddings` for type dynamic.
    """
    config: dict[str, Any] = {theta_key: rotary.theta}
    if rotary.fraction != default_fraction:
        config[fraction_key] = rotary.fraction
    config[_OLD] = None if rotary.scaling is None else scaling_to_hf(rotary.scaling)
    if isinstance(rotary.scaling, LongScaling):
        # Phi-3's configuration has a length of its own there, which would go before that of the section.
        config["original_max_position_embeddings"] = rotary.scaling.original_max_positions
    return config | positions_to_hf(rotary.scaling)


def rotary_by_layer_type_to_hf(
    rotaries: Mapping[str, Rotary],
    *,
    theta_keys: Mapping[str, str] = LAYER_THETA_KEYS,
    scaled: str = "full_attention",
) -> dict[str, Any]:
    """The fields of config.json that `rotary_by_layer_type` reads back to the same.

    They are there in both spellings, as far as the older one can say them.
    """
    config: dict[str, Any] = {}
    nested = {}
    for kind, rotary in rotaries.items():
        section = {"rope_type": "default"} if rotary.scaling is None else scaling_to_hf(rotary.scaling)
        nested[kind] = {**section, "rope_theta": rotary.theta}
        if kind in theta_keys:
            config[theta_keys[kind]] = rotary.theta
        if kind == scaled:
            config[_OLD] = None if rotary.scaling is None else section
        config |= positions_to_hf(rotary.scaling)
    return config | {_NEW: nested}


def _section(
    config: Mapping[str, Any],
    name: str,
    values: Mapping[str, Any],
    original: Any,
    max_positions: int | None,
    problems: list[Problem],
) -> Section:
    positions = config.get("max_position_embeddings")
    positions = max_positions if positions is None else positions
    return Section(name=name, values=values, original=original, positions=positions, problems=problems)


def _rotary(
    section: Section,
    config: Mapping[str, Any],
    theta: tuple[Sequence[str], float],
    fraction: tuple[Sequence[str], float],
) -> Rotary:
    """The rotary positions of one section, and of the keys (with a default) that may stand beside it."""
    problems, before = section.problems, len(section.problems)
    base_key, base = _number(section, config, "rope_theta", *theta)
    if len(problems) == before and not 0 < base < math.inf:
        problems.append(Problem(subject=f"field {base_key!r}", message="must be positive", found=repr(base)))
    sound = len(problems) == before
    share_key, share = _number(section, config, _FRACTION, *fraction)
    if not fraction[0] and share != 1:
        section.refuse(_FRACTION, f"is {share!r}, and this architecture rotates whole heads")
    elif not 0 < share <= 1:
        message = "must be above 0 and at most 1"
        problems.append(Problem(subject=f"field {share_key!r}", message=message, found=repr(share)))
    kind = section.kind()
    scaling = None
    if kind is not None:
        for key, value in section.values.items():
            if key not in ("rope_theta", "rope_type", "type", _FRACTION, *KEYS[kind]) and value is not None:
                section.refuse(key, f"is {value!r}, and nothing here reads it")
        scaling = section.scaling(kind)
    if kind == "yarn" and sound and base <= 1:
        message = "must be above 1 for rotary type 'yarn'"
        problems.append(Problem(subject=f"field {base_key!r}", message=message, found=repr(base)))
    if len(problems) > before:
        return Rotary(theta=theta[1])
    return Rotary(theta=base, scaling=scaling, fraction=share)


def _number(
    section: Section, config: Mapping[str, Any], inner: str, outer: Sequence[str], default: float
) -> tuple[str, float]:
    """The first number that is given, with its place: inside the section, beside it, or the default."""
    places = [(f"{section.name}.{inner}", section.values.get(inner)), *((key, config.get(key)) for key in outer)]
    key, value = next((place for place in places if place[1] is not None), (inner, default))
    return key, checked(key, value, "float", section.problems)

"""compressed-tensors' part of config.json: groups of layers and how their weights are stored, read and written.

Source: the compressed-tensors package's QuantizationConfig and QuantizationArgs. Only weights count: activations and
the cache are computed here in the type that the policy says, and their scales are in the report of the load.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bombus.policies.errors import Problem, SpecError
from bombus.policies.formats import Format, find_format

_FIELD = "quantization_config"
# The `format` of a group: how compressed-tensors calls the layout of each of our formats.
_NAMES = {
    "int4": "pack-quantized",
    "int8": "pack-quantized",
    "f8_e4m3fn": "float-quantized",
    "mxfp8": "mxfp8-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
_KNOWN = (*dict.fromkeys(_NAMES.values()), "int-quantized", "naive-quantized", "mixed-precision", "dense")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers, by `targets`, and the format of their weights."""

    targets: tuple[str, ...]
    format: Format


def find_group(layer: str, groups: tuple[Group, ...], ignore: tuple[str, ...]) -> Format | None:
    """The format of a layer's weight, chosen as the package does it.

    A group that names the layer comes before expressions, these in the order of their letters, and "Linear" last.
    """
    if any(_matches(pattern, layer) for pattern in ignore):
        return None
    formats = {target: group.format for group in groups for target in group.targets}
    named = [target for target in formats if _matches(target, layer)]
    return formats[min(named, key=lambda target: ("re:" in target, target))] if named else formats.get("Linear")


def _matches(target: str, layer: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], layer) is not None
    return target == layer


def read_groups(section: Mapping[str, Any]) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """(groups, patterns of ignored layers). Raises SpecError that lists every field that is not supported."""
    problems: list[Problem] = []
    known = section.get("format", "mixed-precision")
    if known not in _KNOWN:
        problems.append(_problem("format", repr(known), ", ".join(_KNOWN)))
    if section.get("transform_config"):
        problems.append(_problem("transform_config", repr(section["transform_config"]), "nothing, or an empty object"))
    sections = section.get("config_groups")
    if not isinstance(sections, Mapping) or not sections:
        problems.append(_problem("config_groups", repr(sections), "an object of groups"))
        sections = {}
    groups = [_read_group(name, group, known, problems) for name, group in sections.items()]
    ignore = section.get("ignore") or []
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        problems.append(_problem("ignore", repr(ignore), "a list of names"))
        ignore = []
    for pattern in (*ignore, *(target for group in groups if group for target in group.targets)):
        if pattern.startswith("re:"):
            _check_expression(pattern, problems)
    if problems:
        raise SpecError(problems, where="config.json")
    return tuple(group for group in groups if group), tuple(ignore)


def _check_expression(pattern: str, problems: list[Problem]) -> None:
    try:
        re.compile(pattern[3:])
    except re.error as error:
        problems.append(_problem("config_groups or ignore", repr(pattern), f"a regular expression ({error})"))


def _read_group(name: str, group: Any, known: str, problems: list[Problem]) -> Group | None:
    field = f"config_groups.{name}"
    weights = group.get("weights") if isinstance(group, Mapping) else None
    targets = group.get("targets") if isinstance(group, Mapping) else None
    if isinstance(group, Mapping) and weights is None and group.get("input_activations"):
        return None  # of activations alone, such as those of attention
    if not isinstance(weights, Mapping) or not isinstance(targets, list) or not all(type(t) is str for t in targets):
        problems.append(_problem(field, repr(group), "an object with `targets` and `weights`"))
        return None
    unknown = [target for target in targets if target[:1].isupper() and target != "Linear"]
    if unknown:
        problems.append(_problem(f"{field}.targets", unknown[0], "'Linear', names of layers, or re: and an expression"))
    if weights.get("actorder") not in (None, "static", "weight"):
        problems.append(_problem(f"{field}.weights.actorder", repr(weights["actorder"]), "null"))
    text = _format_text(weights, group.get("format") or known)
    if text is None:
        shown = {key: value for key, value in weights.items() if key in _ARGUMENTS and value is not None}
        problems.append(_problem(f"{field}.weights", repr(shown), "int4, int8, float8, MXFP or NVFP4 of a known kind"))
        return None
    return Group(targets=tuple(targets), format=find_format(text))


_ARGUMENTS = ("num_bits", "type", "strategy", "group_size", "block_structure", "symmetric", "scale_dtype")


def _format_text(weights: Mapping[str, Any], known: str) -> str | None:
    """How our registry spells the weights of a group whose `format` is `known`; None for what it has not."""
    bits, kind, strategy, size, block, symmetric, scale = (weights.get(name) for name in _ARGUMENTS)
    strategy = strategy or ("group" if size else "tensor")
    if symmetric is False and (kind, bits) != ("int", 4):
        return None
    if kind == "int" and bits in (4, 8) and strategy in ("channel", "group"):
        group = "channel" if strategy == "channel" or size == -1 else size
        return f"int{bits}(group={group}{', zero_points' if symmetric is False else ''})" if _is_size(group) else None
    if kind == "float" and bits == 4:
        fours = {("tensor_group", 16): "nvfp4", ("group", 32): "mxfp4"}
        return next((name for arguments, name in fours.items() if arguments == (strategy, size)), None)
    if kind == "float" and bits == 8:
        if strategy in ("tensor", "channel"):
            return f"f8_e4m3fn(tile={strategy})"
        if strategy == "block" and isinstance(block, list) and len(block) == 2 and all(map(_is_size, block)):
            return f"f8_e4m3fn(tile={block[0]}x{block[1]})"
        if strategy == "group" and _is_size(size):
            has_bytes = scale == "torch.uint8" or known == "mxfp8-quantized"
            return "mxfp8" if size == 32 and has_bytes else f"f8_e4m3fn(tile=1x{size})"
    return None


def _is_size(value: Any) -> bool:
    return value == "channel" or (type(value) is int and value > 0)


def write_compressed(formats: Mapping[str, Format], ignore: list[str]) -> dict[str, Any]:
    """The section for weights stored so, by their layers' names; `ignore` are the layers that are not quantized."""
    layers: dict[Format, list[str]] = {}
    for layer, format in formats.items():
        layers.setdefault(format, []).append(layer)
    groups = {
        f"group_{index}": {
            "targets": ["Linear"] if len(layers) == 1 else names,
            "weights": _arguments(format),
            "input_activations": None,
            "output_activations": None,
            "format": _NAMES[format.name],
        }
        for index, (format, names) in enumerate(layers.items())
    }
    names = {_NAMES[format.name] for format in layers}
    return {
        "quant_method": "compressed-tensors",
        "format": names.pop() if len(names) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def _arguments(format: Format) -> dict[str, Any]:
    """compressed-tensors' QuantizationArgs of a format."""
    rows, columns = format.tile
    whole = {(1, 0): "channel", (0, 0): "tensor"}.get(format.tile)
    strategy = "tensor_group" if format.kind.global_scale else whole or ("group" if rows == 1 else "block")
    return {
        "num_bits": format.kind.bits,
        "type": "int" if format.name.startswith("int") else "float",
        "strategy": strategy,
        "group_size": columns if "group" in strategy else None,
        "block_structure": [rows, columns] if strategy == "block" else None,
        "symmetric": not format.zero_points,
        "dynamic": False,
        **({"scale_dtype": "torch.uint8"} if format.name.startswith("mx") else {}),
        **({"scale_dtype": "torch.float8_e4m3fn"} if format.kind.global_scale else {}),
    }


def refused(
    field: str, found: str, expected: str, remedy: str | None = None, *, where: str = "config.json"
) -> SpecError:
    """The error of a field about quantization that is not supported; `field` with what it is in, by dots."""
    problem = Problem(
        subject=f"field {field!r}",
        message="is not supported",
        expected=expected,
        found=found,
        remedy=remedy or "look for a BF16 or block-FP8 version of this checkpoint",
    )
    return SpecError(problem, where=where)


def _problem(field: str, found: str, expected: str) -> Problem:
    return refused(f"{_FIELD}.{field}", found, expected).problems[0]

"""Options of a storage format: how they are spelled, and which values each takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bombus.policies.errors import PolicyError, Problem
from bombus.policies.kinds import CHOICES, FLOATS, FORMATS, ROUNDING, TILES


def parse_options(name: str, text: str) -> dict[str, Any]:
    """The options in "group=64, zero_points", not checked yet."""
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, given, value = (word.strip() for word in part.partition("="))
        if key in options:
            raise _refused(name, part, "is given twice", "each option once")
        options[key] = value if given else True
    return options


def checked_options(name: str, options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """These options of a format, in their order in the registry. Raises PolicyError for what it does not take."""
    kind = FORMATS[name]
    known = {**kind.options, **({ROUNDING: kind.rules[0]} if kind.rules else {})}
    for key in options:
        if key not in known:
            remedy = f"its options are {', '.join(known)}" if known else "it has no options"
            raise PolicyError(Problem(subject=f"format {name!r}", message=f"has no option {key!r}", remedy=remedy))
    return tuple((key, _value(name, key, options[key])) for key in known if key in options)


def choices(name: str, key: str) -> tuple[Any, ...]:
    """What an option of a format may be, where it is one of a few: neither a tile nor a group."""
    if key == ROUNDING:
        return FORMATS[name].rules
    return FLOATS if key == "scale" and not name.startswith("f8") else CHOICES[key]


def _value(name: str, key: str, value: Any) -> Any:
    if key == "tile":
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(value))
        tile = value if isinstance(value, tuple) else TILES.get(str(value))
        tile = (int(match[1]), int(match[2])) if match else tile
        if tile is not None and (tile in TILES.values() or min(tile) > 0):
            return tile
        raise _refused(name, f"tile={value}", "is not a tile", "channel, tensor, or outputs x inputs, like 128x128")
    if key == "group":
        if value in ("channel", 0):
            return 0
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        raise _refused(name, f"group={value}", "is not a size", "channel, or the number of inputs, like 64")
    texts = {str(choice).lower(): choice for choice in choices(name, key)}
    if str(value).lower() in texts:
        return texts[str(value).lower()]
    raise _refused(name, f"{key}={value}", "is not known", ", ".join(map(str, choices(name, key))))


def _refused(name: str, part: str, message: str, expected: str) -> PolicyError:
    return PolicyError(Problem(subject=f"format {name!r}, option {part!r}", message=message, expected=expected))


def shown_option(key: str, value: Any) -> str:
    """How an option is spelled."""
    if value is True:
        return key
    if key == "tile":
        return f"tile={next((word for word, tile in TILES.items() if tile == value), f'{value[0]}x{value[1]}')}"
    return f"{key}={'channel' if key == 'group' and value == 0 else value}"

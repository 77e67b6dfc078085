"""Policy files: the rules in JSON, and the presets that ship with the package. The one module here that reads files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from bombus.policies.errors import PolicyError, Problem, closest

VERSION = 1
PRESETS = ("accuracy", "performance")
_VERSION_KEY = "bombus_policy"
_FIELDS = (_VERSION_KEY, "comment", "extends", "rules")
_TT_XLA = ("bfp_bf8", "bfp_bf4")
_UPGRADE = "upgrade bombus"


def read_text(file: Traversable, *, where: str) -> str:
    """The text of a file. Raises PolicyError, naming `where`, for one that cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem(subject="policy file", message=f"cannot be read: {error}", remedy="check the path")
        raise PolicyError(problem, where=where) from error


def rules_from_json(source: str | Mapping[str, Any], *, where: str | None = None) -> Mapping[str, Any]:
    """The rules, pattern: policy, in a JSON text or in the object it holds.

    The object is `{"bombus_policy": 1, "rules": {...}}`, with a "comment" and the preset that it "extends" if need
    be, or a plain map of rules. Raises PolicyError, naming `where`, for anything else.
    """
    data = parse_json(source, where=where) if isinstance(source, str) else source
    if not isinstance(data, Mapping):
        problem = Problem(subject="policy", message="is not a map", expected="a JSON object of pattern: policy")
        raise PolicyError(problem, where=where)
    problems = list(_versioned_problems(data) if _VERSION_KEY in data else _plain_problems(data, where))
    if problems:
        raise PolicyError(problems, where=where)
    if _VERSION_KEY not in data:
        return data
    base = preset_rules(data["extends"])[0] if data.get("extends") else {}
    rules = data["rules"]
    return {**{pattern: policy for pattern, policy in base.items() if pattern not in rules}, **rules}


def preset_rules(name: str, models: Iterable[str] = ()) -> tuple[Mapping[str, Any], str]:
    """A preset's rules and a text that says where they are from.

    `models` are names for one model, the best first: the first that the preset has an override for decides.
    Raises PolicyError for an unknown preset.
    """
    if name not in PRESETS:
        raise PolicyError(_unknown_preset(name))
    folder = files("bombus.policies") / "presets"
    shipped = {file.name for file in folder.iterdir()}
    model = next((model for model in map(str.lower, models) if f"{name}.{model}.json" in shipped), None)
    where = f"preset {name} for {model}" if model else f"preset {name}"
    file = folder / (f"{name}.{model}.json" if model else f"{name}.json")
    return rules_from_json(read_text(file, where=where), where=where), where


def parse_json(text: str, *, where: str | None = None) -> Any:
    """What a JSON text says. Raises PolicyError, also for a key that an object has twice."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        problem = Problem(subject="policy", message=f"is not valid JSON: {error}", remedy="give an object of rules")
        raise PolicyError(problem, where=where) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands twice in one object")
        found[key] = value
    return found


def _versioned_problems(data: Mapping[str, Any]) -> Iterator[Problem]:
    version, rules = data[_VERSION_KEY], data.get("rules")
    if type(version) is not int or not 1 <= version <= VERSION:
        newer = type(version) is int and version > VERSION
        yield Problem(
            subject=f"field {_VERSION_KEY!r}",
            message="is newer than this version of Bombus reads" if newer else "is not a version",
            expected=f"at most {VERSION}" if newer else str(VERSION),
            found=repr(version),
            remedy=_UPGRADE if newer else f"write {VERSION}",
        )
        # What another version's fields mean is not for this one to say.
        return
    for field in data:
        if field not in _FIELDS:
            yield Problem(subject=f"field {field!r}", message="is not known", remedy=closest(str(field), _FIELDS))
    if not isinstance(rules, Mapping):
        yield Problem(
            subject="field 'rules'",
            message="is not a map" if "rules" in data else "is missing",
            expected="an object of pattern: policy",
            found=repr(rules) if "rules" in data else None,
            remedy='write {"rules": {"default": "bf16"}}',
        )
    if "extends" in data and data["extends"] not in PRESETS:
        yield _unknown_preset(data["extends"], subject="field 'extends'")
    if not isinstance(data.get("comment", ""), str):
        yield Problem(subject="field 'comment'", message="is not a text", found=repr(data["comment"]))


def _plain_problems(data: Mapping[str, Any], where: str | None) -> Iterator[Problem]:
    for pattern, policy in data.items():
        if isinstance(policy, str) and policy in _TT_XLA:
            yield Problem(
                subject=f"policy rule {pattern!r}",
                message=f"has {policy!r}, a type of tt-xla, whose rules are ordered otherwise",
                remedy=f"import it with `bombus policy import {where or 'FILE'} --from tt-xla`",
            )


def _unknown_preset(name: Any, *, subject: str = "policy") -> Problem:
    return Problem(subject=subject, message=f"{name!r} is not a preset", remedy=closest(str(name), PRESETS))

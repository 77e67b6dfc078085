"""How a policy is written in plain data: a format's name, null, or an object of its three fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from bombus.policies.errors import PolicyError, Problem, closest
from bombus.policies.formats import Format, find_format
from bombus.policies.patterns import check_pattern
from bombus.policies.policy import Field, Policy, TypeMap

_FIELDS = get_args(Field)


def as_policy(value: Any) -> Policy:
    """A Policy from a Policy, a format, None, or a dict with `params`, `compute` and `output`.

    A plain format f is stored as f and, when arithmetic exists for f, computed in f.
    """
    if isinstance(value, Policy):
        return value
    if isinstance(value, Mapping):
        problems = [
            Problem(subject="policy", message=f"has no field {key!r}", remedy=closest(str(key), _FIELDS))
            for key in value
            if key not in _FIELDS
        ]
        if problems:
            raise PolicyError(problems)
        return Policy(**value)
    if value is None:
        return Policy()
    found = find_format(value)
    return Policy(params=found, compute=None if found.is_low else found)


def as_policies(rules: Mapping[str, Any]) -> dict[str, Policy]:
    """Pattern -> Policy. Raises PolicyError for everything that is wrong in any of the rules."""
    policies: dict[str, Policy] = {}
    problems: list[Problem] = []
    for pattern, value in rules.items():
        try:
            check_pattern(pattern)
        except PolicyError as error:
            problems += error.problems
        try:
            policies[pattern] = as_policy(value)
        except PolicyError as error:
            where = f"policy rule {pattern!r}"
            problems += [replace(problem, subject=f"{where}, {problem.subject}") for problem in error.problems]
    if problems:
        raise PolicyError(problems)
    return policies


def plain(policy: Policy) -> Any:
    """The shortest plain data that as_policy makes the same policy of."""
    if policy == Policy():
        return None
    if isinstance(policy.params, Format) and policy == as_policy(policy.params):
        return str(policy.params)
    fields = {field: getattr(policy, field) for field in _FIELDS}
    return {field: _spelled(value) for field, value in fields.items() if value is not None}


def _spelled(value: Format | TypeMap) -> Any:
    if isinstance(value, Format):
        return str(value)
    return {name: None if found is None else str(found) for name, found in value.items()}

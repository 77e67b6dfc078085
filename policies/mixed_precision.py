"""MixedPrecision: rules from parameter names to policies, and the one resolver that everybody uses."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, get_args

from bombus.policies.errors import PolicyError, Problem, closest
from bombus.policies.formats import find_format
from bombus.policies.policy import DEFAULT, Field, Policy

PolicyLike: TypeAlias = "str | Policy | MixedPrecision | Mapping[str, Any] | PathLike[str] | Any"
_FIELDS = get_args(Field)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided for one parameter: its policy, and the rule that said so (None: no rule at all)."""

    policy: Policy | None = None
    rule: str | None = None

    def decides_storage(self, name: str) -> bool:
        """Whether the parameter was named, by a rule or in the policy's map, and not merely by a default."""
        if self.policy is None:
            return False
        return self.rule != DEFAULT or self.policy.names("params", name)


@dataclass(frozen=True)
class MixedPrecision:
    """A policy for every parameter.

    `rules` maps a pattern to a policy: an exact name, a glob in which `*` also crosses dots, or `re:` and a
    regular expression that must match in full, each against our parameter path or the checkpoint's tensor
    name. An exact name beats a pattern, a later pattern beats an earlier one, `default` comes last.
    """

    rules: Mapping[str, Policy]
    default: Policy | None = None

    def __post_init__(self) -> None:
        for pattern in self.rules:
            _check_pattern(pattern)
        rules = {pattern: as_policy(value, where=pattern) for pattern, value in self.rules.items()}
        if DEFAULT in rules:
            if self.default is not None:
                raise PolicyError(Problem(subject="MixedPrecision", message='has both a "default" rule and `default=`'))
            object.__setattr__(self, "default", rules.pop(DEFAULT))
        elif self.default is not None:
            object.__setattr__(self, "default", as_policy(self.default, where=DEFAULT))
        object.__setattr__(self, "rules", rules)

    def decide(self, path: str, tensor: str | None = None) -> Decision:
        """The decision for the parameter at `path`, whose checkpoint tensor is called `tensor`."""
        winner = None
        for pattern in self.rules:
            if matches(pattern, path, tensor):
                winner = pattern
                if _is_exact(pattern):
                    break
        if winner is not None:
            return Decision(policy=self.rules[winner], rule=winner)
        return Decision(policy=self.default, rule=DEFAULT if self.default is not None else None)

    def resolve(self, parameters: Mapping[str, str | None]) -> dict[str, Decision]:
        """A decision for every parameter, from a map of our paths to the checkpoint's names.

        Raises PolicyError when a rule matches no parameter.
        """
        problems = self.unmatched(parameters)
        if problems:
            raise PolicyError(problems, where="policy")
        return {path: self.decide(path, tensor) for path, tensor in parameters.items()}

    def unmatched(self, parameters: Mapping[str, str | None]) -> list[Problem]:
        """One problem, with the closest names, for every rule that matches none of the parameters."""
        names = [name for pair in parameters.items() for name in pair if name is not None]
        return [
            Problem(
                subject=f"policy rule {pattern!r}",
                message="matches no parameter",
                remedy=closest(pattern, names),
            )
            for pattern in self.rules
            if not any(_matches(pattern, name) for name in names)
        ]

    def explain(self, path: str, tensor: str | None = None) -> str:
        """One sentence: which rule decided for the parameter at `path`, and why that one."""
        decision = self.decide(path, tensor)
        if decision.rule is None:
            return f"{path}: no rule matches and there is no default, so it is left as the checkpoint has it"
        if decision.rule == DEFAULT:
            return f"{path}: {decision.policy} from the default, because no rule matches"
        if _is_exact(decision.rule):
            reason = "an exact name beats every pattern"
        else:
            beaten = [other for other in self.rules if other != decision.rule and matches(other, path, tensor)]
            reason = f"it comes later than {', '.join(map(repr, beaten))}" if beaten else "no other rule matches"
        return f"{path}: {decision.policy} from {decision.rule!r}, because {reason}"

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(pattern, repr(policy)) for pattern, policy in self.rules.items()]
        return [*rows, (DEFAULT, repr(self.default))]

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(pattern) for pattern, _ in rows)
        return "MixedPrecision\n" + "\n".join(f"  {pattern:<{width}}  {policy}" for pattern, policy in rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td><code>{html.escape(pattern)}</code></td><td>{html.escape(policy)}</td></tr>"
            for pattern, policy in self._rows()
        )
        return f"<table><tr><th>rule</th><th>policy</th></tr>{cells}</table>"


def as_policy(value: Any, *, where: str = "policy") -> Policy:
    """A Policy from a Policy, a type, or a dict with `params`, `compute` and `output`.

    A plain type t is stored as t and, when arithmetic exists for t, computed in t.
    """
    if isinstance(value, Policy):
        return value
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in _FIELDS]
        if unknown:
            raise PolicyError(
                Problem(
                    subject=f"policy for {where!r}",
                    message=f"has no field {unknown[0]!r}",
                    remedy=closest(str(unknown[0]), _FIELDS),
                )
            )
        return Policy(**value)
    if value is None:
        return Policy()
    found = find_format(value)
    return Policy(params=found.dtype, compute=None if found.needs_scale else found.dtype)


def as_precision(value: PolicyLike) -> MixedPrecision:
    """A MixedPrecision from anything that says one: a type name, a dict of rules, a JSON file, a Policy, None."""
    if isinstance(value, MixedPrecision):
        return value
    if value is None:
        return MixedPrecision({})
    if isinstance(value, PathLike) or (isinstance(value, str) and value.endswith(".json")):
        return MixedPrecision(rules_from_json(_read_text(Path(value)), where=str(value)))
    if isinstance(value, Mapping):
        return MixedPrecision(value)
    return MixedPrecision({}, as_policy(value))


def rules_from_json(text: str, *, where: str) -> Mapping[str, Any]:
    """The rules in a JSON object, pattern: policy. Raises PolicyError, naming `where`, for anything else."""
    try:
        rules = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = Problem(subject="policy", message=f"is not valid JSON: {error}", remedy="give an object of rules")
        raise PolicyError(problem, where=where) from error
    if not isinstance(rules, dict):
        problem = Problem(subject="policy", message="is not a map", expected="a JSON object of pattern: policy")
        raise PolicyError(problem, where=where)
    return rules


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem(subject="policy file", message=f"cannot be read: {error}", remedy="check the path")
        raise PolicyError(problem, where=str(path)) from error


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise PolicyError(Problem(subject=f"policy rule {pattern!r}", message="must be a text"))
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise PolicyError(
                Problem(subject=f"policy rule {pattern!r}", message=f"is not a regular expression: {error}")
            ) from error


def _is_exact(pattern: str) -> bool:
    return not pattern.startswith("re:") and not any(character in pattern for character in "*?[")


def matches(pattern: str, path: str, tensor: str | None = None) -> bool:
    """Whether a rule's pattern names this parameter, by our path or by its tensor's name."""
    return any(_matches(pattern, name) for name in (path, tensor) if name is not None)


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name if _is_exact(pattern) else fnmatchcase(name, pattern)

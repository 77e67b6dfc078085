"""MixedPrecision: rules from parameter names to policies, and the one resolver that everybody uses."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from bombus.policies.errors import PolicyError, Problem
from bombus.policies.files import PRESETS, VERSION, preset_rules, read_text, rules_from_json
from bombus.policies.formats import WEIGHTS, Format
from bombus.policies.patterns import is_exact, matches, matching, unmatched
from bombus.policies.policy import DEFAULT, Policy, resolve_format
from bombus.policies.spelling import as_policies, as_policy, plain

PolicyLike: TypeAlias = "str | Policy | MixedPrecision | Mapping[str, Any] | PathLike[str] | Any"
OnConflict: TypeAlias = Literal["keep", "replace", "error"]


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

    `rules` maps a pattern to a policy. A pattern is an exact name, a glob in which `*` also crosses dots and braces
    hold alternatives and ranges of numbers ("decoder.blocks.{0,4..7}.*"), or `re:` and a regular expression that
    must match in full, each against our parameter path or the checkpoint's tensor name; or it is a group of
    parameters: attention, feed_forward, experts, embedding, head or norm. An exact name beats a pattern, a later one
    beats an earlier one, `default` comes last.
    """

    rules: Mapping[str, Policy]
    default: Policy | None = None

    def __post_init__(self) -> None:
        rules = dict(self.rules)
        if DEFAULT in rules and self.default is not None:
            raise PolicyError(Problem(subject="MixedPrecision", message='has both a "default" rule and `default=`'))
        if self.default is not None:
            rules[DEFAULT] = self.default
        policies = as_policies(rules)
        object.__setattr__(self, "default", policies.pop(DEFAULT, None))
        object.__setattr__(self, "rules", policies)

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any], *, where: str | None = None) -> MixedPrecision:
        """The rules in a JSON text or the object it holds: what `to_json` gives, or a plain map of rules.

        Raises PolicyError, naming `where`, for anything else.
        """
        try:
            return cls(rules_from_json(source, where=where))
        except PolicyError as error:
            raise PolicyError(error.problems, where=error.where or where) from error

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` makes the same rules of, with the version of its form."""
        return {"bombus_policy": VERSION, "rules": {pattern: plain(policy) for pattern, policy in self._all.items()}}

    def decide(self, path: str, tensor: str | None = None) -> Decision:
        """The decision for the parameter at `path`, whose checkpoint tensor is called `tensor`."""
        exact = [name for name in (path, tensor) if name is not None and name in self._exact]
        if exact:
            winner = max(exact, key=self._exact.__getitem__)
            return Decision(policy=self.rules[winner], rule=winner)
        for pattern in reversed(self._patterns):
            if matches(pattern, path, tensor):
                return Decision(policy=self.rules[pattern], rule=pattern)
        return Decision(policy=self.default, rule=DEFAULT if self.default is not None else None)

    def resolve(self, parameters: Mapping[str, str | None]) -> dict[str, Decision]:
        """A decision for every parameter, from a map of our paths to the checkpoint's names.

        Raises PolicyError when there are `problems`.
        """
        problems = self.problems(parameters)
        if problems:
            raise PolicyError(problems, where="policy")
        return {path: self.decide(path, tensor) for path, tensor in parameters.items()}

    def problems(self, parameters: Mapping[str, str | None]) -> list[Problem]:
        """Every rule that matches no parameter, and every one with a low-precision format that reaches no weight."""
        return [*unmatched(self.rules, parameters), *self._out_of_reach(parameters)]

    def merge(self, other: PolicyLike, *, on_conflict: OnConflict = "keep") -> MixedPrecision:
        """The rules of both.

        Where they differ, this one's count with "keep" and the other's with "replace": for a pattern or a default
        that both have, and for a parameter that patterns of both match. An exact name beats a pattern, and any rule a
        default, whichever of the two it is from.
        Raises PolicyError with "error" for a pattern or a default to which they give different policies.
        """
        check_on_conflict(on_conflict)
        theirs = as_precision(other)
        problems = [
            Problem(
                subject=f"policy rule {pattern!r}",
                message=f"is {mine} in one and {policy} in the other",
                remedy='give on_conflict="keep" for the first, "replace" for the second',
            )
            for pattern, mine in self._all.items()
            if (policy := theirs._all.get(pattern, mine)) != mine
        ]
        if problems and on_conflict == "error":
            raise PolicyError(problems, where="merge")
        first, then = (self, theirs) if on_conflict == "replace" else (theirs, self)
        kept = {pattern: policy for pattern, policy in first._all.items() if pattern not in then._all}
        return MixedPrecision({**kept, **then._all})

    def explain(self, path: str, tensor: str | None = None) -> str:
        """One sentence: which rule decided for the parameter at `path`, and why that one."""
        decision = self.decide(path, tensor)
        if decision.policy is None:
            return f"{path}: no rule matches and there is no default, so it is left as the checkpoint has it"
        low, name = resolve_format(decision.policy), _name(path)
        inert = low and low.is_low and name not in WEIGHTS and not decision.policy.names("params", name)
        note = f"; {low} is only for weights" if inert else ""
        if decision.rule == DEFAULT:
            return f"{path}: {decision.policy} from the default, because no rule matches{note}"
        exact = decision.rule in self._exact
        others = [other for other in self.rules if other != decision.rule and matches(other, path, tensor)]
        beaten = [other for other in others if other in self._exact] if exact else others
        alone = "an exact name beats every pattern" if exact else "no other rule matches"
        reason = f"it comes later than {', '.join(map(repr, beaten))}" if beaten else alone
        return f"{path}: {decision.policy} from {decision.rule!r}, because {reason}{note}"

    @cached_property
    def _all(self) -> Mapping[str, Policy]:
        return self.rules if self.default is None else {**self.rules, DEFAULT: self.default}

    @cached_property
    def _exact(self) -> Mapping[str, int]:
        """Exact name -> its place among the rules."""
        return {pattern: place for place, pattern in enumerate(self.rules) if is_exact(pattern)}

    @cached_property
    def _patterns(self) -> list[str]:
        return [pattern for pattern in self.rules if pattern not in self._exact]

    def _out_of_reach(self, parameters: Mapping[str, str | None]) -> Iterator[Problem]:
        for rule, policy in self._all.items():
            if not isinstance(policy.params, Format) or not policy.params.is_low:
                continue
            if rule == DEFAULT:
                found = [path for path, tensor in parameters.items() if self.decide(path, tensor).rule == DEFAULT]
            else:
                found = matching(rule, parameters)
            if found and not any(_name(path) in WEIGHTS for path in found):
                yield Problem(
                    subject=f"policy rule {rule!r}",
                    message=f"stores nothing as {policy.params}, which is for weights",
                    expected=f"a parameter that ends in {' or '.join(WEIGHTS)}",
                    found=listed(found),
                    remedy="give it f32, bf16 or f16, or a pattern that matches weights",
                )

    def _rows(self) -> list[tuple[str, str]]:
        return [(pattern, repr(policy)) for pattern, policy in (*self.rules.items(), (DEFAULT, self.default))]

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


def as_precision(value: PolicyLike) -> MixedPrecision:
    """A MixedPrecision from anything that says one.

    That is a format ("int8(group=64)"), the name of a preset, a dict of rules or the object of a policy file, the
    path of a JSON file, a Policy, a MixedPrecision, or None for no rule at all.
    """
    if isinstance(value, MixedPrecision):
        return value
    if value is None:
        return MixedPrecision({})
    if isinstance(value, PathLike) or (isinstance(value, str) and value.endswith(".json")):
        return MixedPrecision.from_json(read_text(Path(value), where=str(value)), where=str(value))
    if isinstance(value, Mapping):
        return MixedPrecision.from_json(value)
    # A name that is nearly a preset's gets the error of presets, not the one of formats.
    if isinstance(value, str) and get_close_matches(value, PRESETS):
        return load_preset(value)[0]
    return MixedPrecision({}, as_policy(value))


def load_preset(name: str, *, models: Iterable[str] = ()) -> tuple[MixedPrecision, str]:
    """A preset that ships with the package, and a text that says where its rules are from.

    `models` are names for the model, the best first ("Llama-3.1-8B-Instruct", "llama"), in any case of letters:
    the first that the preset has an override for decides. Raises PolicyError for an unknown preset.
    """
    rules, where = preset_rules(name, models)
    return MixedPrecision.from_json(rules, where=where), where


def check_on_conflict(value: str) -> None:
    """Raises PolicyError for what is no way to solve a conflict."""
    choices = get_args(OnConflict)
    if value not in choices:
        raise PolicyError(Problem(subject="on_conflict", message=f"cannot be {value!r}", expected=", ".join(choices)))


def listed(names: Sequence[str], *, limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _name(path: str) -> str:
    return path.rpartition(".")[2]

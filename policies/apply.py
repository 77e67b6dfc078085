"""apply_policy: other compute and output types for a model that exists already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol, Self, TypeVar

from bombus.policies.errors import PolicyError, Problem
from bombus.policies.formats import PARTS
from bombus.policies.mixed_precision import (
    Decision,
    MixedPrecision,
    OnConflict,
    PolicyLike,
    as_precision,
    check_on_conflict,
    listed,
)
from bombus.policies.patterns import matches, unmatched
from bombus.policies.policy import resolve_format, resolve_type


class HasPolicies(Protocol):
    """What apply_policy needs of a model."""

    @property
    def decisions(self) -> Mapping[str, Decision]: ...

    def tensor_names(self) -> dict[str, str | None]: ...

    def with_decisions(self, decisions: Mapping[str, Decision]) -> Self: ...


M = TypeVar("M", bound=HasPolicies)


def apply_policy(
    model: M,
    policy: PolicyLike,
    *,
    only: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    on_conflict: OnConflict = "keep",
) -> M:
    """`model` with `policy` for its parameters; those that the policy does not decide keep theirs.

    `only`, `exclude` and `on_conflict` are those of decide_again, and so are the errors. Parameters are not touched:
    what they are stored as is decided when they are loaded or initialised.
    """
    earlier, precision = model.decisions, as_precision(policy)
    found = decide_again(earlier, model.tensor_names(), precision, on_conflict=on_conflict, only=only, exclude=exclude)
    # Rules may also name the scales that a weight would have in another format, and here no format changes.
    return model.with_decisions({path: found[path] for path in earlier})


def decide_again(
    decisions: Mapping[str, Decision],
    names: Mapping[str, str | None],
    precision: MixedPrecision,
    *,
    on_conflict: OnConflict = "keep",
    only: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
) -> dict[str, Decision]:
    """`decisions` after those of `precision` for the parameters in `names`, a map from our paths to tensors' names.

    only, exclude: patterns like those of MixedPrecision that limit the parameters.
    on_conflict: what counts where an earlier policy decided otherwise, the earlier one ("keep"), the new one
        ("replace") or none ("error").

    Raises PolicyError for a rule or a pattern that is of no use here, for conflicts with "error", and with "keep"
    where conflicts leave nothing of `precision`.
    """
    check_on_conflict(on_conflict)
    only, exclude = _patterns(only), _patterns(exclude)
    problems = [*unmatched((*only, *exclude), names), *precision.problems(names)]
    if problems:
        raise PolicyError(problems, where="policy")
    found = {
        path: precision.decide(path, tensor)
        for path, tensor in names.items()
        if (not only or _any_matches(only, path, tensor)) and not _any_matches(exclude, path, tensor)
    }
    wanted = {path: decision for path, decision in found.items() if decision.rule}
    earlier = {path: decisions[path] for path in wanted if path in decisions and decisions[path].rule}
    conflicts = [path for path in earlier if earlier[path].policy != wanted[path].policy]
    if on_conflict == "error" and conflicts:
        raise PolicyError(_conflicts(conflicts, earlier, wanted), where="policy")
    if on_conflict == "keep":
        lost = any(path.rpartition(".")[2] not in PARTS for path in conflicts)
        wanted = {path: decision for path, decision in wanted.items() if path not in earlier}
        left = any(_counts(path, decision) for path, decision in wanted.items() if path in decisions)
        if lost and not left:
            raise PolicyError(_nothing_left(conflicts, earlier), where="policy")
    return {**decisions, **wanted}


def _conflicts(
    paths: Iterable[str], earlier: Mapping[str, Decision], wanted: Mapping[str, Decision]
) -> Iterable[Problem]:
    """One problem for every pair of rules."""
    pairs = defaultdict(list)
    for path in paths:
        pairs[earlier[path], wanted[path]].append(path)
    for (old, new), found in pairs.items():
        yield Problem(
            subject=f"policy rule {new.rule!r}",
            message=f"gives {new.policy} to {listed(found)}, to which rule {old.rule!r} of an earlier policy gives "
            f"{old.policy}",
            remedy='give on_conflict="keep" for the earlier one, "replace" for this one',
        )


def _nothing_left(paths: Iterable[str], earlier: Mapping[str, Decision]) -> Problem:
    rules = list(dict.fromkeys(repr(earlier[path].rule) for path in paths))
    return Problem(
        subject="on_conflict 'keep'",
        message="leaves nothing to change: an earlier policy decided every parameter that this one decides, "
        f"by rule{'s' if len(rules) > 1 else ''} {listed(rules)}",
        remedy='give on_conflict="replace" to decide them again',
    )


def _counts(path: str, decision: Decision) -> bool:
    """Whether a decision says anything of its parameter, and that is more than a part of a weight."""
    name = path.rpartition(".")[2]
    policy = decision.policy
    said = (resolve_format(policy, name), resolve_type(policy, "compute", name), resolve_type(policy, "output"))
    return name not in PARTS and any(field is not None for field in said)


def _any_matches(patterns: Iterable[str], path: str, tensor: str | None) -> bool:
    return any(matches(pattern, path, tensor) for pattern in patterns)


def _patterns(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)

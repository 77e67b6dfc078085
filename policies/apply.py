"""apply_policy: other compute and output types for a model that exists already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, Self, TypeVar

from bombus.policies.errors import PolicyError
from bombus.policies.mixed_precision import Decision, MixedPrecision, PolicyLike, as_precision, matches
from bombus.policies.policy import Policy


class HasPolicies(Protocol):
    """What apply_policy needs of a model."""

    @property
    def decisions(self) -> Mapping[str, Decision]: ...

    def tensor_names(self) -> dict[str, str | None]: ...

    def with_decisions(self, decisions: Mapping[str, Decision]) -> Self: ...


M = TypeVar("M", bound=HasPolicies)


def apply_policy(
    model: M, policy: PolicyLike, *, only: str | Iterable[str] = (), exclude: str | Iterable[str] = ()
) -> M:
    """`model` with `policy` for its parameters; those that the policy does not decide keep theirs.

    `only` and `exclude` are patterns like those of MixedPrecision and limit the parameters it is applied to.
    Parameters are not touched: what they are stored as is decided when they are loaded or initialised.

    Raises PolicyError for a rule or a pattern that matches no parameter.
    """
    names = model.tensor_names()
    only, exclude = _patterns(only), _patterns(exclude)
    unmatched = MixedPrecision({pattern: Policy() for pattern in (*only, *exclude)}).unmatched(names)
    if unmatched:
        raise PolicyError(unmatched, where="apply_policy")
    decided = as_precision(policy).resolve(names)
    changed = dict(model.decisions)
    for path, tensor in names.items():
        chosen = not only or any(matches(pattern, path, tensor) for pattern in only)
        if chosen and not any(matches(pattern, path, tensor) for pattern in exclude) and decided[path].rule:
            changed[path] = decided[path]
    return model.with_decisions(changed)


def _patterns(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)

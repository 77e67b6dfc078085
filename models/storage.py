"""What every parameter is stored as: the one resolver for models that are made, loaded and quantized again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bombus.policies import Decision, resolve_format, resolve_type
from bombus.policies.errors import PolicyError, Problem
from bombus.policies.formats import WEIGHTS, DType, Format, Shape, find_format


def scale_path(path: str) -> str:
    """The path of the scales that the weight at `path` has, or would have in a low-precision format."""
    return f"{path.rpartition('.')[0]}.scale_inv"


def part_paths(path: str, format: Format, shape: Shape) -> dict[str, str]:
    """part -> path of what the weight at `path` has beside its codes."""
    layer = path.rpartition(".")[0]
    return {part: f"{layer}.{part}" for part in format.parts(shape)}


def is_weight(path: str) -> bool:
    """Whether the parameter at `path` may be stored in a low-precision format."""
    return path.rpartition(".")[2] in WEIGHTS


def nameable(formats: Iterable[str]) -> list[str]:
    """The paths that rules can name: parameters, and the scales that weights may turn out to have."""
    paths = list(formats)
    return [*paths, *(scale_path(path) for path in paths if is_weight(path))]


def storage_format(
    decisions: Mapping[str, Decision],
    path: str,
    found: Format,
    *,
    preserve: bool = False,
    undecided: DType | None,
) -> Format:
    """What the parameter at `path` is stored as, where it is found as `found`.

    The policy decides, unless it says nothing (None) or `preserve` keeps what no rule names. Low precision that no
    rule is about becomes `undecided`, or stays with None. See Format.asked_of.

    Raises PolicyError when a rule asks for a type of scale that the format cannot have.
    """
    decision = decisions[path]
    name = path.rpartition(".")[2]
    wanted = resolve_format(decision.policy, name)
    if preserve and not decision.decides_storage(name):
        stored = found
    elif wanted is not None:
        stored = wanted.asked_of(found)
    else:
        plain = decision.policy is None and found.is_low and undecided is not None
        stored = find_format(undecided) if plain else found
    return _with_scale(stored, decisions[scale_path(path)], decision.rule, path) if stored.is_low else stored


def _with_scale(stored: Format, decision: Decision, rule: str | None, path: str) -> Format:
    """With the type of scale that a rule or a map says, if one names the scale itself. `rule` decided the weight."""
    policy = decision.policy
    wanted = resolve_format(policy, "scale_inv")
    named = policy is not None and policy.names("params", "scale_inv")
    exact = decision.rule is not None and decision.rule.endswith("scale_inv")
    if wanted is None or not (named or exact) or wanted.dtype == stored.scale_type:
        return stored
    try:
        return stored.with_scale(wanted.dtype)
    except PolicyError as error:
        if not exact and decision.rule != rule:
            # A rule for other weights, whose scales have types to choose from.
            return stored
        raise PolicyError(
            Problem(
                subject=f"parameter {scale_path(path)}",
                message=f"cannot be stored as {wanted}, which rule {decision.rule!r} asks for: the scales of {stored} "
                "have a type of their own",
            )
        ) from error


def stream_type(decision: Decision, stored: Format, main_type: DType) -> DType:
    """The type of the residual stream: what the embedding returns."""
    returned = resolve_type(decision.policy, "output") or resolve_type(decision.policy, "compute", "embedding")
    return returned or (main_type if stored.is_low else stored.dtype)

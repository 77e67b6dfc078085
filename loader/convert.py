"""quantize and dequantize: a loaded model in other formats. Pure: arrays that do not change are shared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax

from bombus.kernels import Weight, requantize
from bombus.loader.load import LoadedModel
from bombus.loader.plan import make_entries
from bombus.loader.read import quantization_problem
from bombus.loader.report import LoadReport
from bombus.models import Model
from bombus.models.model import decided_model, flat, nested, weight_leaves
from bombus.models.storage import is_weight, part_paths, scale_path
from bombus.policies import Decision, Policy, as_precision, decide_again, resolve_type
from bombus.policies.errors import PolicyError
from bombus.policies.formats import Format, find_format, find_type
from bombus.policies.mixed_precision import OnConflict, PolicyLike


def quantize(
    loaded: LoadedModel,
    policy: PolicyLike,
    *,
    only: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    on_conflict: OnConflict = "keep",
) -> LoadedModel:
    """`loaded` with its parameters stored, and computed, as `policy` says; those that it does not decide stay.

    only, exclude: patterns that limit the parameters. on_conflict: whether a parameter that an earlier policy decided
    otherwise keeps that ("keep", the default), follows this one ("replace"), or is an error ("error").
    One low-precision format becomes another by way of float32.

    Raises PolicyError as load_model does for rules, and when "keep" leaves nothing to do.
    """
    old = loaded.model
    names = old.names
    current = {path: old.decisions.get(path, Decision()) for path in names}
    decisions = decide_again(current, names, as_precision(policy), only=only, exclude=exclude, on_conflict=on_conflict)
    # What this policy did not decide, or what was preserved, stays as it is. By identity: it may decide the same.
    changed = [path for path in old.formats if any(decisions[p] is not current[p] for p in _rules_of(path, names))]
    model = decided_model(
        old.spec, decisions, old.formats, names, only=changed, undecided=None, main_type=old.main_type
    )
    return _stored_as(loaded, model)


def dequantize(loaded: LoadedModel, dtype: Any = None) -> LoadedModel:
    """`loaded` with every low-precision weight as plain values, in `dtype` (default: the model's 16- or 32-bit type).

    Computed in float32 and rounded once. What parameters are computed in does not change.
    """
    old = loaded.model
    plain = find_format(old.main_type if dtype is None else find_type(dtype))
    formats, decisions = dict(old.formats), dict(old.decisions)
    for path, format in old.formats.items():
        if not format.is_low:
            continue
        formats[path] = plain
        decisions.pop(scale_path(path))
        name = path.rpartition(".")[2]
        policy = decisions[path].policy
        computed = resolve_type(policy, "compute", name) or (old.main_type if name == "embedding" else None)
        # No rule decides any more, so that another policy can.
        decisions[path] = Decision(policy=Policy(compute=computed, output=resolve_type(policy, "output")))
    return _stored_as(loaded, replace(old, formats=formats, decisions=decisions))


def _rules_of(path: str, names: Mapping[str, str | None]) -> list[str]:
    """The paths by which rules decide how a parameter is stored: its own and that of its scales."""
    return [known for known in (path, scale_path(path)) if known in names]


def _stored_as(loaded: LoadedModel, model: Model) -> LoadedModel:
    """`loaded` as another model of the same spec."""
    params = nested(_converted(loaded.model, model, flat(loaded.params)))
    sources = {entry.path: entry.source for entry in loaded.report.plan.entries if entry.source is not None}
    plan = replace(loaded.report.plan, model=model, entries=make_entries(model, sources), precision=None, policy=None)
    return replace(loaded, model=model, params=params, report=LoadReport(plan, loaded.report.where))


def _converted(old: Model, new: Model, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """path -> array of the parameters of `old`, as `new` stores them; one is converted after the other."""
    result: dict[str, jax.Array] = {}
    for path, before in old.formats.items():
        after = new.formats[path]
        if before == after:
            kept = (path, *part_paths(path, before, old.shapes[path]).values())
            result |= {name: values[name] for name in kept}
        elif is_weight(path):
            weight = jax.block_until_ready(requantize(_weight(path, before, old, values), after))
            problem = quantization_problem(weight, f"parameter {path}")
            if problem is not None:
                raise PolicyError(problem, where="quantize")
            result |= weight_leaves(path, weight)
        else:
            result[path] = values[path].astype(after.dtype)
    return result


def _weight(path: str, format: Format, model: Model, values: Mapping[str, jax.Array]) -> Weight:
    rows, columns = model.shapes[path]
    parts = {part: values[name] for part, name in part_paths(path, format, (rows, columns)).items()}
    return Weight(codes=values[path], **parts, format=format.canonical, shape=(rows, columns))

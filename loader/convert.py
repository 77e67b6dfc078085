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
from bombus.models.storage import is_weight, nameable
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
    model = loaded.model
    names = model.tensor_names()
    current = {path: model.decisions.get(path, Decision()) for path in names}
    decisions = decide_again(current, names, as_precision(policy), only=only, exclude=exclude, on_conflict=on_conflict)
    return _stored_anew(loaded, decisions)


def dequantize(loaded: LoadedModel, dtype: Any = None) -> LoadedModel:
    """`loaded` with every low-precision weight as plain values, in `dtype` (default: the model's 16- or 32-bit type).

    Computed in float32 and rounded once. What parameters are computed in does not change.
    """
    model = loaded.model
    plain = find_format(model.main_type if dtype is None else find_type(dtype))
    decisions = {path: model.decisions.get(path, Decision()) for path in nameable(model.formats)}
    for path, format in model.formats.items():
        if format.is_low:
            old = decisions[path]
            name = path.rpartition(".")[2]
            computed, returned = resolve_type(old.policy, "compute", name), resolve_type(old.policy, "output")
            decisions[path] = Decision(
                policy=Policy(params=plain, compute=computed, output=returned), rule=old.rule or "dequantize"
            )
    return _stored_anew(loaded, decisions)


def _stored_anew(loaded: LoadedModel, decisions: Mapping[str, Decision]) -> LoadedModel:
    old = loaded.model
    model = decided_model(old.spec, decisions, old.formats, undecided=None, main_type=old.main_type)
    params = nested(_converted(old, model, flat(loaded.params)))
    sources = {entry.path: entry.source for entry in loaded.report.plan.entries if entry.source is not None}
    plan = replace(loaded.report.plan, model=model, entries=make_entries(model, sources), precision=None, policy=None)
    report = LoadReport(plan, loaded.report.where)
    return replace(loaded, model=model, params=params, report=report)


def _converted(old: Model, new: Model, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """path -> array of the parameters of `old`, as `new` stores them; one is converted after the other."""
    result: dict[str, jax.Array] = {}
    for path, before in old.formats.items():
        after = new.formats[path]
        if before == after:
            layer = path.rpartition(".")[0]
            kept = (path, *(f"{layer}.{part}" for part in before.parts(old.shapes[path])))
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
    layer = path.rpartition(".")[0]
    rows, columns = model.shapes[path]
    parts = {part: values[f"{layer}.{part}"] for part in format.parts((rows, columns))}
    return Weight(codes=values[path], **parts, format=format.canonical, shape=(rows, columns))

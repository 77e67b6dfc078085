"""The plan: for every parameter what is read, from where, as what. A pure function, made before any bytes are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from bombus.loader.conventions import Scheme
from bombus.loader.matching import left_over, match_tensors, unexpected_tensor
from bombus.loader.sources import WIDE, Damage, Source
from bombus.loader.tensors import TensorInfo
from bombus.models.abstract import abstract_shapes
from bombus.models.model import Model, decided_model
from bombus.models.registry import architecture_of
from bombus.models.spec import DecoderSpec
from bombus.models.storage import nameable, stream_type
from bombus.policies import Decision, MixedPrecision, resolve_type
from bombus.policies.errors import PlanError, PolicyError, Problem
from bombus.policies.formats import DType, Format, find_format

# keep: bit for bit. cast: to another type, or its scales. dequantize: codes times scales. quantize: to codes and
# scales; requantize: to others, by way of float32.
# initialise: not in the checkpoint, made anew because the caller said strict=False.
Action: TypeAlias = Literal["keep", "cast", "dequantize", "quantize", "requantize", "initialise"]

_F32 = find_format("f32").dtype


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One parameter's part of the plan. source: where it is read from; None for what is made here."""

    path: str
    action: Action
    shape: tuple[int, ...]
    format: Format
    computed: DType
    rule: str | None = None
    source: Source | None = None

    @property
    def nbytes(self) -> int:
        """The size of the parameter in memory, scales included."""
        return self.format.nbytes(self.shape)

    @property
    def size(self) -> int:
        """How many values the parameter has."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Everything that will be done, parameter by parameter. unused: tensors that this model does not need.

    activation_scales: scales of activations and of a cache that the checkpoint wants quantized too, and that are
        computed here in a 16- or 32-bit type; by tensor.
    precision: the rules; None where several decided, one after the other. policy: where they were found, if they
        were looked for.
    """

    model: Model
    entries: tuple[Entry, ...]
    unused: tuple[str, ...] = ()
    activation_scales: Mapping[str, TensorInfo] = field(default_factory=dict)
    precision: MixedPrecision | None = None
    policy: str | None = None


def make_plan(
    spec: DecoderSpec,
    headers: Mapping[str, TensorInfo],
    precision: MixedPrecision,
    *,
    preserve_source_types: bool = False,
    scheme: Scheme | None = None,
    declared: DType | None = None,
    strict: bool = True,
    where: str | None = None,
    policy: str | None = None,
) -> LoadPlan:
    """How to fill a model of `spec` from tensors with these headers, under this precision.

    `scheme` says how low-precision weights are stored there, `declared` is the type of the model that config.json
    names. Raises PlanError that lists every missing, unexpected
    and mismatched tensor and every rule that matches nothing or that a parameter cannot take. `strict=False` ignores
    unexpected tensors and plans to initialise missing and mismatched ones.
    """
    if spec.num_blocks > len(headers):
        message = f"holds {len(headers)} tensors, which cannot be the {spec.num_blocks} blocks that config.json says"
        raise PlanError(Problem(subject="checkpoint", message=message), where=where)
    shapes = abstract_shapes(spec)
    mapping = architecture_of(spec).mapping
    spell = mapping.namer(shapes, headers)
    found = match_tensors(spec, shapes, spell, headers, scheme or Scheme())
    rest = left_over(spec, shapes, headers, found)
    problems = list(found.problems)
    if strict:
        problems += found.missing.values()
        problems += [unexpected_tensor(name, headers) for name in rest.unexpected]
    else:
        # A damaged weight is never replaced by a random one: only what is not there, or has another shape, is.
        problems += [problem for problem in found.missing.values() if isinstance(problem, Damage)]
        problems += [unexpected_tensor(name, headers) for name in rest.beside_codes]
    names: dict[str, str | None] = {path: spell(mapping.tensor(path)) for path in nameable(shapes)}
    problems += precision.problems(names)
    decisions = {path: precision.decide(path, name) for path, name in names.items()}
    main = _main_type(found.sources, declared)
    formats = {path: found.sources[path].format if path in found.sources else find_format(main) for path in shapes}
    model = None
    try:
        model = decided_model(
            spec, decisions, formats, names, preserve=preserve_source_types, undecided=main, main_type=main
        )
    except PolicyError as error:
        problems += error.problems
    if problems or model is None:
        raise PlanError(problems, where=where)
    entries = make_entries(model, found.sources)
    return LoadPlan(
        model=model,
        entries=entries,
        # Without strict there is no unexpected tensor.
        unused=(*rest.unused, *rest.unexpected),
        activation_scales={name: headers[name] for name in rest.activation_scales},
        precision=precision,
        policy=policy,
    )


def make_entries(model: Model, sources: Mapping[str, Source]) -> tuple[Entry, ...]:
    """What is done for every parameter of a model that is read from these sources."""
    stream = _stream_type(model)
    return tuple(
        Entry(
            path=path,
            action=_action(sources.get(path), format),
            shape=model.shapes[path],
            format=format,
            computed=_computed(path, model.decisions[path], stream),
            rule=model.decisions[path].rule,
            source=sources.get(path),
        )
        for path, format in model.formats.items()
    )


def _main_type(sources: Mapping[str, Source], declared: DType | None) -> DType:
    """The 16- or 32-bit type that most of the checkpoint's wide values have, or the declared one if the embedding,
    which would decide in what the model computes, is in low precision.
    """
    sizes: Counter[DType] = Counter()
    for source in sources.values():
        for it in source.pieces:
            if it.info.dtype in WIDE:
                sizes[it.info.dtype] += int(np.prod(it.info.shape, dtype=np.int64))
    if declared is not None and any(s.format.is_low for path, s in sources.items() if path.endswith(".embedding")):
        return declared
    return sizes.most_common(1)[0][0] if sizes else _F32


def _computed(path: str, decision: Decision, stream: DType) -> DType:
    name = path.rpartition(".")[2]
    return _F32 if name == "scale" else resolve_type(decision.policy, "compute", name) or stream


def _action(source: Source | None, stored: Format) -> Action:
    if source is None:
        return "initialise"
    found = source.format
    if not found.is_low:
        return "quantize" if stored.is_low else "keep" if source.info.dtype == stored.dtype else "cast"
    if not stored.is_low:
        return "dequantize"
    if found == stored.canonical:
        return "keep"
    return "cast" if found.same_codes(stored) else "requantize"


def _stream_type(model: Model) -> DType:
    """The type of the residual stream: what the embedding returns."""
    path = next(path for path in model.formats if path.endswith(".embedding"))
    return stream_type(model.decisions[path], model.formats[path], model.main_type)

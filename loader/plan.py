"""The plan: for every parameter what is read, from where, as what. A pure function, made before any bytes are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from bombus.kernels import scale_grid
from bombus.loader.safetensors import TensorInfo
from bombus.loader.sources import WIDE, Damage, Source, left_over, match_tensors, unexpected_tensor
from bombus.models.model import Model, abstract_shapes, scale_type, unstorable
from bombus.models.registry import architecture_of
from bombus.models.spec import DecoderSpec
from bombus.policies import Decision, MixedPrecision, resolve_type
from bombus.policies.errors import PlanError, Problem
from bombus.policies.formats import FORMATS, DType, is_low_precision

# keep: bit for bit. cast: to another type. dequantize: codes times scales. quantize: to codes and scales.
# initialise: not in the checkpoint, made anew because the caller said strict=False.
Action: TypeAlias = Literal["keep", "cast", "dequantize", "quantize", "initialise"]

_FP8 = FORMATS["f8_e4m3fn"]
_F32 = FORMATS["f32"].dtype


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One parameter's part of the plan.

    tensor and info: where it is read from; None for what is made here. scale: the scales to dequantize with.
    copies: tensors that must hold the same bytes, because the parameter is tied.
    """

    path: str
    action: Action
    shape: tuple[int, ...]
    stored: DType
    computed: DType
    rule: str | None = None
    tensor: str | None = None
    info: TensorInfo | None = None
    scale: TensorInfo | None = None
    copies: Mapping[str, TensorInfo] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The size of the parameter in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.stored.itemsize


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Everything that will be done, parameter by parameter.

    block_shape: the tiles of the checkpoint's FP8 weights. unused: tensors that this model does not need.
    """

    model: Model
    entries: tuple[Entry, ...]
    block_shape: tuple[int, int]
    unused: tuple[str, ...] = ()


def make_plan(
    spec: DecoderSpec,
    headers: Mapping[str, TensorInfo],
    precision: MixedPrecision,
    *,
    preserve_source_types: bool = False,
    block_shape: tuple[int, int] = (128, 128),
    strict: bool = True,
    where: str | None = None,
) -> LoadPlan:
    """How to fill a model of `spec` from tensors with these headers, under this precision.

    Raises PlanError that lists every missing, unexpected and mismatched tensor and every rule that matches
    nothing. `strict=False` ignores unexpected tensors and plans to initialise missing and mismatched ones.
    """
    if spec.num_blocks > len(headers):
        message = f"holds {len(headers)} tensors, which cannot be the {spec.num_blocks} blocks that config.json says"
        raise PlanError(Problem(subject="checkpoint", message=message), where=where)
    shapes = abstract_shapes(spec)
    mapping = architecture_of(spec).mapping
    spell = mapping.namer(shapes, headers)
    found = match_tensors(spec, shapes, spell, headers, block_shape)
    unused, unexpected = left_over(spec, shapes, spell, headers, found)
    problems = list(found.problems)
    if strict:
        problems += found.missing.values()
        problems += [unexpected_tensor(name, headers) for name in unexpected]
    else:
        # A damaged weight is never replaced by a random one: only what is not there, or has another shape, is.
        problems += [problem for problem in found.missing.values() if isinstance(problem, Damage)]
        unused += unexpected
    scales = [f"{path.removesuffix('kernel')}scale_inv" for path in shapes if path.endswith(".kernel")]
    names: dict[str, str | None] = {path: spell(mapping.tensor(path)) for path in [*shapes, *scales]}
    problems += precision.unmatched(names)
    decisions = {path: precision.decide(path, name) for path, name in names.items()}
    main = _main_type(found.sources)
    storage = {}
    for path in shapes:
        in_file = found.sources[path].info.dtype if path in found.sources else main
        storage[path] = _storage(decisions[path], path, in_file, preserve_source_types, main)
        if is_low_precision(storage[path]) and not path.endswith(".kernel"):
            problems.append(unstorable(path, storage[path], decisions[path]))
    if problems:
        raise PlanError(problems, where=where)
    return _assemble(spec, shapes, found.sources, decisions, storage, block_shape, tuple(unused))


def _main_type(sources: Mapping[str, Source]) -> DType:
    """The 16- or 32-bit type that most of the checkpoint's wide values have."""
    sizes: Counter[DType] = Counter()
    for source in sources.values():
        if source.info.dtype in WIDE:
            sizes[source.info.dtype] += int(np.prod(source.info.shape, dtype=np.int64))
    return sizes.most_common(1)[0][0] if sizes else _F32


def _storage(decision: Decision, path: str, found: DType, preserve: bool, main: DType) -> DType:
    """What a parameter is stored as. See DESIGN section 4: policy, preservation, and None for "leave it"."""
    name = path.rpartition(".")[2]
    if found == np.float64:  # JAX has no float64 unless a user switches it on for everything
        found = _F32
    wanted = resolve_type(decision.policy, "params", name)
    if preserve and not decision.decides_storage(name):
        return found
    if wanted is not None:
        return wanted
    return main if is_low_precision(found) and decision.policy is None else found


def _assemble(
    spec: DecoderSpec,
    shapes: Mapping[str, tuple[int, ...]],
    sources: Mapping[str, Source],
    decisions: Mapping[str, Decision],
    storage: Mapping[str, DType],
    block_shape: tuple[int, int],
    unused: tuple[str, ...],
) -> LoadPlan:
    entries = []
    tiles: dict[str, tuple[int, int]] = {}
    stream = _stream_type(decisions, storage)
    for path, shape in shapes.items():
        layer, _, name = path.rpartition(".")
        source, stored = sources.get(path), storage[path]
        computed = _F32 if name == "scale" else resolve_type(decisions[path].policy, "compute", name) or stream
        action = _action(source, stored)
        entries.append(
            Entry(
                path=path,
                action=action,
                shape=shape,
                stored=stored,
                tensor=source.tensor if source else None,
                info=source.info if source else None,
                scale=source.scale if source and action == "dequantize" else None,
                copies=source.copies if source else {},
                computed=computed,
                rule=decisions[path].rule,
            )
        )
        if not is_low_precision(stored):
            continue
        tiles[layer] = block_shape if action == "keep" else _FP8.tile or block_shape
        scale_path = f"{layer}.scale_inv"
        kept = source is not None and action == "keep"
        found = source.scale.dtype if kept and source and source.scale else _F32
        scale_stored = scale_type(decisions[scale_path], found)
        entries.append(
            Entry(
                path=scale_path,
                action=("keep" if scale_stored == found else "cast") if kept else action,
                shape=scale_grid((shape[0], shape[1]), tiles[layer]),
                stored=scale_stored,
                computed=_F32,
                rule=decisions[scale_path].rule,
                tensor=source.scale_tensor if kept and source else None,
                info=source.scale if kept and source else None,
            )
        )
    stored_types = {entry.path: entry.stored for entry in entries}
    model = Model(
        spec=spec,
        decisions={path: decisions[path] for path in stored_types},
        stored=stored_types,
        tiles=tiles,
    )
    return LoadPlan(model=model, entries=tuple(entries), block_shape=block_shape, unused=unused)


def _action(source: Source | None, stored: DType) -> Action:
    if source is None:
        return "initialise"
    if source.info.dtype == stored:
        return "keep"
    if is_low_precision(source.info.dtype):
        return "dequantize"
    return "quantize" if is_low_precision(stored) else "cast"


def _stream_type(decisions: Mapping[str, Decision], storage: Mapping[str, DType]) -> DType:
    """The type of the residual stream: what the embedding returns."""
    path = next(path for path in storage if path.endswith(".embedding"))
    policy = decisions[path].policy
    return resolve_type(policy, "output") or resolve_type(policy, "compute", "embedding") or storage[path]

"""Which tensors the parameters are read from: the match of names, the checks of each pair, and their texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from bombus.kernels import scale_grid
from bombus.loader.safetensors import TensorInfo
from bombus.models.registry import architecture_of
from bombus.models.spec import DecoderSpec
from bombus.policies.errors import Problem
from bombus.policies.formats import FORMATS, type_name

_FP8 = FORMATS["f8_e4m3fn"]
WIDE = tuple(entry.dtype for entry in FORMATS.values() if not entry.needs_scale)
_SCALES = (*WIDE, np.dtype(ml_dtypes.float8_e8m0fnu))


@dataclass(kw_only=True)
class Source:
    """Where a parameter is in the checkpoint, while the plan is made."""

    tensor: str
    info: TensorInfo
    scale_tensor: str | None = None
    scale: TensorInfo | None = None
    copies: dict[str, TensorInfo] = field(default_factory=dict)


class Damage(Problem):
    """A tensor that is there with the right shape, and whose values cannot be read."""


def find_source(
    path: str,
    tensor: str,
    shape: tuple[int, ...],
    headers: Mapping[str, TensorInfo],
    block_shape: tuple[int, int],
) -> Source | Problem:
    """The source of one parameter, or why this tensor cannot be it."""
    info = headers.get(tensor)
    if info is None:
        return Problem(
            subject=f"tensor {tensor}",
            message=f"is missing; parameter {path} needs it",
            expected=f"shape {shape}",
            remedy="check that config.json belongs to these weights, or pass strict=False to initialise it",
        )
    if info.shape != shape:
        return Problem(
            subject=f"tensor {tensor}",
            message=f"does not fit parameter {path}",
            expected=f"shape {shape}",
            found=f"{info.shape}",
            remedy="check that config.json belongs to these weights",
        )
    scale_tensor = f"{tensor}_scale_inv"
    scale = headers.get(scale_tensor)
    if info.dtype == _FP8.dtype and path.endswith(".kernel"):
        if scale is None:
            return Damage(
                subject=f"weight {tensor}",
                message="is in float8_e4m3fn and has no scale",
                expected=f"a tensor {scale_tensor}",
                remedy="download the checkpoint again; without its scales the values are lost",
            )
        grid = scale_grid((shape[0], shape[1]), block_shape)
        if scale.shape != grid or scale.dtype not in _SCALES:
            return Damage(
                subject=f"weight {tensor}",
                message=f"has scales that do not fit its shape {shape} in tiles of {block_shape}",
                expected=f"{grid} of {', '.join(map(type_name, _SCALES))}",
                found=f"{scale.shape} of {type_name(scale.dtype)}",
                remedy="check weight_block_size in config.json",
            )
        return Source(tensor=tensor, info=info, scale_tensor=scale_tensor, scale=scale)
    if info.dtype not in WIDE and info.dtype != np.float64:
        return Damage(
            subject=f"weight {tensor}",
            message=f"is stored as {type_name(info.dtype)}, which parameter {path} cannot be read from",
            expected=", ".join(map(type_name, WIDE)),
        )
    return Source(tensor=tensor, info=info)


def unexpected_tensor(name: str, headers: Mapping[str, TensorInfo]) -> Problem:
    """The problem of a tensor that no parameter reads."""
    weight = name.removesuffix("_scale_inv")
    if weight != name and weight in headers and headers[weight].dtype != _FP8.dtype:
        return Problem(
            subject=f"tensor {name}",
            message=f"is a scale, but {weight} is {type_name(headers[weight].dtype)}",
            expected="float8_e4m3fn codes",
        )
    return Problem(
        subject=f"tensor {name}",
        message="is unexpected: no parameter reads it",
        found=f"{type_name(headers[name].dtype)}{list(headers[name].shape)}",
        remedy="check the architecture in config.json, or pass strict=False to leave it out",
    )


def not_a_copy(name: str, info: TensorInfo, source: Source) -> Problem:
    """The problem of a tied tensor whose header shows that it is another one."""
    return Problem(
        subject=f"tensor {name}",
        message=f"cannot be a copy of {source.tensor}, to which config.json says it is tied",
        expected=f"{type_name(source.info.dtype)}{list(source.info.shape)}",
        found=f"{type_name(info.dtype)}{list(info.shape)}",
        remedy="load with spec=load_spec(repo, tie_word_embeddings=False) if they are two tensors",
    )


@dataclass(frozen=True, kw_only=True)
class Match:
    """Parameters with their sources, parameters without, and what is wrong with tied copies."""

    sources: dict[str, Source]
    missing: dict[str, Problem]
    problems: list[Problem]


def match_tensors(
    spec: DecoderSpec,
    shapes: Mapping[str, tuple[int, ...]],
    spell: Callable[[str], str],
    headers: Mapping[str, TensorInfo],
    block_shape: tuple[int, int],
) -> Match:
    """Where each parameter is in a checkpoint whose names are ours spelled by `spell`."""
    mapping = architecture_of(spec).mapping
    match = Match(sources={}, missing={}, problems=[])
    for path, shape in shapes.items():
        name = spell(mapping.tensor(path))
        source = find_source(path, name, shape, headers, block_shape)
        tied = mapping.tied_tensor(path) if spec.tie_word_embeddings else None
        if tied is not None and tied in headers:
            copy = find_source(path, tied, shape, headers, block_shape)
            if isinstance(source, Source) and isinstance(copy, Source) and copy.info.dtype == source.info.dtype:
                source.copies[tied] = copy.info
            elif isinstance(source, Source):
                match.problems.append(not_a_copy(tied, headers[tied], source))
            elif name not in headers:
                source = copy
        if isinstance(source, Source):
            match.sources[path] = source
        else:
            match.missing[path] = source
    return match


def left_over(
    spec: DecoderSpec,
    shapes: Mapping[str, tuple[int, ...]],
    spell: Callable[[str], str],
    headers: Mapping[str, TensorInfo],
    match: Match,
) -> tuple[list[str], list[str]]:
    """(tensors that this model may do without, tensors that it should not have)."""
    mapping = architecture_of(spec).mapping
    tensors = {path: spell(mapping.tensor(path)) for path in shapes}
    named = {*tensors.values(), *(mapping.tied_tensor(path) for path in shapes if spec.tie_word_embeddings)}
    # The scales of a weight that is refused are part of that problem, not another one.
    named |= {f"{tensors[path]}_scale_inv" for path in match.missing}
    named |= {source.scale_tensor for source in match.sources.values()}
    read_layers = {name.rpartition(".")[0] for name in named if name}
    unused: list[str] = []
    unexpected: list[str] = []
    for name in headers:
        if name in named:
            continue
        another_head = mapping.belongs_to_a_head(name) and name.rpartition(".")[0] not in read_layers
        (unused if another_head or mapping.is_ignored(name) else unexpected).append(name)
    return unused, unexpected

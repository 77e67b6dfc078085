"""The match of parameters and tensors: a source for every parameter, a use for every tensor, ties compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bombus.loader.quantization import Scheme
from bombus.loader.sources import WIDE, Damage, Source, find_source
from bombus.loader.tensors import TensorInfo
from bombus.models.registry import architecture_of
from bombus.models.spec import DecoderSpec
from bombus.models.storage import is_weight
from bombus.policies.errors import Problem
from bombus.policies.formats import type_name


def unexpected_tensor(name: str, headers: Mapping[str, TensorInfo]) -> Problem:
    """The problem of a tensor that no parameter reads."""
    weight = name.removesuffix("_scale_inv")
    if weight != name and weight in headers and headers[weight].dtype in WIDE:
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
    scheme: Scheme,
) -> Match:
    """Where each parameter is in a checkpoint whose names are ours spelled by `spell`."""
    mapping = architecture_of(spec).mapping
    match = Match(sources={}, missing={}, problems=[])
    for path, shape in shapes.items():
        name = spell(mapping.tensor(path))
        source = find_source(path, name, shape, headers, scheme)
        tied = mapping.tied_tensor(path) if spec.tie_word_embeddings else None
        copy = find_source(path, tied, shape, headers, scheme) if tied is not None else None
        if tied is not None and copy is not None and _is_there(tied, headers):
            if isinstance(source, Source):
                problem = _compare(tied, copy, source, headers)
                match.problems.extend(problem)
            elif not _is_there(name, headers):
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
    for source in match.sources.values():
        layer = source.tensor.rpartition(".")[0]
        named |= {source.tensor, *(name for name, _ in source.parts.values()), *source.copies}
        named |= {f"{layer}.{word}" for word in source.layout.also}
    # The tensors of a weight that is refused are part of that problem, not another one.
    refused = [f"{tensors[path].rpartition('.')[0]}." for path in match.missing if is_weight(path)]
    refused += [f"{tied}_" for path in shapes if spec.tie_word_embeddings and (tied := mapping.tied_tensor(path))]
    named |= {name for name in headers if name.startswith(tuple(refused))}
    read_layers = {name.rpartition(".")[0] for name in named if name}
    unused: list[str] = []
    unexpected: list[str] = []
    for name in headers:
        if name in named:
            continue
        another_head = mapping.belongs_to_a_head(name) and name.rpartition(".")[0] not in read_layers
        (unused if another_head or mapping.is_ignored(name) else unexpected).append(name)
    return unused, unexpected


def _is_there(tensor: str, headers: Mapping[str, TensorInfo]) -> bool:
    """Whether the weight with this name is there, in whatever layout."""
    return any(name in headers for name in (tensor, f"{tensor}_packed", f"{tensor}_codes"))


def _compare(tied: str, copy: Source | Problem, source: Source, headers: Mapping[str, TensorInfo]) -> list[Problem]:
    """Note in `source` what must equal it, or say why the tied tensor cannot."""
    if isinstance(copy, Problem):
        damaged = isinstance(copy, Damage) or tied not in headers
        return [copy if damaged else not_a_copy(tied, headers[tied], source)]
    if copy.format != source.format:
        return [not_a_copy(copy.tensor, copy.info, source)]
    parts = {name: (info, source.parts[part][1]) for part, (name, info) in copy.parts.items()}
    source.copies = {copy.tensor: (copy.info, source.info), **parts}
    return []

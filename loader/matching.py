"""The match of parameters and tensors: a source for every parameter, a use for every tensor, ties compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bombus.loader.conventions import ACTIVATION_WORDS, CACHE_WORDS, SCALE_WORDS, Scheme, find_stored
from bombus.loader.layouts import BLOCKS
from bombus.loader.places import find_source
from bombus.loader.sources import WIDE, Damage, Source
from bombus.loader.tensors import TensorInfo
from bombus.models.mapping import EVERY_EXPERT, Place
from bombus.models.registry import architecture_of
from bombus.models.spec import DecoderSpec
from bombus.models.storage import is_weight
from bombus.policies.errors import Problem
from bombus.policies.formats import type_name


def unexpected_tensor(name: str, headers: Mapping[str, TensorInfo]) -> Problem:
    """The problem of a tensor that no parameter reads."""
    layer, _, word = name.rpartition(".")
    weight = f"{layer}.weight"
    if word in SCALE_WORDS and weight in headers and headers[weight].dtype in WIDE:
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
    """Where parameters should be, those with their sources, those without, and what is wrong with tied copies."""

    places: dict[str, Place]
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
    places = {path: mapping.place(path, spec, shapes).spelled(spell) for path in shapes}
    match = Match(places=places, sources={}, missing={}, problems=[])
    for path, shape in shapes.items():
        place = places[path]
        source = find_source(path, place, shape, headers, scheme)
        tied = mapping.tied_tensor(path) if spec.tie_word_embeddings else None
        if tied is not None and _is_there(tied, shape, headers, scheme):
            copy = find_source(path, Place(tensor=tied, layer=tied.rpartition(".")[0]), shape, headers, scheme)
            if isinstance(source, Source):
                match.problems.extend(_compare(tied, copy, source, headers))
            elif not _is_there(place.tensor, shape, headers, scheme):
                source = copy
        if isinstance(source, Source):
            match.sources[path] = source
        else:
            match.missing[path] = source
    return match


@dataclass(frozen=True, kw_only=True)
class LeftOver:
    """Tensors that no parameter reads, by why.

    unused: this model may do without them. activation_scales: of activations or a cache that a checkpoint wants
    quantized too, and that are not here. unexpected: they should not be there. beside_codes: those of them that stand
    beside low-precision codes, whose meaning they may change.
    """

    unused: list[str] = field(default_factory=list)
    activation_scales: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    beside_codes: list[str] = field(default_factory=list)


def left_over(
    spec: DecoderSpec,
    shapes: Mapping[str, tuple[int, ...]],
    headers: Mapping[str, TensorInfo],
    match: Match,
) -> LeftOver:
    """What becomes of every tensor that is not read."""
    mapping = architecture_of(spec).mapping
    named = {mapping.tied_tensor(path) for path in shapes if spec.tie_word_embeddings}
    for path, place in match.places.items():
        found = match.sources.get(path)
        named |= {place.tensor, *(() if found is None else (*found.names, *found.copies))}
    # The tensors of a weight that is refused are part of that problem, not another one.
    places = [match.places[path] for path in match.missing]
    layers = [place.layer for path, place in zip(match.missing, places, strict=True) if is_weight(path)]
    refused = [
        *(f"{layer}." for layer in layers),
        *(BLOCKS.name(layer, leaf) for layer in layers for leaf in BLOCKS.words),
    ]
    # Those of the other experts, too.
    refused += [place.layer.partition(EVERY_EXPERT)[0] for place in places if place.by_expert]
    refused += [place.layer for place in places if place.stacked]
    refused += [f"{tied}_" for path in shapes if spec.tie_word_embeddings and (tied := mapping.tied_tensor(path))]
    named |= {name for name in headers if name.startswith(tuple(refused))}
    read_layers = {name.rpartition(".")[0] for name in named if name}
    quantized = {it.layer for source in match.sources.values() if source.format.is_low for it in source.pieces}
    result = LeftOver()
    for name in headers:
        if name in named:
            continue
        layer, _, word = name.rpartition(".")
        another_head = mapping.belongs_to_a_head(name) and layer not in read_layers
        if another_head or mapping.is_ignored(name, spec):
            result.unused.append(name)
        elif (word in ACTIVATION_WORDS and layer in quantized) or (word in CACHE_WORDS and quantized):
            result.activation_scales.append(name)
        else:
            result.unexpected.append(name)
            if layer in quantized and word != "bias":
                result.beside_codes.append(name)
    return result


def _is_there(tensor: str, shape: tuple[int, ...], headers: Mapping[str, TensorInfo], scheme: Scheme) -> bool:
    """Whether the weight with this name is there, in whatever layout."""
    return tensor in headers or find_stored(tensor.rpartition(".")[0], shape, headers, scheme) is not None


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

"""The source of a parameter at its place: a tensor, a part of one, or the tensors of all experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from bombus.loader.conventions import Scheme
from bombus.loader.selection import Selection
from bombus.loader.sources import Damage, Source, find_whole
from bombus.loader.tensors import TensorInfo
from bombus.models.mapping import Place
from bombus.policies.errors import Problem
from bombus.policies.formats import type_name


def find_source(
    path: str,
    place: Place,
    shape: tuple[int, ...],
    headers: Mapping[str, TensorInfo],
    scheme: Scheme,
) -> Source | Problem:
    """The source of one parameter, or why what is at this place cannot be it."""
    if place.by_expert:
        found = [_find_one(path, place.of_expert(n), shape[1:], headers, scheme) for n in range(shape[0])]
        return _stack(place.tensor, found)
    if not place.stacked:
        return _find_one(path, place, shape, headers, scheme)
    begins = (f"{place.layer}.", f"{place.layer}_")
    own = {name: info for name, info in headers.items() if name == place.layer or name.startswith(begins)}
    wrong = next((name for name, info in own.items() if info.shape[:1] != shape[:1]), None)
    if wrong is not None:
        return Problem(
            subject=f"tensor {wrong}",
            message=f"does not fit parameter {path}",
            expected=f"{shape[0]} experts as its first axis",
            found=f"{own[wrong].shape}",
            remedy="check that config.json belongs to these weights",
        )
    cut = ({name: info.part(n) for name, info in own.items()} for n in range(shape[0]))
    return _stack(place.tensor, [_find_one(path, place, shape[1:], one, scheme) for one in cut])


def _stack(tensor: str, found: list[Source | Problem]) -> Source | Problem:
    """The source of a stack of experts, all stored alike; or what is wrong with the first of those that are not."""
    problems = [it for it in found if isinstance(it, Problem)]
    sources = [it for it in found if isinstance(it, Source)]
    if problems:
        # A stack of which some is there is not one that is missing: it is never made anew as a whole.
        kind = Damage if sources else type(problems[0])
        more = f" (and so are those of {len(problems) - 1} more experts)" if len(problems) > 1 else ""
        shown = {each.name: getattr(problems[0], each.name) for each in fields(problems[0])}
        return kind(**{**shown, "message": shown["message"] + more})
    first = sources[0]
    other = next((it for it in sources if (it.format, it.info.dtype) != (first.format, first.info.dtype)), None)
    if other is not None:
        return Damage(
            subject=f"weight {other.tensor}",
            message="is not stored as that of the first expert, with which it is stacked",
            expected=_shown(first),
            found=_shown(other),
        )
    return replace(first, tensor=tensor, experts=tuple(sources))


def _shown(source: Source) -> str:
    return str(source.format) if source.format.is_low else type_name(source.info.dtype)


def _find_one(
    path: str,
    place: Place,
    shape: tuple[int, ...],
    headers: Mapping[str, TensorInfo],
    scheme: Scheme,
) -> Source | Problem:
    """The source of a parameter without experts, or of one of them."""
    if place.tensor not in headers:
        place = place.in_codes()
    if place.rows is None and not place.transposed:
        return find_whole(path, place.layer, place.tensor, shape, headers, scheme)
    select = Selection(rows=place.rows, outputs=place.outputs, transposed=place.transposed)
    whole = find_whole(path, place.layer, place.tensor, select.file_shape(shape), headers, scheme)
    if isinstance(whole, Problem):
        return whole
    if not whole.format.is_low and not place.transposed and place.rows is not None:
        first, last = int(place.rows[0]), int(place.rows[-1]) + 1
        if last - first == len(place.rows):  # they lie beside each other: nothing else is read
            return replace(whole, info=whole.info.part(first, last))
    format = select.format_of(whole.format)
    if format is None:
        return Damage(
            subject=f"weight {whole.tensor}",
            message=f"holds parameter {path} and others in {whole.format}, whose tiles cannot be cut so",
            remedy="look for a BF16 or block-FP8 version of this checkpoint",
        )
    return replace(whole, selection=select, format=format, found=whole.format)

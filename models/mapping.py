"""The mapping language: which tensor of a checkpoint fills which parameter, layer by layer, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cached_property
from typing import Any

import numpy as np

from bombus.policies.formats import Shape

# Our parameter name <- the tensor's last word. A layer's table therefore serves BF16 and FP8 files alike.
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale_inv": "weight_scale_inv",
    "zero_point": "weight_zero_point",
    "global_scale": "weight_global_scale",
    "scale": "weight",
    "embedding": "weight",
    "sinks": "sinks",
    "selection_bias": "e_score_correction_bias",
}
EVERY_EXPERT = "*"


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """A layer of theirs that is not simply one of ours.

    layer: its name, with `{n}` for a block's number. With `{e}` for an expert's number it is a layer for every expert,
        and ours is the stack of them.
    parts: the layers of ours that lie in it, by the last word of their names: their outputs follow each other.
    chunk: the outputs of the parts are dealt out in turn instead, that many of each: a number, or the name of a field
        of the spec; 0 for not at all.
    transposed: kernels lie (in, out).
    stacked: it holds all experts, as its first axis.
    bare: how the tensors of a layer whose kernel has its very name go on: "" for a kernel, "_bias".
    """

    layer: str
    parts: tuple[str, ...] = ()
    chunk: int | str = 0
    transposed: bool = False
    stacked: bool = False
    bare: bool = False

    def tensor(self, leaf: str) -> str:
        """The name of the tensor of a parameter of this layer, by the last word of ours."""
        if not self.bare:
            return f"{self.layer}.{LEAVES[leaf]}"
        return self.layer if leaf == "kernel" else f"{self.layer}_{LEAVES[leaf].removeprefix('weight_')}"


def fused(ours: str, parts: Iterable[str], theirs: str, **options: Any) -> dict[str, Theirs]:
    """Entries for the layers `parts` in our module `ours`, which are one layer of theirs; options as in Theirs."""
    parts = tuple(parts)
    return {f"{ours}.{part}": Theirs(layer=theirs, parts=parts, **options) for part in parts}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a parameter is among the tensors of a checkpoint.

    tensor, layer: names, with `*` for the number of every expert. rows: which outputs of the tensor are this
    parameter's; None for all. outputs: how many the tensor has. transposed, stacked: see Theirs.
    """

    tensor: str
    layer: str
    rows: np.ndarray | None = None
    outputs: int = 0
    transposed: bool = False
    stacked: bool = False

    @property
    def by_expert(self) -> bool:
        """Whether every expert has a tensor of its own."""
        return EVERY_EXPERT in self.tensor

    def of_expert(self, number: int) -> Place:
        """The place of one expert's part of the stack."""
        layer, tensor = (name.replace(EVERY_EXPERT, str(number)) for name in (self.layer, self.tensor))
        return replace(self, layer=layer, tensor=tensor, stacked=False)

    def in_codes(self) -> Place:
        """The place in a low-precision file: where the tensors of codes have other names they are never transposed."""
        return replace(self, transposed=False) if self.tensor == self.layer else self

    def spelled(self, spell: Callable[[str], str]) -> Place:
        """The same with names as a checkpoint spells them."""
        return replace(self, tensor=spell(self.tensor), layer=spell(self.layer))


@dataclass(frozen=True, kw_only=True)
class ParameterMapping:
    """Our layers <- their layers, with `{n}` for a block's number.

    prefix: what the names of the backbone begin with when a head stands on it; a checkpoint of the bare backbone
        is without it.
    prefixes: the same for the heads where transformers calls it otherwise.
    ties: our layer -> the layer whose tensor it shares in a model that has no such layer of its own.
    ignored: globs of tensors that are known not to be parameters. `{n}` stands for the number of a block beyond the
        model's own, of which there are as many as the spec's field `further_blocks` says.
    """

    layers: Mapping[str, str | Theirs]
    prefix: str = ""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    further_blocks: str | None = None

    def tensor(self, path: str) -> str:
        """The checkpoint's name of the parameter at `path`. Raises LookupError for a layer without an entry."""
        return self._theirs(path).tensor(path.rpartition(".")[2])

    def place(self, path: str, spec: Any, shapes: Mapping[str, Shape]) -> Place:
        """Where the parameter at `path` of a model with these parameters lies. Raises as `tensor` does."""
        theirs = self._theirs(path)
        layer, _, leaf = path.rpartition(".")
        place = Place(
            tensor=theirs.tensor(leaf),
            layer=theirs.layer,
            transposed=theirs.transposed and leaf == "kernel",
            stacked=theirs.stacked,
        )
        if not theirs.parts:
            return place
        parent, _, own = layer.rpartition(".")
        axis = -2 if leaf == "kernel" else -1
        sizes = {part: shapes[f"{parent}.{part}.{leaf}"][axis] for part in theirs.parts}
        chunk = getattr(spec, theirs.chunk) if isinstance(theirs.chunk, str) else theirs.chunk
        total = sum(sizes.values())
        if chunk:
            rows = np.arange(total).reshape(-1, len(sizes), chunk)[:, theirs.parts.index(own)].reshape(-1)
        else:
            first = sum(size for part, size in sizes.items() if theirs.parts.index(part) < theirs.parts.index(own))
            rows = np.arange(first, first + sizes[own])
        return replace(place, rows=rows, outputs=total)

    def tied_tensor(self, path: str) -> str | None:
        """The name under which a checkpoint may store the parameter at `path` a second time, if it is tied."""
        layer = path.rpartition(".")[0]
        tied = (self.tensor(f"{other}.kernel") for other, owner in self.ties.items() if owner == layer)
        return next(tied, None)

    def is_ignored(self, name: str, spec: Any) -> bool:
        """Whether a tensor is on the written list of those that are not parameters of a model of this spec."""
        further = 0 if self.further_blocks is None else getattr(spec, self.further_blocks)
        beyond = range(spec.num_blocks, spec.num_blocks + further)
        found = (pattern.fullmatch(name) for pattern in self._ignored)
        return any(match and all(int(number) in beyond for number in match.groups()) for match in found)

    def belongs_to_a_head(self, name: str) -> bool:
        """Whether a tensor is one of a layer that stands once in some model of the family, such as a head."""
        layer, _, leaf = name.rpartition(".")
        return leaf in LEAVES.values() and layer in self.layers.values()

    def namer(self, paths: Collection[str], names: Collection[str]) -> Callable[[str], str]:
        """How this checkpoint spells our names for its tensors: as they are, or without the backbone's prefix."""
        expected = [self.tensor(path).replace(EVERY_EXPERT, "0") for path in paths]
        prefixes = dict.fromkeys((self.prefix, "", *self.prefixes.values()))
        # The first of those that fit equally.
        return max(
            (self._speller(prefix) for prefix in prefixes),
            key=lambda spell: sum(spell(name) in names for name in expected),
        )

    def spelled_for(self, head: str) -> Callable[[str], str]:
        """How transformers spells our names for the tensors of a model with this head."""
        return self._speller(self.prefixes.get(head, "" if head == "base" else self.prefix))

    def _speller(self, prefix: str) -> Callable[[str], str]:
        own = self.prefix
        if prefix == own:
            return lambda name: name
        return lambda name: prefix + name[len(own) :] if name.startswith(own) else name

    def _theirs(self, path: str) -> Theirs:
        layer = path.rpartition(".")[0]
        for pattern, theirs in self._patterns:
            match = pattern.fullmatch(layer)
            if match:
                number = match.groupdict().get("n")
                name = theirs.layer if number is None else theirs.layer.replace("{n}", number)
                return replace(theirs, layer=name.replace("{e}", EVERY_EXPERT))
        raise LookupError(f"no entry of the parameter mapping is for layer {layer!r}")

    @cached_property
    def _ignored(self) -> list[re.Pattern[str]]:
        # At most nine digits: the name is any file's.
        return [re.compile(translate(pattern).replace(r"\{n\}", "([0-9]{1,9})")) for pattern in self.ignored]

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Theirs]]:
        return [
            (
                re.compile(re.escape(ours).replace(r"\{n\}", r"(?P<n>\d+)")),
                theirs if isinstance(theirs, Theirs) else Theirs(layer=theirs),
            )
            for ours, theirs in self.layers.items()
        ]

"""The mapping language: which tensor of a checkpoint fills which parameter, layer by layer, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

# Our parameter name <- the tensor's last word. A layer's table therefore serves BF16 and FP8 files alike.
LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale_inv": "weight_scale_inv",
    "zero_point": "weight_zero_point",
    "global_scale": "weight_global_scale",
    "scale": "weight",
    "embedding": "weight",
}


@dataclass(frozen=True, kw_only=True)
class ParameterMapping:
    """Our layers <- their layers, with `{n}` for a block's number.

    prefix: what the names of the backbone begin with when a head stands on it; a checkpoint of the bare backbone
        is without it.
    ties: our layer -> the layer whose tensor it shares in a model that has no such layer of its own.
    ignored: globs of tensors that are known not to be parameters.
    """

    layers: Mapping[str, str]
    prefix: str = ""
    ties: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def tensor(self, path: str) -> str:
        """The checkpoint's name of the parameter at `path`. Raises LookupError for a layer without an entry."""
        layer, _, leaf = path.rpartition(".")
        for pattern, theirs in self._patterns:
            match = pattern.fullmatch(layer)
            if match:
                number = match.groupdict().get("n")
                return (theirs if number is None else theirs.replace("{n}", number)) + "." + LEAVES[leaf]
        raise LookupError(f"no entry of the parameter mapping is for layer {layer!r}")

    def tied_tensor(self, path: str) -> str | None:
        """The name under which a checkpoint may store the parameter at `path` a second time, if it is tied."""
        layer = path.rpartition(".")[0]
        return next((self.layers[other] + ".weight" for other, owner in self.ties.items() if owner == layer), None)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor is on the written list of those that are not parameters."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)

    def belongs_to_a_head(self, name: str) -> bool:
        """Whether a tensor is one of a layer that stands once in some model of the family, such as a head."""
        layer, _, leaf = name.rpartition(".")
        return leaf in LEAVES.values() and layer in self.layers.values()

    def namer(self, paths: Collection[str], names: Collection[str]) -> Callable[[str], str]:
        """How this checkpoint spells our names for its tensors: as they are, or without the backbone's prefix."""
        expected = [self.tensor(path) for path in paths]
        bare = sum(name.removeprefix(self.prefix) in names for name in expected)
        if bare > sum(name in names for name in expected):
            return lambda name: name.removeprefix(self.prefix)
        return lambda name: name

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [
            (re.compile(re.escape(ours).replace(r"\{n\}", r"(?P<n>\d+)")), theirs)
            for ours, theirs in self.layers.items()
        ]

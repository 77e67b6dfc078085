"""CacheReport: what the layers of a cache are kept as, and the bytes that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from bombus.layers.cache import LayerCache
    from bombus.layers.stored import Stored

_COLUMNS = ("layers", "keys", "values", "slots", "recent", "bytes", "bytes per token")


@dataclass(frozen=True, repr=False)
class CacheReport:
    """A table of the layers; layers that are kept alike share a row. `layers` has a record of every layer."""

    layers: tuple[dict[str, Any], ...]
    rows: int
    slots: int

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer["bytes"] for layer in self.layers)

    @property
    def bytes_per_token(self) -> float:
        """Bytes for each slot of each row."""
        return self.nbytes / (self.rows * self.slots)

    def to_json(self) -> dict[str, Any]:
        """Plain data: totals and one record per layer."""
        return {
            "rows": self.rows,
            "slots": self.slots,
            "bytes": self.nbytes,
            "bytes_per_token": self.bytes_per_token,
            "layers": [dict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, layer in enumerate(self.layers):
            alike.setdefault(tuple(layer.values()), []).append(index)
        count = self.rows * self.slots
        lines = []
        for (*kept, size), members in alike.items():
            taken = size * len(members)
            lines.append((_ranges(members), *map(str, kept), f"{taken:,}", _number(taken / count)))
        total = ("all", "", "", "", "", f"{self.nbytes:,}", _number(self.bytes_per_token))
        table = [_COLUMNS, *lines, total]
        widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
        shown = [
            "  ".join(cell.ljust(width) if column < 3 else cell.rjust(width) for column, (cell, width) in row).rstrip()
            for row in (enumerate(zip(row, widths, strict=True)) for row in table)
        ]
        return "\n".join((f"cache of {self.rows} x {self.slots} slots", *shown))

    __repr__ = __str__


def layer_report(layers: Iterable[LayerCache], *, rows: int, slots: int) -> CacheReport:
    """The report of these layers of a cache of `rows` x `slots`."""
    records = tuple(
        {
            "keys": _kept(layer.keys),
            "values": "the keys" if layer.values is None else _kept(layer.values),
            "slots": layer.keys.slots,
            "recent": 0 if layer.recent_keys is None else layer.recent_keys.slots,
            "bytes": nbytes(layer),
        }
        for layer in layers
    )
    return CacheReport(records, rows, slots)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree, which may be shapes alone."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _kept(stored: Stored) -> str:
    if stored.scale is None:
        return stored.format
    scale = "head" if stored.scale.ndim == 1 else "token"
    return f"{stored.format} per {scale}" + ("" if stored.zero is None else " with zero points")


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in pairs)


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")

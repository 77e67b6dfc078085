"""LoadReport: what was loaded, from where, as what, and how many bytes it takes."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bombus.loader.plan import Entry, LoadPlan
from bombus.loader.sources import Source
from bombus.policies.errors import PolicyError, Problem, closest
from bombus.policies.formats import type_name

_SHOWN = 8  # of the tensors that are not needed; `to_json` has all
_COLUMNS = ("parameter", "tensor", "in file", "stored", "computed", "action", "bytes", "rule")


@dataclass(frozen=True, repr=False)
class LoadReport:
    """A table of every parameter. Layers of equal treatment share a row; `to_json` lists them one by one."""

    plan: LoadPlan
    where: str
    seconds: float | None = None
    # The values of the plan's activation scales, by tensor, once they are read.
    activation_scales: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that the parameters take in memory."""
        return sum(entry.nbytes for entry in self.plan.entries)

    @property
    def file_nbytes(self) -> int:
        """Bytes of the tensors that are read."""
        return sum(info.nbytes for entry in self.plan.entries if entry.source for info in entry.source.infos)

    @property
    def initialised(self) -> tuple[str, ...]:
        """Parameters that the checkpoint does not have and that were made anew (only with strict=False)."""
        return tuple(entry.path for entry in self.plan.entries if entry.action == "initialise")

    def explain(self, name: str) -> str:
        """One sentence: how the parameter with this path, or whose tensor has this name, is stored and computed, and
        which rule decided that and why. Raises PolicyError, with the nearest names, where there is none.
        """
        names = self.plan.model.names
        sources = {entry.path: entry.source.tensor if entry.source else None for entry in self.plan.entries}
        entries = self.plan.entries
        entry = next((e for e in entries if name in (e.path, names[e.path], sources[e.path])), None)
        if entry is None:
            known = [known for path in sources for known in (path, names[path]) if known is not None]
            raise PolicyError(
                Problem(subject=f"parameter {name!r}", message="does not exist", remedy=closest(name, known))
            )
        decision = self.plan.model.decisions[entry.path]
        if self.plan.precision is not None:
            reason = self.plan.precision.explain(entry.path, names[entry.path])
        elif decision.rule is not None:
            reason = f"{entry.path}: {decision.policy} from {decision.rule!r}"
        else:
            reason = f"{entry.path}: no rule decided"
        return f"{reason}. Stored as {entry.format}, computed in {type_name(entry.computed)}"

    def to_json(self) -> dict[str, Any]:
        """Plain data: totals and one record per parameter."""
        return {
            "checkpoint": self.where,
            "policy": self.plan.policy,
            "seconds": self.seconds,
            "bytes": self.nbytes,
            "file_bytes": self.file_nbytes,
            "stored_bytes": self._by_type(),
            "unused_tensors": list(self.plan.unused),
            "activation_scales": {
                name: self.activation_scales[name].astype(np.float64).tolist() if self.activation_scales else None
                for name in self.plan.activation_scales
            },
            "initialised": list(self.initialised),
            "parameters": [dict(zip(_COLUMNS, self._cells(entry), strict=True)) for entry in self.plan.entries],
        }

    def __str__(self) -> str:
        rows = [tuple(map(str, row)) for row in self._rows()]
        widths = [max(len(row[column]) for row in (_COLUMNS, *rows)) for column in range(len(_COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (_COLUMNS, tuple("-" * width for width in widths), *rows)
        ]
        return "\n".join((f"{self.where}: {self.summary}", *lines, *self._notes()))

    # What a prompt or a notebook shows is the table, not the plan's fields.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        caption = html.escape(f"{self.where}: {self.summary}")
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    @property
    def summary(self) -> str:
        """The totals in one line."""
        types = ", ".join(f"{name} {readable_bytes(size)}" for name, size in self._by_type().items())
        took = "" if self.seconds is None else f", loaded in {self.seconds:.2f} s"
        count = sum(entry.size for entry in self.plan.entries)
        return (
            f"{count:,} parameters, {readable_bytes(self.nbytes)} in memory ({types}), "
            f"{readable_bytes(self.file_nbytes)} read{took}"
        )

    def _notes(self) -> list[str]:
        notes = []
        if self.plan.policy:
            notes.append(f"policy: {self.plan.policy}")
        if self.initialised:
            notes.append(f"NOT in the checkpoint, initialised (strict=False): {', '.join(self.initialised)}")
        scales = self.plan.activation_scales
        if scales:
            more = f" and {len(scales) - 1} more" if len(scales) > 1 else ""
            notes.append(
                f"not quantized here, so their scales are not used: activations or cache ({next(iter(scales))}{more})"
            )
        if self.plan.unused:
            left = len(self.plan.unused) - _SHOWN
            shown = ", ".join(self.plan.unused[:_SHOWN]) + (f" and {left} more" if left > 0 else "")
            notes.append(f"not needed by this model: {shown}")
        return notes

    def _by_type(self) -> dict[str, int]:
        sizes: Counter[str] = Counter()
        for entry in self.plan.entries:
            sizes[entry.format.name] += entry.nbytes
        return dict(sizes.most_common())

    def _cells(self, entry: Entry) -> tuple[str, str, str, str, str, str, int, str]:
        return (
            entry.path,
            entry.source.tensor if entry.source else "",
            _in_file(entry.source) if entry.source else "",
            f"{entry.format}{list(entry.shape)}",
            type_name(entry.computed),
            entry.action,
            entry.nbytes,
            entry.rule or "",
        )

    def _rows(self) -> list[tuple[str, str, str, str, str, str, str, str]]:
        """Rows in which the numbers of blocks that are treated alike are folded into a range."""
        groups: dict[tuple[str, ...], list[tuple[int | None, int]]] = {}
        for entry in self.plan.entries:
            path, tensor, *middle, nbytes, rule = self._cells(entry)
            number = re.search(r"\.(\d+)\.", path)
            key = (
                path if number is None else path.replace(number[0], ".{n}.", 1),
                tensor if number is None else tensor.replace(number[0], ".{n}.", 1),
                *middle,
                rule,
            )
            groups.setdefault(key, []).append((int(number[1]) if number else None, nbytes))
        rows = []
        for (path, tensor, in_file, stored, computed, action, rule), members in groups.items():
            numbers = [number for number, _ in members if number is not None]
            size = readable_bytes(sum(nbytes for _, nbytes in members))
            shown = path.replace("{n}", _ranges(numbers)) if numbers else path
            rows.append((shown, tensor, in_file, stored, computed, action, size, rule))
        return rows


def readable_bytes(count: int) -> str:
    """A size with a unit: 1.5 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def _in_file(source: Source) -> str:
    return str(source.format) if source.format.is_low else type_name(source.info.dtype)


def _ranges(numbers: list[int]) -> str:
    numbers = sorted(numbers)
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}" if len(numbers) > 1 else str(numbers[0])

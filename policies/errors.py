"""The error family of Bombus. It lives in the lowest package because every other one raises it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: what it is about, what was expected and found, and what to do."""

    subject: str
    message: str
    expected: str | None = None
    found: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        details = [f"{name} {value}" for name, value in (("expected", self.expected), ("found", self.found)) if value]
        text = f"{self.subject}: {self.message}"
        if details:
            text += f" ({', '.join(details)})"
        if self.remedy:
            text += f". {self.remedy[0].upper()}{self.remedy[1:]}"
        return text


class BombusError(ValueError):
    """Every error that Bombus raises on purpose.

    `problems` holds all that was found, and `where` the file, folder or object that they are about.
    """

    def __init__(self, problems: Problem | Iterable[Problem], *, where: str | None = None) -> None:
        self.problems: Sequence[Problem] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.where = where
        super().__init__(str(self))

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        if len(self.problems) == 1:
            return prefix + str(self.problems[0])
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        return f"{prefix}{len(self.problems)} problems\n{lines}"


class LoadError(BombusError):
    """A checkpoint could not be loaded. Its kinds say which step failed."""


class HubError(LoadError):
    """The repository or one of its files could not be reached."""


class CheckpointError(LoadError):
    """A file is damaged or is not what its name says."""


class SpecError(LoadError):
    """A configuration cannot be turned into a spec."""


class PlanError(LoadError):
    """The checkpoint, the architecture and the policy do not fit together."""


class PolicyError(BombusError):
    """A precision policy is malformed or cannot be applied."""


class GenerationError(BombusError):
    """A request for text cannot be met."""


def closest(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """The known names nearest to `name`, or all of them when there are few, as one readable phrase."""
    names = list(known)
    near = get_close_matches(name, names, n=limit, cutoff=0.5) or _containing(name, names)[:limit]
    if near:
        return "the closest are " + ", ".join(repr(match) for match in near)
    return "known: " + ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _containing(pattern: str, names: Iterable[str]) -> list[str]:
    """The names in which most of a pattern's own characters stand in a row, best first."""
    wanted = re.sub(r"^re:|[*?\\\[\]]+", "", pattern)
    matcher = SequenceMatcher(b=wanted, autojunk=False)
    scores = {}
    for name in names:
        matcher.set_seq1(name)
        scores[name] = sum(block.size for block in matcher.get_matching_blocks() if block.size > 1)
    return sorted((name for name in scores if scores[name] > 0.6 * len(wanted)), key=lambda name: -scores[name])

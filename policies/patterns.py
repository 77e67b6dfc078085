"""Patterns of policy rules: an exact name, a glob with braces, `re:` and an expression, or a group of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

from bombus.policies.errors import PolicyError, Problem, closest

# A group's name as a pattern stands for these parameters, found from the words of our path. The first that fits is
# the parameter's group: a norm inside an attention is a norm.
_BELONGS: Mapping[str, Callable[[list[str]], bool]] = {
    "norm": lambda words: words[-1] == "scale" or any(word.endswith("norm") for word in words[:-1]),
    "experts": lambda words: "experts" in words[:-1],
    "head": lambda words: words[0].endswith("_head"),
    "embedding": lambda words: words[-1] == "embedding" or any(word.endswith("embedding") for word in words[:-1]),
    "attention": lambda words: any("attention" in word for word in words[:-1]),
    "feed_forward": lambda words: "ffn" in words[:-1],
}
GROUPS = tuple(_BELONGS)
_MOST_GLOBS = 10_000


def group_of(path: str) -> str | None:
    """The group that the parameter at `path` is in, if any."""
    words = path.split(".")
    return next((group for group, belongs in _BELONGS.items() if belongs(words)), None)


def is_exact(pattern: str) -> bool:
    """Whether a pattern is one name and nothing else."""
    return pattern not in GROUPS and re.search(r"^re:|[*?\[{]", pattern) is None


def matches(pattern: str, path: str, tensor: str | None = None) -> bool:
    """Whether a pattern names this parameter, by our path, its tensor's name or the group it is in."""
    groups, expression = _compiled(pattern)
    if expression.fullmatch(path) or (tensor is not None and expression.fullmatch(tensor)):
        return True
    return bool(groups) and group_of(path) in groups


def matching(pattern: str, parameters: Mapping[str, str | None]) -> list[str]:
    """The paths that a pattern matches, of parameters in a map from our paths to their tensors' names."""
    # Policies of one exact name for each of a thousand parameters are common.
    if is_exact(pattern):
        return [path for path, tensor in parameters.items() if pattern in (path, tensor)]
    return [path for path, tensor in parameters.items() if matches(pattern, path, tensor)]


def check_pattern(pattern: Any) -> None:
    """Raises PolicyError for what is no pattern."""
    if not isinstance(pattern, str):
        raise PolicyError(Problem(subject=f"policy rule {pattern!r}", message="must be a text"))
    _compiled(pattern)


def unmatched(patterns: Iterable[str], parameters: Mapping[str, str | None]) -> list[Problem]:
    """One problem, with the closest names, for every pattern that matches none of the parameters."""
    names = list(dict.fromkeys(name for pair in parameters.items() for name in pair if name is not None))
    groups = [group for group in GROUPS if any(group_of(path) == group for path in parameters)]
    return [
        Problem(
            subject=f"policy rule {pattern!r}",
            message="matches no parameter",
            remedy=f"the groups of this model are {', '.join(groups) or 'none'}"
            if pattern in GROUPS
            else closest(pattern, [*names, *groups]),
        )
        for pattern in patterns
        if not matching(pattern, parameters)
    ]


def expand(pattern: str) -> list[str]:
    """The globs that the braces of a pattern stand for: "a.{0,2..3}" is a.0, a.2 and a.3. Raises PolicyError."""
    pieces = [_alternatives(piece, pattern) for piece in re.split(r"(\{[^{}]*\})", pattern)]
    if prod(map(len, pieces)) > _MOST_GLOBS:
        raise _malformed(pattern, f"has braces that stand for more than {_MOST_GLOBS} names")
    return ["".join(choice) for choice in product(*pieces)]


def _alternatives(piece: str, pattern: str) -> list[str]:
    if re.search("[{}]", piece) is None:
        return [piece]
    inner = re.fullmatch(r"\{(.*)\}", piece, re.DOTALL)
    if inner is None:
        raise _malformed(pattern, "has a brace that is not opened, not closed or inside another")
    found: list[str] = []
    for word in map(str.strip, inner[1].split(",")):
        ends = re.fullmatch(r"(\d{1,6})\.\.(\d{1,6})", word)
        if ends:
            first, last = sorted(map(int, ends.groups()))
            found += map(str, range(first, last + 1))
        elif not word or ".." in word:
            raise _malformed(pattern, f"has {piece}, in which {word!r} is neither a word nor a range of numbers")
        else:
            found.append(word)
    return found


def _malformed(pattern: str, message: str) -> PolicyError:
    remedy = "write alternatives with commas and ranges with two dots, like {0,4..7}"
    return PolicyError(Problem(subject=f"policy rule {pattern!r}", message=message, remedy=remedy))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> tuple[frozenset[str], re.Pattern[str]]:
    """The groups that a pattern names and the expression for everything else."""
    if pattern.startswith("re:"):
        try:
            return frozenset(), re.compile(pattern[3:])
        except re.error as error:
            problem = Problem(subject=f"policy rule {pattern!r}", message=f"is not a regular expression: {error}")
            raise PolicyError(problem) from error
    globs = expand(pattern)
    return frozenset(globs).intersection(GROUPS), re.compile("|".join(map(translate, globs)))

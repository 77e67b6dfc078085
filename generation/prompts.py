"""Prompts and seeds as they were given, as the integers that the programs take."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any

from bombus.policies.errors import Problem

SEEDS = 2**32  # how many there are


def token_rows(prompts: Any, vocab_size: int, bos: int | None) -> tuple[list[list[int]], list[Problem]]:
    """The token ids of every prompt as Python's own integers, and what is wrong with them."""
    rows: list[list[int]] = []
    problems: list[Problem] = []
    given = listed(prompts)
    if not given:
        problem = Problem(
            subject="prompts",
            message="must be lists of token ids",
            expected="at least one",
            found=repr(prompts)[:80],
        )
        return rows, [problem]
    for row, prompt in enumerate(given):
        tokens = integers(prompt)
        outside = [token for token in tokens or () if not 0 <= token < vocab_size]
        message: str = ""
        found: str | None = None
        remedy: str | None = None
        if tokens is None:
            message, found = "must be a list of token ids", repr(prompt)[:80]
        elif not tokens:
            start = "" if bos is None else f", such as [{bos}] for the beginning of a text"
            message, remedy = "has no tokens", f"write something, if only a line break, or give token ids{start}"
        elif outside:
            message, found = f"goes past the vocabulary of {vocab_size} tokens", repr(outside[:5])
        if message:
            problems.append(Problem(subject=f"prompt {row}", message=message, found=found, remedy=remedy))
        rows.append(tokens or [])
    return rows, problems


def row_seeds(seed: Any, rows: int) -> list[int] | None:
    """A seed for every row; None when there are too few, or other things than seeds."""
    one = integers([seed])
    seeds = one or integers(seed)
    if seeds is None or not all(0 <= number < SEEDS for number in seeds):
        return None
    seeds = [(number + row) % SEEDS for number in one for row in range(rows)] if one else seeds
    return seeds if len(seeds) == rows else None


def integers(values: Any) -> list[int] | None:
    """As Python's own; None for what is not a list of integers."""
    found = listed(values)
    if found is None or any(isinstance(value, bool) for value in found):
        return None
    try:
        return list(map(index, found))
    except TypeError:
        return None


def listed(values: Any) -> list[Any] | None:
    """The elements; None for a text and for what has none."""
    if isinstance(values, str | bytes | Mapping):
        return None
    try:
        return list(values)
    except TypeError:
        return None

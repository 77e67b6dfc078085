"""JSON files of a repository: somebody else's, so of bounded size and depth."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bombus.policies.errors import CheckpointError, Problem, SpecError

# The index of the largest checkpoint has a few megabytes; more than this is no configuration.
MAX_BYTES = 100_000_000


def read_json(path: Path, kind: type[CheckpointError] | type[SpecError] = SpecError) -> dict[str, Any]:
    """The JSON object in a file. Raises `kind` when it is not one.

    Of a key that stands twice the last value counts, as everywhere in Python. NaN is refused; Infinity is not, though
    JSON has neither: transformers writes it into configurations ("time_step_limit": [0.0, Infinity]).
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                problem = Problem(
                    subject="file",
                    message="is too large for a configuration, and was not read",
                    expected=f"at most {MAX_BYTES} bytes",
                    found=f"{size}",
                    remedy="download it again",
                )
                raise kind(problem, where=str(path))
            raw = file.read()
    except OSError as error:
        problem = Problem(subject="file", message=f"cannot be read: {error.strerror or error}")
        raise kind(problem, where=str(path)) from error
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        problem = Problem(subject="file", message=f"is not valid JSON: {error}", remedy="download it again")
        raise kind(problem, where=str(path)) from error
    if not isinstance(value, dict):
        raise kind(Problem(subject="file", message="must hold a JSON object", found=repr(value)[:80]), where=str(path))
    return value


def _constant(word: str) -> float:
    if word == "NaN":
        raise ValueError("it holds NaN, which JSON does not have")
    return float(word)

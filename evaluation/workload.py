"""What is measured: how many users, how long their prompts, how many new tokens; and the presets of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bombus.evaluation.errors import EvaluationError
from bombus.policies.errors import Problem, closest

_WORDS = 1000  # ids below this are in every vocabulary but tiny ones, whose size bounds them then


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`rows` users at a time, each with a prompt of `prompt_tokens`, to whom `new_tokens` are written, whatever they
    say: no stop id ends a row.
    """

    rows: int = 1
    prompt_tokens: int = 128
    new_tokens: int = 200

    def __str__(self) -> str:
        users = "1 user" if self.rows == 1 else f"{self.rows} users"
        return f"{users}, prompt of {_count(self.prompt_tokens)}, {self.new_tokens:,} new"

    @property
    def tokens(self) -> int:
        """The tokens of one row, prompt and new ones."""
        return self.prompt_tokens + self.new_tokens

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """The prompts, by token ids; the same for every contender."""
        ids = np.arange(self.rows * self.prompt_tokens) % min(vocab_size, _WORDS)
        found: list[list[int]] = ids.reshape(self.rows, self.prompt_tokens).tolist()
        return found

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A workload with a name, and how many rounds of it are measured where nobody says."""

    workload: Workload
    rounds: int = 3


PRESETS = {
    "latency": Preset(workload=Workload()),
    "throughput": Preset(workload=Workload(rows=32)),
    # 64k tokens in all: a model of 65,536 positions just holds them.
    "long": Preset(workload=Workload(prompt_tokens=65336), rounds=1),
    "reasoning": Preset(workload=Workload(new_tokens=15000), rounds=1),
}


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises EvaluationError, with the nearest names, where there is none."""
    if name not in PRESETS:
        raise EvaluationError(
            Problem(subject=f"preset {name!r}", message="does not exist", remedy=closest(name, PRESETS))
        )
    return PRESETS[name]


def choose_workload(
    preset: Workload,
    *,
    positions: int,
    batch: int | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    context: int | None = None,
    where: str | None = None,
) -> Workload:
    """The workload of a preset with what is given in its place.

    context: the tokens of a row in all; its prompt is what the new ones leave of them. positions: the most of them
    that the model can hold. Raises EvaluationError that lists everything that does not fit.
    """
    problems = []
    given = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "context": context}
    for name, value in given.items():
        if value is not None and not _is_count(value):
            problems.append(
                Problem(subject=name, message="is out of range", expected="an integer from 1", found=repr(value))
            )
    if context is not None and prompt_tokens is not None:
        problems.append(Problem(subject="context and prompt_tokens", message="say the same", remedy="give one of them"))
    if problems:
        raise EvaluationError(problems, where=where)
    new = preset.new_tokens if new_tokens is None else new_tokens
    prompt = preset.prompt_tokens if prompt_tokens is None else prompt_tokens
    if context is not None:
        prompt = context - new
        if prompt < 1:
            raise EvaluationError(
                Problem(
                    subject="context",
                    message=f"leaves no prompt before {new} new tokens",
                    expected=f"more than {new}",
                    found=str(context),
                    remedy="ask for fewer of them: new_tokens (--new-tokens)",
                ),
                where=where,
            )
    workload = Workload(rows=preset.rows if batch is None else batch, prompt_tokens=prompt, new_tokens=new)
    if workload.tokens > positions:
        raise EvaluationError(_too_long(workload, positions), where=where)
    return workload


def _too_long(workload: Workload, positions: int) -> Problem:
    most = positions - workload.new_tokens
    remedy = f"ask for a prompt of at most {most}: prompt_tokens={most} (--prompt-tokens {most})"
    if most < 1:
        most = positions - workload.prompt_tokens
        remedy = f"ask for fewer new tokens: new_tokens={most} (--new-tokens {most})"
    if most < 1:
        remedy = "ask for fewer of both: prompt_tokens, new_tokens (--prompt-tokens, --new-tokens)"
    return Problem(
        subject="workload",
        message=f"a prompt of {workload.prompt_tokens} tokens and {workload.new_tokens} new ones go past the model's "
        f"{positions} positions",
        remedy=remedy,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _count(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens:,} tokens"

"""tune_batch: how many users at a time a model serves best here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, Unpack, get_args

from bombus.evaluation.benchmark import check_model
from bombus.evaluation.contenders import Device, bombus_contender
from bombus.evaluation.errors import EvaluationError, OutOfMemory
from bombus.evaluation.machine import Machine, this_machine
from bombus.evaluation.measurement import Measurement
from bombus.evaluation.process import ContenderProcess
from bombus.evaluation.tables import text_table
from bombus.evaluation.turns import make_measurement
from bombus.evaluation.workload import Workload, choose_workload
from bombus.loader.report import readable_bytes
from bombus.loader.repository import HubOptions
from bombus.policies.errors import Problem, closest
from bombus.policies.mixed_precision import PolicyLike

Metric = Literal["throughput", "latency"]
# What counts as no gain: a batch of twice the size costs twice the memory.
PLATEAU = 0.05


@dataclass(frozen=True, kw_only=True)
class BatchPoint:
    """A batch size: new tokens per second of all users, seconds of a step, which every user waits for a token,
    seconds to the first token, and the peak of memory in bytes.
    """

    batch: int
    tokens_per_second: float
    seconds_per_token: float
    first_token_seconds: float
    peak_memory: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True, repr=False)
class BatchTuning:
    """The batch sizes that were tried, a table of them as text. stopped: why no larger one was."""

    where: str
    metric: Metric
    prompt_tokens: int
    new_tokens: int
    machine: Machine
    points: tuple[BatchPoint, ...]
    stopped: str

    @property
    def best(self) -> BatchPoint:
        """For latency that of the shortest step; for throughput the smallest one within 5% of the fastest."""
        if self.metric == "latency":
            return min(self.points, key=lambda point: point.seconds_per_token)
        fastest = max(point.tokens_per_second for point in self.points)
        return next(point for point in self.points if point.tokens_per_second * (1 + PLATEAU) >= fastest)

    @property
    def front(self) -> tuple[BatchPoint, ...]:
        """The sizes that no other beats in both latency and throughput, or in one with the other equal."""
        return tuple(point for point in self.points if not any(_beats(other, point) for other in self.points))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "where": self.where,
            "metric": self.metric,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "machine": self.machine.to_json(),
            "best": self.best.batch,
            "front": [point.batch for point in self.front],
            "stopped": self.stopped,
            "points": [point.to_json() for point in self.points],
        }

    def __str__(self) -> str:
        rows = [("batch", "tok/s", "per user", "ms per token", "first token, s", "peak memory", "front", "best")]
        rows += [
            (
                str(point.batch),
                f"{point.tokens_per_second:,.1f}",
                f"{point.tokens_per_second / point.batch:,.1f}",
                f"{point.seconds_per_token * 1e3:,.1f}",
                f"{point.first_token_seconds:,.3f}",
                "" if point.peak_memory is None else readable_bytes(point.peak_memory),
                "*" if point in self.front else "",
                self.metric if point == self.best else "",
            )
            for point in self.points
        ]
        head = f"{self.where}: prompt of {self.prompt_tokens:,} tokens, {self.new_tokens:,} new; {self.machine}"
        return "\n".join([head, "", text_table(rows), self.stopped, f"best for {self.metric}: {self.best.batch}"])

    __repr__ = __str__


def tune_batch(
    repo: str | PathLike[str],
    *,
    most: int = 32,
    metric: Metric = "throughput",
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    rounds: int = 3,
    policy: PolicyLike = None,
    preserve_source_types: bool = False,
    architecture: str | None = None,
    strict: bool = True,
    device: Device | None = None,
    report: Callable[[str], None] = lambda line: None,
    **hub: Unpack[HubOptions],
) -> BatchTuning:
    """The batch sizes 1, 2, 4, ... up to `most`, and the best of them by "throughput" or "latency".

    It stops at the first size that brings less than 5% more tokens per second than the best before it, or that does
    not fit into memory. The other arguments are those of bench. Raises EvaluationError where even one user does not
    fit, and all that bench raises.
    """
    problems = [
        Problem(subject=name, message="is out of range", expected="an integer from 1", found=repr(value))
        for name, value in (("most", most), ("rounds", rounds))
        if type(value) is not int or value < 1
    ]
    if metric not in get_args(Metric):
        problems.append(
            Problem(subject=f"metric {metric!r}", message="does not exist", remedy=closest(metric, get_args(Metric)))
        )
    if problems:
        raise EvaluationError(problems)
    options: dict[str, Any] = {"policy": policy, "preserve_source_types": preserve_source_types, **hub}
    options |= {"architecture": architecture, "strict": strict}
    spec, where = check_model(repo, **options)
    asked = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    workload = choose_workload(Workload(), positions=spec.max_positions, batch=1, **asked, where=where)
    if new_tokens < 2:
        problem = Problem(subject="new_tokens", message="leaves no step to time", expected="2 or more", found="1")
        raise EvaluationError(problem, where=where)
    with ContenderProcess(bombus_contender(repo, device=device, **options)) as process:

        def measure(batch: int) -> BatchPoint:
            report(f"batch {batch}")
            work = Workload(rows=batch, prompt_tokens=workload.prompt_tokens, new_tokens=workload.new_tokens)
            facts.update(process.ask("prepare", workload=work.to_json()) if facts else process.load(work.to_json()))
            answers = [process.ask("measure", workload=work.to_json()) for _ in range(rounds)]
            return make_point(make_measurement(process.contender, work, facts, answers))

        facts: dict[str, Any] = {}
        points, stopped = try_batches(measure, most)
    return BatchTuning(where=where, metric=metric, machine=this_machine(), points=points, stopped=stopped, **asked)


def make_point(found: Measurement) -> BatchPoint:
    """A measurement of several new tokens as a point."""
    assert found.decode is not None
    return BatchPoint(
        batch=found.workload.rows,
        tokens_per_second=found.decode,
        seconds_per_token=found.workload.rows / found.decode,
        first_token_seconds=found.first_token,
        peak_memory=found.peak_memory,
    )


def try_batches(measure: Callable[[int], BatchPoint], most: int) -> tuple[tuple[BatchPoint, ...], str]:
    """(the points of 1, 2, 4, ... up to `most`, why it ended). Raises OutOfMemory where the first does not fit."""
    points: list[BatchPoint] = []
    for batch in batch_sizes(most):
        try:
            point = measure(batch)
        except OutOfMemory as error:
            if not points:
                raise
            return tuple(points), f"stopped at {batch}, which does not fit into memory: {error.problems[0].message}"
        fastest = max((before.tokens_per_second for before in points), default=0.0)
        points.append(point)
        if point.tokens_per_second < fastest:
            return tuple(points), f"stopped at {batch}, which is slower than {_fastest(points).batch}"
        if points[:-1] and point.tokens_per_second < fastest * (1 + PLATEAU):
            return tuple(points), f"stopped at {batch}, which brings less than {PLATEAU:.0%}"
    return tuple(points), f"ended at the most that was asked for, {most}"


def batch_sizes(most: int) -> Sequence[int]:
    """1, 2, 4, ... and `most` itself."""
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return sizes if sizes[-1] == most else [*sizes, most]


def _fastest(points: Sequence[BatchPoint]) -> BatchPoint:
    return max(points, key=lambda point: point.tokens_per_second)


def _beats(one: BatchPoint, other: BatchPoint) -> bool:
    faster = one.tokens_per_second >= other.tokens_per_second and one.seconds_per_token <= other.seconds_per_token
    same = (one.tokens_per_second, one.seconds_per_token) == (other.tokens_per_second, other.seconds_per_token)
    return faster and not same

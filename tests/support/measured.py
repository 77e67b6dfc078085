"""Measurements of made-up numbers, and contenders that are no processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bombus.evaluation import BatchPoint, BatchTuning, Bench, Contender, Machine, Measurement, Sample, Workload
from bombus.evaluation.tune import Metric

MACHINE = Machine(processor="Abacus 9", instructions=("avx2",), cores=2, system="Linux x86_64", python="3.11.4")
WORK = Workload(rows=2, prompt_tokens=100, new_tokens=51)


def measurement(
    name: str = "Bombus",
    seconds: Sequence[tuple[float, float]] = ((0.5, 2.0), (0.4, 1.0), (1.0, 4.0)),
    *,
    workload: Workload = WORK,
    peaks: Sequence[int | None] = (1500, 1200, 1400),
    dispatch: Sequence[float | None] = (None, None, None),
    **facts: Any,
) -> Measurement:
    """One of (seconds to the first token, seconds of decoding) for each round."""
    known: dict[str, Any] = {
        "versions": f"{name} 1.0",
        "weight_bytes": 1000,
        "cache_bytes": 200,
        "step_bytes": 1100.0,
        "load_seconds": 0.25,
        "load_memory": 1100,
        "prepare_seconds": 3.0,
        "start_seconds": 4.0,
    }
    samples = tuple(
        Sample(first_seconds=first, decode_seconds=decode, peak_memory=peak, dispatch_seconds=host)
        for (first, decode), peak, host in zip(seconds, peaks, dispatch, strict=False)
    )
    return Measurement(contender=name, workload=workload, samples=samples, **(known | facts))


def made_bench(*, dispatch: float | None = None, **options: Any) -> Bench:
    """Of Bombus, and a rival of half its speed."""
    rounds = (dispatch, dispatch, dispatch)
    ours = measurement(dispatch=rounds)
    slow = measurement("llama.cpp, Q8_0", ((1.0, 4.0), (0.8, 2.0), (2.0, 8.0)), peaks=(None, None, None))
    facts = {"where": "some/model", "preset": "latency", "workload": WORK, "rounds": 3, "machine": MACHINE}
    return Bench(**(facts | {"bandwidth": 55_000.0, "measurements": (ours, slow)} | options))


def points(*speeds: float) -> tuple[BatchPoint, ...]:
    """Of 1, 2, 4, ... users, who get this many tokens per second together."""
    return tuple(
        BatchPoint(
            batch=1 << power,
            tokens_per_second=speed,
            seconds_per_token=(1 << power) / speed,
            first_token_seconds=0.25,
            peak_memory=None if power else 2_000_000,
        )
        for power, speed in enumerate(speeds)
    )


def tuning(metric: Metric, *speeds: float) -> BatchTuning:
    """Of those points."""
    return BatchTuning(
        where="some/model",
        metric=metric,
        prompt_tokens=128,
        new_tokens=32,
        machine=MACHINE,
        points=points(*speeds),
        stopped="stopped",
    )


class FakeProcess:
    """A contender that writes down what it is asked, and takes as long as its name is."""

    def __init__(self, contender: Contender, log: list[str], platform: str = "cpu") -> None:
        self.contender, self.log, self.platform = contender, log, platform

    def load(self, workload: dict[str, int]) -> dict[str, Any]:
        self._write("load", workload)
        facts = {"versions": "1.0", "weight_bytes": 1000, "load_seconds": 0.5, "load_memory": None}
        return {**facts, "platform": self.platform, **self._prepared(workload), "start_seconds": 7.0}

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        self._write(task, arguments.get("workload"))
        if task == "prepare":
            return self._prepared(arguments["workload"])
        if task == "bandwidth":
            return {"bytes_per_second": 5e9}
        seconds = float(len(self.contender.name))
        found: dict[str, Any] = {"first_seconds": seconds, "decode_seconds": 2 * seconds, "peak_memory": 1}
        if arguments["dispatch"]:
            found["dispatch_seconds"] = 0.001
        return {**found, "tokens": [[1]]}

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *error: Any) -> None:
        self._write("close", None)

    def _prepared(self, workload: dict[str, int]) -> dict[str, Any]:
        rows = workload["rows"]
        return {"cache_bytes": 10 * rows, "step_bytes": 20.0 * rows, "prepare_seconds": 1.0, "start_seconds": None}

    def _write(self, task: str, workload: dict[str, int] | None) -> None:
        rows = "" if workload is None else f" {workload['rows']}"
        self.log.append(f"{self.contender.name}: {task}{rows}")

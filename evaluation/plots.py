"""Figures of what was measured, as files. matplotlib is imported when one is asked for."""

from __future__ import annotations

import importlib
from os import PathLike
from pathlib import Path
from typing import Any

from bombus.evaluation.benchmark import Bench
from bombus.evaluation.errors import EvaluationError
from bombus.evaluation.tune import BatchTuning
from bombus.policies.errors import Problem


def check_plot(file: str | PathLike[str]) -> None:
    """Nothing; raises EvaluationError where a figure cannot be written there, which is better known before hours of
    measuring: matplotlib is not installed, the folder is not there, the ending is of no format.
    """
    path = Path(file)
    try:
        canvas: Any = importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg
    except ImportError:
        raise EvaluationError(
            Problem(subject="plot", message="needs matplotlib, not installed", remedy="run `pip install matplotlib`")
        ) from None
    problems = []
    if not path.parent.is_dir():
        problems.append(Problem(subject="plot", message="goes into a folder that is not there", found=str(path.parent)))
    endings = sorted(canvas.filetypes)
    if path.suffix.removeprefix(".").lower() not in endings:
        problems.append(
            Problem(
                subject="plot", message="has an ending of no format", expected=", ".join(endings), found=repr(path.name)
            )
        )
    if problems:
        raise EvaluationError(problems)


def plot_bench(bench: Bench, file: str | PathLike[str]) -> Any:
    """A matplotlib Figure, written to `file`: decode speeds under the limits of the memory, and prefill speeds."""
    figure = _figure(10, 4.5)
    decode, prefill = figure.subplots(1, 2)
    names = [found.contender for found in bench.measurements]
    places = range(len(names))
    decode.bar(places, [found.decode or 0.0 for found in bench.measurements], color="tab:blue", width=0.6)
    for place, found in zip(places, bench.measurements, strict=True):
        limit = bench.workload.rows * bench.bandwidth / found.step_bytes
        decode.hlines(limit, place - 0.4, place + 0.4, color="black", label="" if place else "limit of the memory")
    decode.set_ylabel("new tokens per second")
    decode.legend()
    prefill.bar(places, [found.prefill for found in bench.measurements], color="tab:orange", width=0.6)
    prefill.set_ylabel("prompt tokens per second")
    for axes in (decode, prefill):
        axes.set_xticks(list(places), names, rotation=20, ha="right")
    figure.suptitle(f"{bench.where}, {bench.workload}\n{bench.machine}", fontsize="medium")
    return _written(figure, file)


def plot_tuning(tuning: BatchTuning, file: str | PathLike[str]) -> Any:
    """A matplotlib Figure, written to `file`: throughput over latency of every batch size, the Pareto front joined."""
    figure = _figure(6, 4.5)
    axes = figure.subplots()
    front = sorted(tuning.front, key=lambda point: point.seconds_per_token)
    axes.plot([point.seconds_per_token * 1e3 for point in front], [point.tokens_per_second for point in front], "-")
    for point in tuning.points:
        color = "tab:red" if point == tuning.best else "tab:blue"
        place = (point.seconds_per_token * 1e3, point.tokens_per_second)
        axes.plot(*place, "o", color=color)
        axes.annotate(str(point.batch), place, textcoords="offset points", xytext=(5, 5))
    axes.set_xlabel("milliseconds per token of a user")
    axes.set_ylabel("new tokens per second, all users")
    axes.set_title(f"{tuning.where}, by batch size; best for {tuning.metric}: {tuning.best.batch}", fontsize="medium")
    return _written(figure, file)


def _figure(width: float, height: float) -> Any:
    # Not pyplot, which wants to know about the screen.
    return importlib.import_module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _written(figure: Any, file: str | PathLike[str]) -> Any:
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise EvaluationError(
            Problem(subject="plot", message=f"cannot be written: {error}"), where=str(file)
        ) from error
    return figure

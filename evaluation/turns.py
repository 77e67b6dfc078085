"""Contenders that measure in turns, so that a slow minute of the machine hits them all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, Self

from bombus.evaluation.bandwidth import read_bandwidth
from bombus.evaluation.contenders import Contender
from bombus.evaluation.measurement import Measurement, Sample
from bombus.evaluation.process import ContenderProcess
from bombus.evaluation.workload import Workload


class Running(Protocol):
    """A contender that runs: see ContenderProcess."""

    def load(self, workload: dict[str, int]) -> dict[str, Any]: ...
    def ask(self, task: str, **arguments: Any) -> dict[str, Any]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> None: ...


def measure_in_turns(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    *,
    rounds: int,
    dispatch: bool = False,
    start: Callable[[Contender], Running] = ContenderProcess,
    bandwidth: Callable[[], float] = read_bandwidth,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[list[Measurement], float]:
    """(what every contender did under every workload, the read bandwidth in bytes per second, the best of a round).

    All are loaded, one after the other, before any measures. dispatch: measure also what the host takes for a step.
    report: called with a line about what comes next. Raises what ContenderProcess does.
    """
    with ExitStack() as stack:
        running, facts = [], []
        for contender in contenders:
            report(f"{contender.name}: loads")
            process = stack.enter_context(start(contender))
            loaded = process.load(workloads[0].to_json())
            running.append(process)
            facts.append([loaded, *(process.ask("prepare", workload=work.to_json()) for work in workloads[1:])])
        # The memory that is read is the host's, or that of the device of the first contender that has one.
        on_device = [loads[0].get("platform", "cpu") != "cpu" for loads in facts]
        answers: dict[tuple[int, int], list[dict[str, Any]]] = {}
        fastest = 0.0
        for turn in range(rounds):
            for place, work in enumerate(workloads):
                for index, process in enumerate(running):
                    report(f"round {turn + 1} of {rounds}: {contenders[index].name}, {work}")
                    answer = process.ask("measure", workload=work.to_json(), dispatch=dispatch)
                    answers.setdefault((index, place), []).append(answer)
            if any(on_device):
                fastest = max(fastest, running[on_device.index(True)].ask("bandwidth")["bytes_per_second"])
            else:
                fastest = max(fastest, bandwidth())
    found = [
        make_measurement(contender, work, facts[index][0] | facts[index][place], answers[index, place])
        for index, contender in enumerate(contenders)
        for place, work in enumerate(workloads)
    ]
    return found, fastest


def make_measurement(
    contender: Contender, workload: Workload, facts: dict[str, Any], answers: Sequence[dict[str, Any]]
) -> Measurement:
    """The measurement that a process's answers come to. facts: what it said of the load and of the workload."""
    kept = {name: value for name, value in facts.items() if name in Measurement.__dataclass_fields__}
    samples = tuple(
        Sample(**{name: value for name, value in answer.items() if name in Sample.__dataclass_fields__})
        for answer in answers
    )
    return Measurement(**kept, contender=contender.name, workload=workload, samples=samples)

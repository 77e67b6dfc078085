"""Contenders in turns: who is asked what, when; and what the answers come to."""

from __future__ import annotations

from measured import FakeProcess

from bombus.evaluation import Contender, Measurement, Workload, measure_in_turns

ONE, FOUR = Workload(rows=1, prompt_tokens=8, new_tokens=3), Workload(rows=4, prompt_tokens=8, new_tokens=3)
CONTENDERS = [Contender(name="a", kind="bombus"), Contender(name="bb", kind="transformers")]


def measured(platform: str = "cpu", *, dispatch: bool = False) -> tuple[list[Measurement], float, list[str], list[str]]:
    """What was found, the bandwidth, what the contenders were asked, what was reported."""
    log: list[str] = []
    lines: list[str] = []
    speeds = iter((1e9, 3e9, 2e9))

    def bandwidth() -> float:
        log.append("bandwidth")
        return next(speeds)

    found, best = measure_in_turns(
        CONTENDERS,
        [ONE, FOUR],
        rounds=3,
        dispatch=dispatch,
        start=lambda contender: FakeProcess(contender, log, platform if contender.name == "bb" else "cpu"),
        bandwidth=bandwidth,
        report=lines.append,
    )
    return found, best, log, lines


def test_all_load_one_by_one_and_then_measure_in_turns() -> None:
    _, best, log, lines = measured()
    loads = ["a: load 1", "a: prepare 4", "bb: load 1", "bb: prepare 4"]
    turn = ["a: measure 1", "bb: measure 1", "a: measure 4", "bb: measure 4", "bandwidth"]
    assert log == [*loads, *turn, *turn, *turn, "bb: close", "a: close"]
    assert best == 3e9, "the best of the rounds"
    assert lines[:3] == ["a: loads", "bb: loads", "round 1 of 3: a, 1 user, prompt of 8 tokens, 3 new"]
    assert lines[-1] == "round 3 of 3: bb, 4 users, prompt of 8 tokens, 3 new"


def test_the_memory_of_a_device_is_what_its_contender_reads() -> None:
    _, best, log, _ = measured("gpu")
    assert best == 5e9
    assert log.count("bb: bandwidth") == 3
    assert "bandwidth" not in log


def test_answers_become_measurements_of_each_contender_and_workload() -> None:
    found, *_ = measured()
    assert [(one.contender, one.workload) for one in found] == [("a", ONE), ("a", FOUR), ("bb", ONE), ("bb", FOUR)]
    assert [one.first_token for one in found] == [1.0, 1.0, 2.0, 2.0]
    assert [one.decode for one in found] == [1.0, 4.0, 0.5, 2.0]  # of 2 steps in twice as many seconds
    assert [one.cache_bytes for one in found] == [10, 40, 10, 40], "of its own workload"
    assert [one.start_seconds for one in found] == [7.0, None, 7.0, None], "of the first workload only"
    assert all(one.weight_bytes == 1000 and len(one.samples) == 3 for one in found)


def test_dispatch_is_measured_when_asked_for() -> None:
    assert {one.dispatch for one in measured()[0]} == {None}
    assert {one.dispatch for one in measured(dispatch=True)[0]} == {0.001}

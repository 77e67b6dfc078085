"""Batch sizes: which are tried, where it ends, which is the best."""

from __future__ import annotations

import json

import pytest
from measured import measurement, points, tuning

from bombus.evaluation import BatchPoint, EvaluationError, OutOfMemory, Workload, tune_batch
from bombus.evaluation.tune import batch_sizes, make_point, try_batches
from bombus.policies.errors import Problem

FULL = OutOfMemory(Problem(subject="Bombus", message="cannot load: RESOURCE_EXHAUSTED"))


def tried(*speeds: float | Exception, most: int = 32) -> tuple[list[int], str]:
    """(the sizes of the points, why it ended)."""
    by_batch = dict(zip(batch_sizes(most), speeds, strict=False))

    def measure(batch: int) -> BatchPoint:
        speed = by_batch[batch]
        if isinstance(speed, Exception):
            raise speed
        return BatchPoint(
            batch=batch,
            tokens_per_second=speed,
            seconds_per_token=batch / speed,
            first_token_seconds=0.0,
            peak_memory=None,
        )

    found, stopped = try_batches(measure, most)
    return [point.batch for point in found], stopped


def test_sizes_double() -> None:
    assert [list(batch_sizes(most)) for most in (1, 2, 32, 6)] == [[1], [1, 2], [1, 2, 4, 8, 16, 32], [1, 2, 4, 6]]


def test_it_goes_on_while_it_gains() -> None:
    assert tried(10, 19, 30, 40, 45, 50) == ([1, 2, 4, 8, 16, 32], "ended at the most that was asked for, 32")
    assert tried(10, 19, most=2) == ([1, 2], "ended at the most that was asked for, 2")


def test_it_stops_at_a_plateau() -> None:
    """5% is a gain, less is none."""
    assert tried(10, 20, 21, 22.04, 99) == ([1, 2, 4, 8], "stopped at 8, which brings less than 5%")


def test_it_stops_where_it_becomes_slower() -> None:
    assert tried(10, 20, 19, 99) == ([1, 2, 4], "stopped at 4, which is slower than 2")


def test_it_stops_where_memory_ends() -> None:
    assert tried(10, 20, FULL, 99) == (
        [1, 2],
        "stopped at 4, which does not fit into memory: cannot load: RESOURCE_EXHAUSTED",
    )
    with pytest.raises(OutOfMemory):
        tried(FULL)
    with pytest.raises(EvaluationError, match="broken"):
        tried(10, EvaluationError(Problem(subject="x", message="broken")))


def test_the_best_for_throughput_is_the_smallest_of_the_fastest() -> None:
    assert tuning("throughput", 10, 19, 30).best.batch == 4
    assert tuning("throughput", 10, 20, 20.9).best.batch == 2, "twice the users for less than 5%"
    assert tuning("throughput", 10, 20, 15).best.batch == 2
    assert tuning("throughput", 10).best.batch == 1


def test_the_best_for_latency_is_the_shortest_step() -> None:
    assert tuning("latency", 10, 19, 30).best.batch == 1
    assert tuning("latency", 10, 21, 30).best.batch == 2


def test_the_front_is_what_nobody_beats() -> None:
    """Steps of 100, 95, 133 and 400 ms: of 1 user is beaten by 2, and 8 are by 4."""
    assert [point.batch for point in tuning("latency", 10, 21, 30, 20).front] == [2, 4]
    same = points(10)
    assert tuning("latency", 10).front == same


def test_the_table() -> None:
    assert str(tuning("throughput", 10, 21, 30)) == (
        "some/model: prompt of 128 tokens, 32 new; Abacus 9 (avx2), 2 cores\n"
        "\n"
        "batch  tok/s  per user  ms per token  first token, s  peak memory  front        best\n"
        "1       10.0      10.0         100.0           0.250      2.00 MB\n"
        "2       21.0      10.5          95.2           0.250                   *\n"
        "4       30.0       7.5         133.3           0.250                   *  throughput\n"
        "stopped\n"
        "best for throughput: 4"
    )


def test_plain_data() -> None:
    found = json.loads(json.dumps(tuning("latency", 10, 21, 30).to_json()))
    assert (found["best"], found["front"]) == (2, [2, 4])
    assert found["points"][0] == {
        "batch": 1,
        "tokens_per_second": 10,
        "seconds_per_token": 0.1,
        "first_token_seconds": 0.25,
        "peak_memory": 2_000_000,
    }


def test_a_measurement_is_a_point() -> None:
    """50 tokens per second of two users: each waits 40 ms for the next."""
    found = make_point(measurement(workload=Workload(rows=2, prompt_tokens=100, new_tokens=51)))
    assert (found.batch, found.tokens_per_second, found.seconds_per_token) == (2, 50.0, 0.04)
    assert (found.first_token_seconds, found.peak_memory) == (0.5, 1500)


def test_what_cannot_be_tuned_is_said() -> None:
    with pytest.raises(EvaluationError) as caught:
        tune_batch("bombus/tiny-shakespeare-fp8", most=0, metric="speed")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "2 problems\n  - most: is out of range (expected an integer from 1, found 0)\n"
        "  - metric 'speed': does not exist. Known: throughput, latency"
    )
    with pytest.raises(EvaluationError) as caught:
        tune_batch("bombus/tiny-shakespeare-fp8", new_tokens=1)
    assert str(caught.value).endswith(": new_tokens: leaves no step to time (expected 2 or more, found 1)")
    with pytest.raises(EvaluationError, match="Ask for a prompt of at most 480: prompt_tokens=480"):
        tune_batch("bombus/tiny-shakespeare-fp8", prompt_tokens=512)

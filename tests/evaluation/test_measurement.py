"""What follows from seconds and bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from measured import measurement

from bombus.evaluation import Workload


def test_speeds_are_medians_of_the_rounds() -> None:
    """Of 50 steps after the first token, of two rows."""
    found = measurement()
    assert found.decode == 50.0  # of 50, 100 and 25
    assert found.decode_per_user == 25.0
    assert found.prefill == 400.0  # of 400, 500 and 200
    assert found.first_token == 0.5


def test_the_share_of_the_bandwidth_counts_each_step_once() -> None:
    """25 steps per second of 1,100 bytes."""
    assert measurement().fraction_of(55_000.0) == 0.5


def test_memory_is_the_peak_alone_or_the_largest_over_weights_and_cache() -> None:
    found = measurement()
    assert (found.peak_memory, found.memory_ratio) == (1500, 1.25)
    alone = replace(found, alone_memory=1320)
    assert (alone.peak_memory, alone.memory_ratio) == (1320, 1.1)
    unknown = measurement(peaks=(None, None, None))
    assert (unknown.peak_memory, unknown.memory_ratio) == (None, None)


def test_ratios_are_medians_of_each_rounds_own() -> None:
    """Not ratios of medians: a slow round is slow for both."""
    ours, theirs = measurement(), measurement("other", ((1.0, 2.0), (0.4, 4.0), (3.0, 12.0)))
    decode, prefill = ours.times(theirs)
    assert decode == 3.0  # of 1, 4 and 3
    assert prefill == 2.0  # of 2, 1 and 3
    assert theirs.times(ours) == (pytest.approx(1 / 3), 0.5)


def test_one_new_token_has_no_decoding() -> None:
    found = measurement(seconds=((0.5, 0.0),), workload=Workload(rows=2, prompt_tokens=100, new_tokens=1))
    assert (found.decode, found.decode_per_user, found.fraction_of(1.0)) == (None, None, None)
    assert found.prefill == 400.0
    assert found.times(found) == (None, 1.0)


def test_dispatch_is_the_median_of_the_rounds_that_have_it() -> None:
    assert measurement().dispatch is None
    assert measurement(dispatch=(0.003, None, 0.001)).dispatch == 0.002


def test_plain_data_has_what_was_measured_and_what_follows() -> None:
    found = measurement().to_json(55_000.0)
    assert found["decode_tokens_per_second"] == 50.0
    assert found["fraction_of_read_bandwidth"] == 0.5
    assert found["peak_memory_over_weights_and_cache"] == 1.25
    assert found["workload"] == {"rows": 2, "prompt_tokens": 100, "new_tokens": 51}
    assert found["samples"][1] == {
        "first_seconds": 0.4,
        "decode_seconds": 1.0,
        "peak_memory": 1200,
        "dispatch_seconds": None,
    }

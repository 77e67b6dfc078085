"""What is read of the machine and of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from measured import MACHINE

from bombus.evaluation import bandwidth, read_bandwidth, this_machine
from bombus.evaluation.machine import memory, peak_memory, read_processor, reset_peak_memory

CPUINFO = """processor\t: 0
model name\t: AMD EPYC 9754 128-Core Processor
flags\t\t: fpu avx2 avx512f avx512_bf16 xsave

processor\t: 1
model name\t: another
flags\t\t: amx_bf16
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so")


def test_the_processor_is_the_first_one() -> None:
    assert read_processor(CPUINFO) == ("AMD EPYC 9754 128-Core Processor", ("avx2", "avx512f", "avx512_bf16"))
    assert read_processor("Features\t: fp asimd evtstrm\n") == ("", ("asimd",))
    assert read_processor("") == ("", ())


def test_a_machine_names_itself() -> None:
    assert str(MACHINE) == "Abacus 9 (avx2), 2 cores"
    found = this_machine()
    assert (found.cores, found.processor != "") == (os.cpu_count(), True)
    assert found.to_json()["instructions"] == list(found.instructions)


@linux
def test_the_peak_of_memory_starts_anew() -> None:
    """From the present size, and it does not sink when memory is given back."""
    size = 64 << 20
    start = reset_peak_memory()
    assert start is not None
    values = np.ones(size, np.uint8)
    grown = (peak_memory() or 0) - start
    del values
    kept = (peak_memory() or 0) - start
    again = (reset_peak_memory() or 0) - start
    assert (grown > 0.9 * size, kept > 0.9 * size, again < 0.5 * size) == (True, True, True)
    assert abs((peak_memory() or 0) - (memory("VmRSS") or 0)) < 0.1 * size


def test_where_the_system_does_not_say_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr("bombus.evaluation.machine._PROCESS", Path("/no/such/folder"))
    monkeypatch.setattr("bombus.evaluation.machine._PROCESSOR", Path("/no/such/file"))
    assert (reset_peak_memory(), peak_memory(), memory("VmRSS")) == (None, None, None)
    assert this_machine().processor


def test_the_bandwidth_is_that_of_the_best_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of 2, 0.5 and 1 seconds over 4,096 bytes."""
    clock = iter((0.0, 2.0, 10.0, 10.5, 20.0, 21.0))
    monkeypatch.setattr(bandwidth, "time", SimpleNamespace(perf_counter=clock.__next__))
    assert read_bandwidth(size=4096, passes=3) == 8192.0
    assert next(clock, None) is None


def test_the_buffer_is_far_past_the_caches() -> None:
    assert bandwidth.SIZE >= 1 << 30

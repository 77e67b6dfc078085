"""The tables that benchmarks/tables.py writes: where they stand, and that each is one that it measures."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = {"speed", "speed, in short", "kernels", "start", "formats", "batches", "settings"}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("tables")


def test_every_table_has_its_place_and_was_measured(tables: ModuleType) -> None:
    found: dict[str, str] = {}
    for file in tables.FILES:
        text = file.read_text("utf-8")
        places = re.findall(r"<!-- table: ([^>]*) -->\n(.*?)<!-- end -->", text, re.DOTALL)
        assert text.count("<!-- table: ") == text.count("<!-- end -->") == len(places), file
        found |= dict(places)
    assert set(found) == NAMES
    assert all(table.count("\n|") > 2 for table in found.values())


def test_tables_are_replaced_where_they_stand(tables: ModuleType) -> None:
    before = "a\n<!-- table: one -->\nold\n\nold\n<!-- end -->\nb\n<!-- table: two -->\n<!-- end -->\n"
    after = "a\n<!-- table: one -->\n| x |\n<!-- end -->\nb\n<!-- table: two -->\n<!-- end -->\n"
    assert tables.with_tables(before, {"one": "| x |", "three": "| y |"}) == after
    assert tables.with_tables(after, {"two": r"\1"}) == after.replace("two -->\n", "two -->\n\\1\n")


def test_a_line_for_each_contender(tables: ModuleType) -> None:
    """With the ratio to transformers, but for transformers itself; memory for ours."""

    def result(speed: float) -> dict[str, float]:
        speeds = {f"{work}, tokens per second": speed for work in tables.WORKLOADS}
        return {**speeds, "peak memory while generating, 1 row, over weights and cache": 1.234}

    names = {"Bombus, bf16": 30.0, tables.TRANSFORMERS: 10.0}
    ratios = {name: dict.fromkeys(tables.WORKLOADS, speed / 10) for name, speed in names.items()}
    found = {
        "results": {name: result(speed) for name, speed in names.items()},
        "times_as_fast_as": {tables.TRANSFORMERS: ratios},
        "described": "a machine",
        "read_bandwidth_gigabytes_per_second": 20.0,
    }
    lines = tables.in_short(found).splitlines()
    assert lines[2] == "| Bombus, bf16 | 30.0 (3.0x) | 30.0 (3.0x) | 30.0 (3.0x) | 1.23 |"
    assert lines[3] == f"| {tables.TRANSFORMERS} | 10.0 | 10.0 | 10.0 |  |"
    assert lines[-1] == "Tokens per second, in brackets times transformers; a machine, which reads 20.0 GB/s."

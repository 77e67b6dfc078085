"""Figures: what is in them, and what is refused before anything is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from measured import made_bench, tuning

from bombus.evaluation import EvaluationError, check_plot, plot_bench, plot_tuning

PNG = b"\x89PNG\r\n"


def refused(file: Path) -> str:
    with pytest.raises(EvaluationError) as caught:
        check_plot(file)
    return str(caught.value)


def test_a_figure_of_a_bench(tmp_path: Path) -> None:
    """Bars of 50 and 25 under limits of 100: two users, 55,000 of 1,100 bytes."""
    figure = plot_bench(made_bench(), tmp_path / "bench.png")
    decode, prefill = figure.axes
    assert [bar.get_height() for bar in decode.patches] == [50.0, 25.0]
    assert [bar.get_height() for bar in prefill.patches] == [400.0, 200.0]
    assert {line.get_segments()[0][0][1] for line in decode.collections} == {100.0}
    assert [label.get_text() for label in decode.get_xticklabels()] == ["Bombus", "llama.cpp, Q8_0"]
    assert (tmp_path / "bench.png").read_bytes().startswith(PNG)


def test_a_figure_of_batch_sizes(tmp_path: Path) -> None:
    """The front is joined from its shortest step on, each point has its batch beside it."""
    figure = plot_tuning(tuning("throughput", 10, 21, 30, 20), tmp_path / "batch.png")
    (axes,) = figure.axes
    assert list(axes.lines[0].get_ydata()) == [21, 30]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "4", "8"]
    assert list(axes.lines[4].get_xdata()) == [400.0]
    assert [line.get_color() for line in axes.lines[1:]] == ["tab:blue", "tab:blue", "tab:red", "tab:blue"]
    assert (tmp_path / "batch.png").read_bytes().startswith(PNG)


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    check_plot(tmp_path / "a.PNG")
    absent = tmp_path / "absent"
    found = refused(absent / "plot.doc")
    assert found.startswith(f"2 problems\n  - plot: goes into a folder that is not there (found {absent})\n")
    assert "has an ending of no format (expected " in found
    assert " png, " in found
    assert found.endswith("found 'plot.doc')")


def test_a_plot_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert refused(tmp_path / "a.png") == "plot: needs matplotlib, not installed. Run `pip install matplotlib`"

"""`bombus bench` and `bombus tune`: processes that measure a tiny model, and calls that cannot be met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run, error, output

from bombus.evaluation import contenders


def test_a_model_is_measured(run: Run, bf16: Path, tmp_path: Path) -> None:
    sizes = ("--batch", 2, "--prompt-tokens", 3, "--new-tokens", 4, "--rounds", 1, "--dispatch")
    plot = tmp_path / "bench.png"
    found = json.loads(output(run, "bench", bf16, "--policy", "int8", *sizes, "--json", "--plot", plot))
    assert found["workload"] == {"rows": 2, "prompt_tokens": 3, "new_tokens": 4}
    assert (found["preset"], found["rounds"], found["times_as_fast_as"]) == ("latency", 1, {})
    assert 1e8 < found["read_bandwidth"] < 1e13
    (ours,) = found["results"]
    assert ours["contender"] == "Bombus, int8"
    (sample,) = ours["samples"]
    assert 0 < sample["first_seconds"] < 600
    assert 0 < sample["decode_seconds"] < 600
    assert sample["dispatch_seconds"] is not None
    assert ours["decode_tokens_per_second"] == 2 * 3 / sample["decode_seconds"]
    assert ours["decode_tokens_per_second_per_user"] == 3 / sample["decode_seconds"]
    assert ours["start_seconds"] > ours["load_seconds"] + ours["prepare_seconds"]
    assert plot.stat().st_size > 1000


def test_batch_sizes_are_tuned(run: Run, bf16: Path) -> None:
    text = output(
        run, "tune", "batch", bf16, "--max", 2, "--prompt-tokens", 3, "--new-tokens", 3, "--rounds", 1,
        "--metric", "latency",
    )  # fmt: skip
    lines = text.splitlines()
    assert lines[0].startswith(f"{bf16}: prompt of 3 tokens, 3 new; ")
    assert [line.split()[0] for line in lines[2:5]] == ["batch", "1", "2"]
    assert lines[5].startswith(("ended at the most that was asked for, 2", "stopped at 2, which "))
    assert lines[6] in ("best for latency: 1", "best for latency: 2")


def test_what_a_model_cannot_hold_is_one_line(run: Run, bf16: Path) -> None:
    long = error(run, "bench", bf16, "--preset", "long")
    assert long == (
        f"bombus: EvaluationError: {bf16}: workload: a prompt of 65336 tokens and 200 new ones go past the model's 512 "
        "positions. Ask for a prompt of at most 312: prompt_tokens=312 (--prompt-tokens 312)"
    )
    assert "a prompt of 16184 tokens and 200 new" in error(run, "bench", bf16, "--preset", "long", "--ctx", "16k")
    assert error(run, "bench", bf16, "--preset", "fast").endswith(
        "preset 'fast': does not exist. Known: latency, throughput, long, reasoning"
    )
    assert "at most 480: prompt_tokens=480" in error(run, "tune", "batch", bf16, "--prompt-tokens", "1k")


def test_a_rival_that_is_not_installed_is_one_line(run: Run, bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = contenders.Rival(modules=("no_such_module",), install="pip install it")
    monkeypatch.setitem(contenders.RIVALS, "transformers", absent)
    assert error(run, "bench", bf16, "--compare", "transformers") == (
        "bombus: EvaluationError: contender transformers: needs no_such_module, not installed. Run `pip install it`"
    )
    assert error(run, "bench", bf16, "--compare", "llama").endswith("is unknown. The closest are 'llama.cpp'")


def test_a_plot_that_cannot_be_written_is_one_line(run: Run, bf16: Path) -> None:
    for command in (("bench", bf16), ("tune", "batch", bf16)):
        found = error(run, *command, "--plot", "figure.doc")
        assert found.startswith("bombus: EvaluationError: plot: has an ending of no format (expected ")


def test_a_number_that_is_none_is_a_wrong_call(run: Run, bf16: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("bench", bf16, "--ctx", "16m")
    assert caught.value.code == 2
    assert "argument --ctx: '16m' is no number of tokens, such as 200 or 16k" in capsys.readouterr().err

"""The table of a bench, of made-up numbers; and what it refuses before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measured import made_bench, measurement

import bombus
from bombus.evaluation import EvaluationError, Workload, benchmark, markdown_table


def test_the_table() -> None:
    assert str(made_bench(bandwidth=55e9)) == (
        "some/model, latency: 2 users, prompt of 100 tokens, 51 new; medians of 3 rounds\n"
        "Abacus 9 (avx2), 2 cores, reads 55.0 GB/s\n"
        "\n"
        "                 decode, tok/s  per user  of bandwidth  prefill, tok/s  first token, s  with the load, s"
        "  peak memory  over weights and cache\n"
        "Bombus                    50.0      25.0            0%           400.0           0.500               4.0"
        "      1.50 kB                    1.25\n"
        "llama.cpp, Q8_0           25.0      12.5            0%           200.0           1.000               4.0\n"
        "decodes 2.00 times and reads prompts 2.00 times as fast as llama.cpp, Q8_0"
    )
    assert repr(made_bench()) == str(made_bench())


def test_the_table_has_the_share_of_the_bandwidth_and_the_dispatch() -> None:
    text = str(made_bench(dispatch=0.0012345, rounds=1))
    assert "51 new; medians of 1 round\n" in text
    assert [row[3] for row in made_bench().rows()] == ["of bandwidth", "50%", "25%"]
    assert "\na step that the host starts takes 1,234 us longer than one of the loop\n" in text


def test_a_bench_of_prompts_alone() -> None:
    alone = measurement(seconds=((0.5, 0.0),), workload=Workload(rows=2, prompt_tokens=100, new_tokens=1))
    found = made_bench(measurements=(alone, alone))
    assert found.rows()[1][:5] == ("Bombus", "", "", "", "400.0")
    assert str(found).endswith("\nreads prompts 1.00 times as fast as Bombus")


def test_plain_data() -> None:
    found = json.loads(json.dumps(made_bench().to_json()))
    assert found["times_as_fast_as"] == {"llama.cpp, Q8_0": {"decode": 2.0, "prefill": 2.0}}
    assert found["machine"]["processor"] == "Abacus 9"
    assert found["read_bandwidth"] == 55_000.0
    assert [one["fraction_of_read_bandwidth"] for one in found["results"]] == [0.5, 0.25]


def test_a_table_of_markdown() -> None:
    assert markdown_table([("", "a"), ("b", "1")]) == "|  | a |\n|---|---|\n| b | 1 |"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"preset": "reasoning"}, "a prompt of 128 tokens and 15000 new ones go past the model's 512 positions"),
        ({"rounds": 0}, "rounds: is out of range (expected an integer from 1, found 0)"),
        ({"gguf": "x.gguf"}, "gguf: is for llama.cpp. Compare with it"),
    ],
)
def test_what_cannot_be_measured_starts_nothing(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], text: str
) -> None:
    monkeypatch.setattr(benchmark, "measure_in_turns", None)
    with pytest.raises(EvaluationError) as caught:
        bombus.bench(tiny(), **given)
    assert text in str(caught.value)


def test_a_model_that_writes_nothing_is_refused(tiny: Callable[..., Path]) -> None:
    folder = tiny("qwen3", "bf16", head="base")
    with pytest.raises(EvaluationError) as caught:
        bombus.bench(folder)
    assert str(caught.value) == f"{folder}: model: writes no text (expected the head causal_lm, found base)"


def test_a_policy_that_fits_nothing_is_refused_first(tiny: Callable[..., Path]) -> None:
    with pytest.raises(bombus.PlanError, match="matches no parameter"):
        bombus.bench(tiny(), policy={"decoder.fnn": "int8"})

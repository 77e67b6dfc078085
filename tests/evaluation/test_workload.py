"""What is measured: presets, what replaces their numbers, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from bombus.evaluation import PRESETS, EvaluationError, Workload
from bombus.evaluation.workload import choose_workload, find_preset


def test_the_presets_are_those_of_the_list_of_features() -> None:
    found = {name: (*preset.workload.to_json().values(), preset.rounds) for name, preset in PRESETS.items()}
    assert found == {
        "latency": (1, 128, 200, 3),
        "throughput": (32, 128, 200, 3),
        "long": (1, 64 * 1024 - 200, 200, 1),
        "reasoning": (1, 128, 15000, 1),
    }
    assert find_preset("long").workload.tokens == 65536


def test_what_is_given_replaces_the_presets_numbers() -> None:
    preset = Workload(rows=3, prompt_tokens=10, new_tokens=5)
    assert choose_workload(preset, positions=15) == preset
    given = choose_workload(preset, positions=100, batch=2, prompt_tokens=20, new_tokens=30)
    assert given == Workload(rows=2, prompt_tokens=20, new_tokens=30)
    assert choose_workload(preset, positions=100, context=64) == Workload(rows=3, prompt_tokens=59, new_tokens=5)
    assert choose_workload(preset, positions=64, context=64, new_tokens=63).prompt_tokens == 1


def test_a_workload_names_itself() -> None:
    assert str(Workload(prompt_tokens=1, new_tokens=15000)) == "1 user, prompt of 1 token, 15,000 new"
    assert str(Workload(rows=32, prompt_tokens=65336)) == "32 users, prompt of 65,336 tokens, 200 new"


def test_prompts_are_ids_of_the_vocabulary() -> None:
    assert Workload(rows=2, prompt_tokens=3).prompts(4) == [[0, 1, 2], [3, 0, 1]]
    (long,) = Workload(prompt_tokens=1001).prompts(150_000)
    assert (long[999], long[1000]) == (999, 0)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"batch": 0, "new_tokens": True},
            "m: 2 problems\n  - batch: is out of range (expected an integer from 1, found 0)\n"
            "  - new_tokens: is out of range (expected an integer from 1, found True)",
        ),
        (
            {"context": 10, "prompt_tokens": 5},
            "m: context and prompt_tokens: say the same. Give one of them",
        ),
        (
            {"context": 20, "new_tokens": 20},
            "m: context: leaves no prompt before 20 new tokens (expected more than 20, found 20). Ask for fewer of "
            "them: new_tokens (--new-tokens)",
        ),
        (
            {"prompt_tokens": 90, "new_tokens": 11},
            "m: workload: a prompt of 90 tokens and 11 new ones go past the model's 100 positions. Ask for a prompt "
            "of at most 89: prompt_tokens=89 (--prompt-tokens 89)",
        ),
        (
            {"prompt_tokens": 10, "new_tokens": 100},
            "m: workload: a prompt of 10 tokens and 100 new ones go past the model's 100 positions. Ask for fewer new "
            "tokens: new_tokens=90 (--new-tokens 90)",
        ),
        (
            {"prompt_tokens": 100, "new_tokens": 100},
            "m: workload: a prompt of 100 tokens and 100 new ones go past the model's 100 positions. Ask for fewer of "
            "both: prompt_tokens, new_tokens (--prompt-tokens, --new-tokens)",
        ),
    ],
)
def test_what_does_not_fit_is_said(given: dict[str, Any], text: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        choose_workload(Workload(), positions=100, where="m", **given)
    assert str(caught.value) == text


def test_the_remedies_fit() -> None:
    assert choose_workload(Workload(new_tokens=11), positions=100, prompt_tokens=89).tokens == 100
    assert choose_workload(Workload(prompt_tokens=10), positions=100, new_tokens=90).tokens == 100


def test_an_unknown_preset_is_an_error() -> None:
    with pytest.raises(EvaluationError) as caught:
        find_preset("latencies")
    assert str(caught.value) == "preset 'latencies': does not exist. The closest are 'latency'"

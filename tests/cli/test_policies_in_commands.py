"""Policies in `bombus plan` and `bombus generate`: what is said of them, and the bytes of the exercise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import EMBEDDING, GATE, Run, output

import bombus
from bombus.loader.report import readable_bytes
from bombus.models.model import flat

EXERCISE = {"attention": "f16", "feed_forward": "int8", "embedding": "int4"}


def exercise_bytes() -> dict[str, int]:
    """The bytes of the exercise, by format: hidden size 32, feed-forward 64, 257 tokens."""
    return {
        "f16": 2 * (32 * 32 + 16 * 32 + 16 * 32 + 32 * 32),
        "int8": 3 * 64 * 32 + 4 * (64 + 64 + 32),
        "int4": 257 * 32 // 2 + 2 * 257,
        "bf16": 2 * (3 * 32 + 2 * 8),
    }


def test_plan_prints_the_bytes_before_and_after(run: Run, bf16: Path) -> None:
    """Those of the tensors that are read, and those that the arrays will take."""
    before = sum(value.nbytes for value in flat(bombus.load_model(bf16).params).values())
    after = sum(exercise_bytes().values())
    out = output(run, "plan", bf16, "--policy", json.dumps(EXERCISE))
    assert out.splitlines()[-1] == (
        f"bytes: {readable_bytes(before)} before, in the checkpoint; {readable_bytes(after)} after, in memory "
        f"({after / before:.0%})"
    )
    found = json.loads(output(run, "plan", bf16, "--policy", json.dumps(EXERCISE), "--json"))
    assert (found["file_bytes"], found["bytes"]) == (before, after)
    assert found["stored_bytes"] == exercise_bytes()


def test_generate_says_which_policy_was_found(run: Run, bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error, so that the text alone is on standard output."""
    made, load = [], bombus.load_model
    monkeypatch.setattr(bombus, "load_model", lambda *repo, **options: made.append(load(*repo, **options)) or made[-1])
    call = ("generate", bf16, "--prompt", "Bombus ", "--max-new-tokens", "3", "--policy", "performance")
    status, out, err = run(*call)
    assert (status, err) == (0, "policy: preset performance\n")
    # The same model again: what is compiled is compiled for it.
    assert out == f"Bombus {bombus.generate(made[0], bombus.load_tokenizer(bf16), 'Bombus ', max_new_tokens=3)}\n"
    assert str(made[0].model.formats[GATE]) == "int4(group=32)"


@pytest.mark.parametrize("policy", [EXERCISE, "int8"], ids=["mixed", "int8"])
def test_the_exercise_loads_generates_and_reports_its_bytes(policy: Any, bf16: Path) -> None:
    """float16 attention, int8 feed-forward, int4 embedding; and int8 for everything beside it."""
    loaded = bombus.load_model(bf16, policy=policy)
    arrays: Mapping[str, Any] = flat(loaded.params)
    assert loaded.report.nbytes == sum(value.nbytes for value in arrays.values())
    stored = loaded.report.to_json()["stored_bytes"]
    if policy == EXERCISE:
        assert stored == exercise_bytes()
        assert arrays[EMBEDDING].dtype == np.uint8
        assert arrays["decoder.blocks.0.self_attention.query.kernel"].dtype == np.float16
    else:
        outputs = 32 + 16 + 16 + 32 + 64 + 64 + 32 + 257
        assert stored == {"int8": 257 * 32 + 3 * 32 * 32 + 3 * 64 * 32 + 4 * outputs, "bf16": 2 * (3 * 32 + 2 * 8)}
    (answer,) = bombus.generate_tokens(loaded, [[1, 2, 3]], max_new_tokens=4, stop_token_ids=[])
    assert (len(answer.tokens), answer.finish_reason) == (4, "length")

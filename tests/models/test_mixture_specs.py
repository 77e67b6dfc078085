"""What the specs of DeepSeek-V3 and gpt-oss do beside reading keys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import zoo

import bombus
from bombus.layers import Rotary, YarnScaling
from bombus.models.base import Spec


def read(case: str, folder: Path, **changes: Any) -> Spec:
    """The spec of a case of the zoo, with keys changed; None takes one away."""
    config = {**zoo.golden(case)["config"]["causal_lm"], **changes}
    content = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return bombus.load_spec(folder)


@pytest.mark.parametrize(
    ("changes", "subject", "expected"),
    [
        ({"num_key_value_heads": 2}, "field 'num_key_value_heads'", "expected 6, found 2"),
        ({"head_dim": 48}, "field 'head_dim'", "expected 16, found 48"),
        ({"qk_head_dim": 16}, "field 'qk_head_dim'", "expected 48, found 16"),
        ({"n_group": 0}, "field 'n_group'", "must be positive (found 0)"),
        ({"q_lora_rank": 0}, "field 'q_lora_rank'", "must be positive (found 0)"),
        ({"scoring_func": "softmax"}, "field 'scoring_func'", "expected 'sigmoid', found 'softmax'"),
        ({"topk_method": "greedy"}, "field 'topk_method'", "expected 'noaux_tc', found 'greedy'"),
    ],
)
def test_deepseek_refuses(changes: dict[str, Any], subject: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(bombus.SpecError) as raised:
        read("deepseek_v3", tmp_path, **changes)
    (problem,) = raised.value.problems
    assert problem.subject == subject
    assert expected in str(problem)


def test_deepseek_needs_no_sizes_that_follow_from_others(tmp_path: Path) -> None:
    """Released files have none of them, and transformers writes all."""
    whole = read("deepseek_v3", tmp_path)
    assert read("deepseek_v3", tmp_path, num_key_value_heads=None, head_dim=None, qk_head_dim=None) == whole
    assert {key: whole.to_hf()[key] for key in ("num_key_value_heads", "head_dim", "qk_head_dim")} == {
        "num_key_value_heads": 6,
        "head_dim": 16,
        "qk_head_dim": 48,
    }


def test_the_attention_of_deepseek_grows_with_the_context(tmp_path: Path) -> None:
    plain, yarn = (read(case, tmp_path) for case in ("deepseek_v3", "deepseek_v3_yarn"))
    assert plain.attention_scale == 48**-0.5
    assert yarn.attention_scale == pytest.approx(48**-0.5 * (0.1 * 0.7 * math.log(4) + 1) ** 2)


def test_the_rotary_positions_of_gpt_oss_are_stretched_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    """As transformers' GptOssConfig has it."""
    default = read("gpt_oss", tmp_path, rope_parameters=None)
    scaling = YarnScaling(factor=32.0, original_max_positions=4096, beta_fast=32.0, beta_slow=1.0, truncate=False)
    assert default.rotary == Rotary(theta=150000.0, scaling=scaling)
    plain = read("gpt_oss", tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 9000.0})
    assert plain.rotary == Rotary(theta=9000.0)
    for spec in (default, plain):
        assert type(spec).from_hf(spec.to_hf()) == spec


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts_per_tok", "swiglu_limit"])
def test_gpt_oss_refuses_what_is_not_positive(key: str, tmp_path: Path) -> None:
    with pytest.raises(bombus.SpecError, match=rf"field '{key}': must be positive \(found 0"):
        read("gpt_oss", tmp_path, **{key: 0})


def test_every_second_block_of_gpt_oss_sees_a_window(tmp_path: Path) -> None:
    spec = read("gpt_oss", tmp_path, layer_types=None, num_hidden_layers=3)
    assert [spec.window_of(index) for index in range(3)] == [7, None, 7]

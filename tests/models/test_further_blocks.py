"""Blocks beyond the model's own, which released checkpoints of DeepSeek-V3 have to predict further tokens: left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file, save_file

import bombus
from bombus.models.model import flat

# The zoo's case has blocks 0 and 1. With a copy of the embedding and of the head, as released.
FURTHER = {
    "enorm.weight": (192,),
    "eh_proj.weight": (192, 384),
    "embed_tokens.weight": (320, 192),
    "self_attn.kv_a_proj_with_mqa.weight": (192, 192),
    "mlp.experts.0.gate_proj.weight": (144, 192),
    "mlp.gate.e_score_correction_bias": (12,),
    "shared_head.head.weight": (320, 192),
}


def write(folder: Path, number: int, **changes: Any) -> tuple[Path, list[str]]:
    """A checkpoint with a block of this number more, and the names of its tensors."""
    zoo.write_checkpoint("deepseek_v3", "causal_lm", folder)
    names = [f"model.layers.{number}.{name}" for name in FURTHER]
    more = {name: np.ones(shape, np.float32) for name, shape in zip(names, FURTHER.values(), strict=True)}
    file = folder / "model.safetensors"
    save_file({**load_file(file), **more}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder, names


def test_a_block_that_predicts_further_tokens_is_left_out(tmp_path: Path) -> None:
    folder, names = write(tmp_path / "more", 2, num_nextn_predict_layers=1)
    found = bombus.load_model(folder)
    assert sorted(found.report.plan.unused) == sorted(names)
    expected = flat(bombus.load_model(zoo.write_checkpoint("deepseek_v3", "causal_lm", tmp_path / "own")).params)
    assert {path: np.asarray(value).tobytes() for path, value in flat(found.params).items()} == {
        path: np.asarray(value).tobytes() for path, value in expected.items()
    }


@pytest.mark.parametrize(
    ("number", "further"),
    [(2, 0), (3, 1), (123_456_789_012, 1)],
    ids=["config.json has none", "one too far", "a number of many digits"],
)
def test_any_other_block_is_unexpected(tmp_path: Path, number: int, further: int) -> None:
    folder, names = write(tmp_path, number, num_nextn_predict_layers=further)
    with pytest.raises(bombus.PlanError) as raised:
        bombus.load_model(folder)
    assert sorted(problem.subject for problem in raised.value.problems) == sorted(f"tensor {name}" for name in names)
    assert {problem.message for problem in raised.value.problems} == {"is unexpected: no parameter reads it"}

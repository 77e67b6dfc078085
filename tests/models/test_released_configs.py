"""config.json of well-known releases: every key of theirs is read, and the number of parameters is the published one.

No weights are made. See tests/support/released_configs.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from released_configs import CASES, GEMMA2_2B, GEMMA3_1B, GEMMA_2B, PHI2, PHI3, PHI4_MINI

import bombus
from bombus.layers import LongScaling
from bombus.models.abstract import abstract_shapes
from bombus.models.gemma import GemmaSpec
from bombus.models.gemma2 import Gemma2Spec
from bombus.models.gemma3_text import Gemma3TextSpec
from bombus.models.phi3 import Phi3Spec
from bombus.models.registry import architecture_of, find_architecture


@pytest.mark.parametrize(("architecture", "config", "parameters"), CASES)
def test_a_released_config_is_read_whole(
    architecture: str, config: dict[str, Any], parameters: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = bombus.load_spec(tmp_path)
    assert architecture_of(spec).name == architecture
    assert sum(map(math.prod, abstract_shapes(spec).values())) == parameters
    assert type(spec).from_hf(spec.to_hf()) == spec


@pytest.mark.parametrize("wanted", [None, "causal_lm", "Gemma3ForCausalLM"])
@pytest.mark.parametrize("named", [["Gemma3ForConditionalGeneration"], None])
def test_a_config_of_text_and_images_is_refused_by_name(named: list[str] | None, wanted: str | None) -> None:
    """Its text part is complete, and is not taken for the whole."""
    config = {"architectures": named, "model_type": "gemma3", "text_config": GEMMA3_1B, "vision_config": {}}
    with pytest.raises(bombus.SpecError) as raised:
        find_architecture(config, wanted)
    assert str(raised.value) == (
        f"config.json: architecture {named[0] if named else 'gemma3'!r}: is not supported: reads images besides text. "
        "Load a model of text alone, whose class is Gemma3ForCausalLM (its config.json has no 'text_config')"
    )


# (what a release says, what is changed in it, what is said of it)
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        PHI2,
        {"tie_word_embeddings": True},
        "field 'tie_word_embeddings': is not supported: the head has a bias, and the embedding none "
        "(expected False, found True)",
    ),
    (PHI3, {"full_attn_mod": 2}, "field 'full_attn_mod': is not supported (expected 1, found 2)"),
    (
        PHI3,
        {"sliding_window": 0},
        "field 'sliding_window': must be positive, as some layers are of type sliding_attention (found 0)",
    ),
    (
        GEMMA_2B,
        {"hidden_activation": "relu"},
        "field 'hidden_activation': contradicts hidden_act (expected 'gelu_pytorch_tanh', found 'relu')",
    ),
    (
        GEMMA_2B,
        {"use_bidirectional_attention": True},
        "field 'use_bidirectional_attention': is not supported (expected False, found True)",
    ),
    (GEMMA2_2B, {"query_pre_attn_scalar": 0}, "field 'query_pre_attn_scalar': must be positive (found 0)"),
    (GEMMA2_2B, {"attn_logit_softcapping": -1.0}, "field 'attn_logit_softcapping': must be positive (found -1.0)"),
    (
        GEMMA3_1B,
        {"attn_logit_softcapping": 50.0},
        "field 'attn_logit_softcapping': is not supported (expected None, found 50.0)",
    ),
    (GEMMA3_1B, {"sliding_window_pattern": 0}, "field 'sliding_window_pattern': must be positive (found 0)"),
]


@pytest.mark.parametrize(("config", "changes", "text"), REFUSED)
def test_what_is_not_implemented_is_refused(
    config: dict[str, Any], changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(bombus.SpecError) as raised:
        bombus.load_spec(tmp_path)
    assert str(raised.value) == f"config.json: {text}"


def test_what_a_release_leaves_out_is_as_in_transformers() -> None:
    """Types of blocks, by a pattern; the length that LongRoPE starts from; what "gelu" stands for in Gemma."""
    gemma2 = Gemma2Spec.from_hf(GEMMA2_2B)
    assert [gemma2.window_of(index) for index in range(4)] == [4096, None, 4096, None]
    gemma3 = Gemma3TextSpec.from_hf(GEMMA3_1B)
    assert [gemma3.window_of(index) for index in range(7)] == [512, 512, 512, 512, 512, None, 512]
    assert [gemma3.rotary_of(index).theta for index in (4, 5, 6)] == [1e4, 1e6, 1e4]
    assert GemmaSpec.from_hf(GEMMA_2B).activation == "gelu_pytorch_tanh"
    phi4 = {key: value for key, value in PHI4_MINI.items() if key != "original_max_position_embeddings"}
    rotary = Phi3Spec.from_hf(phi4).rotary_of(0)
    assert rotary is not None
    assert isinstance(rotary.scaling, LongScaling)
    assert rotary.scaling.original_max_positions == 4096
    # sqrt(1 + ln(131072 / 4096) / ln(4096))
    assert rotary.scaling.attention_factor == pytest.approx(1.190238, abs=1e-6)
    assert rotary.size(128) == 96

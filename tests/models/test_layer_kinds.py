"""Specs whose blocks are not all alike: which have a window, rotary positions, experts; and lists that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

import bombus
from bombus.models.mistral import MistralSpec
from bombus.models.mixtral import MixtralSpec
from bombus.models.qwen2 import Qwen2Spec
from bombus.models.qwen3_moe import Qwen3MoeSpec
from bombus.models.smollm3 import SmolLM3Spec
from bombus.models.spec import DecoderSpec

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def problems(spec: type[DecoderSpec], **config: Any) -> list[str]:
    with pytest.raises(bombus.SpecError) as raised:
        bombus.build_model(spec.from_hf(SIZES | config))
    return [str(problem) for problem in raised.value.problems]


def windows(spec: DecoderSpec) -> list[int | None]:
    return [spec.window_of(index) for index in range(spec.num_blocks)]


def test_smollm3_leaves_every_fourth_block_without_rotary_positions() -> None:
    spec = SmolLM3Spec.from_hf(SIZES)
    assert spec.no_rope_layers == (1, 1, 1, 0, 1, 1)
    assert [spec.rotary_of(index) is None for index in range(6)] == [False, False, False, True, False, False]
    assert SmolLM3Spec.from_hf(SIZES | {"no_rope_layer_interval": 2}).no_rope_layers == (1, 0) * 3
    # A list goes before, and may be longer.
    spec = SmolLM3Spec.from_hf(SIZES | {"no_rope_layers": [0, 1, 1, 1, 1, 1, 1, 0]})
    assert [index for index in range(6) if spec.rotary_of(index) is None] == [0]


def test_smollm3_has_windows_where_it_has_no_rotary_positions_if_they_are_switched_on() -> None:
    assert windows(SmolLM3Spec.from_hf(SIZES | {"sliding_window": 9})) == [None] * 6
    assert windows(SmolLM3Spec.from_hf(SIZES | {"use_sliding_window": True})) == [None] * 6
    spec = SmolLM3Spec.from_hf(SIZES | {"use_sliding_window": True, "sliding_window": 9})
    assert windows(spec) == [None, None, None, 9, None, None]


@pytest.mark.parametrize("config", [{"no_rope_layers": [1, 0]}, {"no_rope_layers": [1, 0], "sliding_window": 9}])
def test_smollm3_refuses_a_list_that_is_too_short(config: dict[str, Any]) -> None:
    assert problems(SmolLM3Spec, **config) == [
        "field 'no_rope_layers': must say for every layer whether positions are rotated (expected at least 6 numbers, "
        "found 2). Or leave it out, with a positive no_rope_layer_interval"
    ]
    assert len(problems(SmolLM3Spec, no_rope_layer_interval=0)) == 1


def test_qwen2_has_windows_from_a_block_on_if_they_are_switched_on() -> None:
    config = {"sliding_window": 9, "max_window_layers": 4}
    assert windows(Qwen2Spec.from_hf(SIZES | config)) == [None] * 6
    assert windows(Qwen2Spec.from_hf(SIZES | config | {"use_sliding_window": True})) == [None] * 4 + [9] * 2


@pytest.mark.parametrize(("family", "default"), [(MistralSpec, 4096), (MixtralSpec, None)])
def test_mistral_and_mixtral_have_one_window_for_all_blocks(family: type[MistralSpec], default: int | None) -> None:
    assert windows(family.from_hf(SIZES)) == [default] * 6
    assert windows(family.from_hf(SIZES | {"sliding_window": 9})) == [9] * 6
    assert windows(family.from_hf(SIZES | {"sliding_window": None})) == [None] * 6
    # They follow a change of the number of blocks.
    assert windows(family.from_hf(SIZES | {"sliding_window": 9}).configure(num_blocks=2)) == [9, 9]
    assert problems(family, layer_types=["full_attention"] * 6) == [
        "field 'layer_types': is ['full_attention', 'full_attention', 'full_attention', 'full_attention', "
        "'full_attention', 'full_attention'], and nothing here reads it. If it cannot change the numbers, load with "
        "strict=False"
    ]
    assert problems(family, sliding_window=0) == [
        "field 'sliding_window': must be positive, as some layers are of type sliding_attention (found 0)"
    ]


def test_qwen3_moe_has_experts_in_some_blocks_and_windows_in_all_or_none() -> None:
    def mixtures(**config: Any) -> list[int]:
        spec = Qwen3MoeSpec.from_hf(SIZES | config)
        return [index for index in range(6) if spec.is_mixture(index)]

    assert mixtures() == [0, 1, 2, 3, 4, 5]
    assert mixtures(decoder_sparse_step=2) == [1, 3, 5]
    assert mixtures(mlp_only_layers=[1, 4]) == [0, 2, 3, 5]
    assert mixtures(decoder_sparse_step=3, mlp_only_layers=[2]) == [5]
    config = {"sliding_window": 9, "max_window_layers": 4}
    assert windows(Qwen3MoeSpec.from_hf(SIZES | config)) == [None] * 6
    assert windows(Qwen3MoeSpec.from_hf(SIZES | config | {"use_sliding_window": True})) == [9] * 6


def test_experts_that_cannot_be_are_refused() -> None:
    assert problems(Qwen3MoeSpec, num_experts=0, num_experts_per_tok=-1, moe_intermediate_size=0) == [
        "field 'moe_intermediate_size': must be positive (found 0)",
        "field 'num_experts': must be positive (found 0)",
        "field 'num_experts_per_tok': must be positive (found -1)",
    ]
    assert problems(Qwen3MoeSpec, decoder_sparse_step=0) == ["field 'decoder_sparse_step': must be positive (found 0)"]
    assert problems(MixtralSpec, num_local_experts=-8, num_experts_per_tok=0) == [
        "field 'num_local_experts': must be positive (found -8)",
        "field 'num_experts_per_tok': must be positive (found 0)",
    ]
    assert problems(MixtralSpec, num_experts_per_tok=9) == ["router: cannot choose 9 experts of 8"]
    assert problems(Qwen3MoeSpec, num_experts=4) == ["router: cannot choose 8 experts of 4"]

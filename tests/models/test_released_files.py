"""Files as the GPT family's releases have them: names and buffers that today's transformers does not write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file, save_file

import bombus
from bombus.layers import Rotary
from bombus.models.model import flat

Tensors = dict[str, np.ndarray]


def released_gpt2(tensors: Tensors) -> Tensors:
    """OpenAI's: the backbone's own names under a causal_lm, and the causal mask of every block."""
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    masks = {f"h.{n}.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)) for n in range(2)}
    return {**bare, **masks}


def converted_gpt2(tensors: Tensors) -> Tensors:
    """Models trained from it: the head beside the embedding that it is, and the value at masked scores."""
    masked = {f"transformer.h.{n}.attn.masked_bias": np.full((), -1e4, np.float32) for n in range(2)}
    return {**released_gpt2({}), **tensors, **masked, "lm_head.weight": tensors["transformer.wte.weight"]}


def released_neox(tensors: Tensors) -> Tensors:
    """Pythia's: mask, masked value and rotary frequencies of every block."""
    buffers: Tensors = {}
    for n in range(2):
        layer = f"gpt_neox.layers.{n}.attention"
        buffers[f"{layer}.bias"] = np.tril(np.ones((1, 1, 128, 128), np.bool_))
        buffers[f"{layer}.masked_bias"] = np.full((), -1e9, np.float32)
        buffers[f"{layer}.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    return {**tensors, **buffers}


@pytest.mark.parametrize(
    ("case", "release"), [("gpt2", released_gpt2), ("gpt2", converted_gpt2), ("gpt_neox", released_neox)]
)
def test_a_released_file_is_the_model_that_transformers_writes(
    case: str, release: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    expected = bombus.load_model(zoo.write_checkpoint(case, "causal_lm", tmp_path / "new"))
    folder = zoo.write_checkpoint(case, "causal_lm", tmp_path / "old")
    path = folder / "model.safetensors"
    before = load_file(path)
    after = release(before)
    assert set(after) != set(before)
    save_file(after, path)
    found = bombus.load_model(folder)
    assert found.spec == expected.spec
    values = flat(found.params)
    assert set(values) == set(flat(expected.params))
    for name, value in flat(expected.params).items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)


@pytest.mark.parametrize("case", ["gpt2", "gpt_bigcode"])
def test_cross_attention_is_refused(case: str, tmp_path: Path) -> None:
    content = {**zoo.golden(case)["config"]["causal_lm"], "add_cross_attention": True}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(bombus.SpecError) as raised:
        bombus.load_spec(tmp_path)
    assert "field 'add_cross_attention': is not supported (expected False, found True)" in str(raised.value)


def test_widths_that_a_config_leaves_out_follow_from_others(tmp_path: Path) -> None:
    """`n_inner` is null in releases; BigCode's heads of keys and values are one or as many as there are queries."""
    content = {**zoo.golden("gpt_bigcode")["config"]["causal_lm"], "n_inner": None}
    for multi_query, heads in ((True, 1), (False, 6), (None, 1)):
        (tmp_path / "config.json").write_text(json.dumps({**content, "multi_query": multi_query}), encoding="utf-8")
        spec = bombus.load_spec(tmp_path)
        assert (spec.intermediate_size, spec.num_kv_heads, spec.head_dim) == (960, heads, 40)


SIZES = {"n_embd": 96, "n_layer": 1, "n_head": 3}
OTHER_SIZES = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 384}
OF_ALL = {"norm_epsilon": 1e-5, "num_labels": 2, "vocab_size": 9, "num_kv_heads": 3, "intermediate_size": 384}
# model_type -> (sizes that config.json has, what the defaults of transformers' config class are)
DEFAULTS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "gpt2": (SIZES, {"activation": "gelu_new", "max_positions": 1024, "tie_word_embeddings": True, "rotary": None}),
    "gpt_bigcode": (
        SIZES,
        {"activation": "gelu_pytorch_tanh", "max_positions": 1024, "tie_word_embeddings": True, "num_kv_heads": 1},
    ),
    "gpt_neox": (
        OTHER_SIZES,
        {"activation": "gelu", "max_positions": 2048, "tie_word_embeddings": False, "attention_bias": True}
        | {"use_parallel_residual": True, "rotary": Rotary(theta=10000.0, fraction=0.25)},
    ),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_config_leaves_out_is_the_default_of_transformers(name: str, tmp_path: Path) -> None:
    sizes, expected = DEFAULTS[name]
    content = {"model_type": name, "vocab_size": 9, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    spec = bombus.load_spec(tmp_path)
    expected = {**OF_ALL, **expected}
    assert {field: getattr(spec, field) for field in expected} == expected


def test_scores_that_are_not_scaled(tmp_path: Path) -> None:
    """Both switches of GPT-2 for one block after the other."""
    content = zoo.golden("gpt2")["config"]["causal_lm"]
    scales = {}
    for scaled in (True, False):
        for by_block in (True, False):
            switches = {"scale_attn_weights": scaled, "scale_attn_by_inverse_layer_idx": by_block}
            (tmp_path / "config.json").write_text(json.dumps({**content, **switches}), encoding="utf-8")
            spec = bombus.load_spec(tmp_path)
            scales[scaled, by_block] = [spec.attention_scale(index) for index in range(2)]
    root = 40**-0.5
    assert scales == {
        (True, False): [root, root],
        (True, True): [root, root / 2],
        (False, False): [1.0, 1.0],
        (False, True): [1.0, 0.5],
    }

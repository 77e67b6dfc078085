"""Rotary tables of every type beside transformers', below and beyond the original context, from one config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bombus.layers import Rotary
from bombus.models.rotary import rotary_by_layer_type, rotary_by_layer_type_to_hf, rotary_from_hf, rotary_to_hf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding  # noqa: E402
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding  # noqa: E402
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding  # noqa: E402
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding  # noqa: E402

pytestmark = pytest.mark.parity

HEAD_DIM = 32
ORIGINAL = "original_max_position_embeddings"
SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "vocab_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 40}
LISTS = {
    size: {
        "short_factor": [1 + 0.03 * pair for pair in range(size)],
        "long_factor": [1.5 + 0.25 * pair for pair in range(size)],
    }
    for size in (8, 16)
}
MODULES = {
    "llama": LlamaRotaryEmbedding,
    "phi3": Phi3RotaryEmbedding,
    "phi": PhiRotaryEmbedding,
    "gpt_neox": GPTNeoXRotaryEmbedding,
    "gpt_oss": GptOssRotaryEmbedding,
}
NEOX = {"theta_keys": ("rotary_emb_base",), "fraction_keys": ("rotary_pct",), "default_fraction": 0.25}
OPTIONS: dict[str, dict[str, Any]] = {"gpt_neox": NEOX, "phi": {"default_fraction": 0.5}}
DEEPSEEK = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}
# Model type -> what its config.json says. The models are for 64 positions, the tables go to 100.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {"rope_theta": 5000.0}),
    "default new": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
    "linear": ("llama", {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    "dynamic": ("llama", {"rope_theta": 5000.0, "rope_scaling": {"type": "dynamic", "factor": 3.0}}),
    "dynamic new": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 1.7, "rope_theta": 5000.0}}),
    "llama3": ("llama", {"rope_theta": 5000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
    "llama3 beside": (
        "llama",
        {"rope_theta": 5000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}, ORIGINAL: 30},
    ),
    "yarn": ("llama", {"rope_theta": 5000.0, "rope_scaling": {"type": "yarn", "factor": 4.0, ORIGINAL: 16}}),
    "yarn of the model's length": ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    "yarn of the ratio": ("llama", {"rope_scaling": {"type": "yarn", "factor": None, ORIGINAL: 16}}),
    "yarn as deepseek": ("llama", {"rope_theta": 1e4, "rope_scaling": DEEPSEEK | {ORIGINAL: 4096}}),
    "yarn new": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                ORIGINAL: 2048,
                "attention_factor": 1.25,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": False,
            }
        },
    ),
    "yarn of gpt-oss": (
        "gpt_oss",
        {
            "rope_theta": 150000,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                ORIGINAL: 4096,
            },
        },
    ),
    "longrope": ("phi3", {"rope_scaling": {"type": "longrope", **LISTS[16]}, ORIGINAL: 32}),
    "su": ("phi3", {"rope_theta": 5000.0, "rope_scaling": {"type": "su", **LISTS[16], ORIGINAL: 7}, ORIGINAL: 32}),
    "longrope of a part": (
        "phi3",
        {"rope_scaling": {"type": "longrope", **LISTS[8]}, ORIGINAL: 32, "partial_rotary_factor": 0.5},
    ),
    "longrope new": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 5e3,
                ORIGINAL: 32,
                "factor": 5.0,
                **LISTS[16],
            }
        },
    ),
    "longrope given": (
        "llama",
        {"rope_scaling": {"rope_type": "longrope", **LISTS[16], ORIGINAL: 32, "attention_factor": 1.3}},
    ),
    "part": ("phi", {"rope_theta": 5000.0, "partial_rotary_factor": 0.25}),
    "part by default": ("phi", {}),
    "part new": ("phi", {"rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.75}}),
    "gpt-neox": ("gpt_neox", {"rotary_emb_base": 20000, "rotary_pct": 0.5}),
    "gpt-neox by default": ("gpt_neox", {}),
    "gpt-neox dynamic": ("gpt_neox", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "gpt-neox linear": ("gpt_neox", {"rotary_pct": 1.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
}
# One row each: of several, the longest decides for all in transformers, and every row for itself here.
POSITIONS = {
    "within": np.array([[2, 3, 5, 29]], np.int32),
    "to the original": np.array([[0, 1, 30, 31]], np.int32),
    "one beyond": np.array([[0, 1, 2, 32]], np.int32),
    "to the maximum": np.array([[60, 61, 62, 63]], np.int32),
    "one beyond that": np.array([[5, 9, 30, 64]], np.int32),
    "far beyond": np.array([[50, 51, 98, 99]], np.int32),
}


def their_tables(kind: str, config: dict[str, Any], positions: np.ndarray, folder: Path) -> tuple[Any, Any]:
    """(cos, sin) of transformers, (B, T, R), and (R,) its frequencies, of a config.json in a folder."""
    (folder / "config.json").write_text(json.dumps({"model_type": kind} | config), "utf-8")
    module = MODULES[kind](transformers.AutoConfig.from_pretrained(folder))
    tables = module(torch.zeros(1), torch.asarray(positions).long())
    pairs = module.inv_freq.shape[-1]
    return [table.numpy()[..., :pairs] for table in tables], module.inv_freq.numpy()


def compare(rotary: Rotary, positions: np.ndarray, theirs: tuple[Any, Any]) -> None:
    """Frequencies to 1e-6 of each, tables to 1e-5."""
    (cos, sin), frequencies = theirs
    length = int(positions.max()) + 1
    np.testing.assert_allclose(np.asarray(rotary.frequencies(HEAD_DIM, length)), frequencies, rtol=1e-6)
    found_cos, found_sin = rotary.tables(jnp.asarray(positions), HEAD_DIM)
    np.testing.assert_allclose(np.asarray(found_cos)[:, :, 0, 0], cos, atol=1e-5)
    np.testing.assert_allclose(np.asarray(found_sin)[:, :, 0, 1], sin, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_tables_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Read from the file, and from the file that is written of what was read."""
    kind, fields = CASES[case]
    config = SIZES | {"max_position_embeddings": 64} | fields
    options = OPTIONS.get(kind, {})
    problems: list[Any] = []
    rotary = rotary_from_hf(config, default_theta=10_000.0, problems=problems, **options)
    assert problems == []
    assert rotary.problems(HEAD_DIM) == []
    names = {}
    if kind == "gpt_neox":
        names = {"theta_key": "rotary_emb_base", "fraction_key": "rotary_pct", "default_fraction": 0.25}
    elif kind == "phi":
        names = {"default_fraction": 0.5}
    written = SIZES | {"max_position_embeddings": 64} | rotary_to_hf(rotary, **names)
    assert rotary_from_hf(written, default_theta=1.0, problems=problems, **options) == rotary
    assert problems == []
    for positions in POSITIONS.values():
        theirs = their_tables(kind, config, positions, tmp_path)
        compare(rotary, positions, theirs)
        again = their_tables(kind, written, positions, tmp_path)
        np.testing.assert_allclose(again[1], theirs[1], rtol=1e-6)
        np.testing.assert_allclose(again[0], theirs[0], atol=1e-5)


LAYERS = {
    "old": {"rope_theta": 2e4, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "by default": {},
    "nested": {
        "rope_parameters": {
            "full_attention": {"rope_type": "llama3", "rope_theta": 2e4, **LLAMA3},
            "sliding_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0},
        }
    },
    "nested and old": {
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": None},
        "rope_scaling": {"factor": 4.0},
    },
    "nested yarn": {
        "rope_parameters": {"sliding_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0}}
    },
}


@pytest.mark.parametrize("case", LAYERS)
def test_tables_of_layer_types_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    """Gemma 3, as read and as written."""
    config = SIZES | {"max_position_embeddings": 64, "layer_types": ["full_attention", "sliding_attention"]}
    problems: list[Any] = []
    thetas = {"full_attention": 1e6, "sliding_attention": 1e4}
    rotaries = rotary_by_layer_type(config | LAYERS[case], default_thetas=thetas, problems=problems)
    assert problems == []
    for fields in (LAYERS[case], rotary_by_layer_type_to_hf(rotaries)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3_text"} | config | fields), "utf-8")
        for positions in POSITIONS.values():
            module = Gemma3RotaryEmbedding(transformers.AutoConfig.from_pretrained(tmp_path))
            for kind, rotary in rotaries.items():
                tables = module(torch.zeros(1), torch.asarray(positions).long(), kind)
                tables = [table.numpy()[..., : HEAD_DIM // 2] for table in tables]
                compare(rotary, positions, (tables, getattr(module, f"{kind}_inv_freq").numpy()))

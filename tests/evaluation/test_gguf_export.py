"""GGUF files for llama.cpp: what they hold, and what is refused. tests/parity has what llama.cpp makes of them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bombus.evaluation import EvaluationError, export_gguf
from bombus.loader.checkpoint import read_headers
from bombus.loader.repository import open_repository

GIVE = "Give a file that llama.cpp's own converter made: gguf=FILE (--gguf FILE)"


def refused(folder: Path, tmp_path: Path, *arguments: str) -> str:
    with pytest.raises(EvaluationError) as caught:
        export_gguf(folder, tmp_path / "x.gguf", *arguments)
    assert not (tmp_path / "x.gguf").exists()
    return str(caught.value).removeprefix(f"{folder}: ")


def contents(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the fields, the tensors) of a GGUF file, by name."""
    reader = pytest.importorskip("gguf").GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def tensor(folder: Path, name: str) -> np.ndarray:
    return read_headers(open_repository(folder))[name].read(name).astype(np.float32)


def test_low_precision_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert refused(tiny("qwen3", "f8_e4m3fn", num_blocks=1), tmp_path) == (
        "tensor model.layers.0.mlp.down_proj.weight: and 6 more are in low precision (expected 16 or 32 bits, found "
        f"float8_e4m3fn). Convert the checkpoint to bf16 first (`bombus convert`), or give{GIVE.removeprefix('Give')}"
    )


def test_a_tensor_of_another_model_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Qwen3 with biases, which llama.cpp's does not have."""
    folder = tiny("qwen3", "f32", preset="original", num_blocks=1, attention_bias=True)
    found = refused(folder, tmp_path).splitlines()
    first = "tensor model.layers.0.self_attn.k_proj.bias: is not one that a GGUF file is made of here"
    assert found[:2] == ["4 problems", f"  - {first}. {GIVE}"]


def test_what_the_file_would_not_hold_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    found = refused(tiny("gpt2", "f32", preset="original", num_blocks=1), tmp_path)
    assert f"  - the architecture gpt2: is not written to a GGUF file here. {GIVE}" in found
    assert "tensor " in found
    folder = tmp_path / "scaled"
    shutil.copytree(tiny("llama", "f32", preset="original", num_blocks=1), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert refused(folder, tmp_path) == (
        f"2 problems\n  - rotary scaling: is not written to a GGUF file here. {GIVE}\n"
        f"  - the activation gelu: is not written to a GGUF file here. {GIVE}"
    )


def test_an_unknown_type_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny("llama", "f32", preset="original", num_blocks=1)
    assert refused(folder, tmp_path, "Q8_1") == "type 'Q8_1': is not written. The closest are 'Q8_0'"


def test_a_file_needs_its_package(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    folder = tiny("llama", "f32", preset="original", num_blocks=1)
    assert refused(folder, tmp_path) == "gguf: is not installed. Run `pip install gguf`"


def test_qwen3_in_bf16_is_the_checkpoint(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny("qwen3", "bf16")
    fields, tensors = contents(export_gguf(folder, tmp_path / "x.gguf", "BF16"))
    assert fields["general.architecture"] == "qwen3"
    assert fields["tokenizer.ggml.model"] == "no_vocab"
    expected = {"vocab_size": 320, "context_length": 512, "embedding_length": 192, "block_count": 2}
    expected |= {"feed_forward_length": 320, "attention.head_count": 6, "attention.head_count_kv": 2}
    expected |= {"attention.key_length": 48, "rope.dimension_count": 48, "rope.freq_base": 10000.0}
    assert {name: fields[f"qwen3.{name}"] for name in expected} == expected
    assert len(tensors) == 2 + 2 * 11
    pairs = {"blk.1.attn_q": "model.layers.1.self_attn.q_proj", "blk.0.ffn_down": "model.layers.0.mlp.down_proj"}
    pairs |= {"token_embd": "model.embed_tokens"}
    for name, theirs in pairs.items():
        found = tensors[f"{name}.weight"]
        assert found.tensor_type.name == "BF16"
        widened = (np.ascontiguousarray(found.data).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(widened, tensor(folder, f"{theirs}.weight"))
    norm = tensors["blk.1.attn_k_norm.weight"]
    assert norm.tensor_type.name == "F32"
    np.testing.assert_array_equal(norm.data, tensor(folder, "model.layers.1.self_attn.k_norm.weight"))


def test_llama_has_its_pairs_beside_each_other(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Of heads of 48: rows 0, 24, 1, 25, ... of each; biases as well, and nothing but queries and keys."""
    folder = tiny("llama", "f32", num_blocks=1, attention_bias=True, tie_word_embeddings=False)
    _, tensors = contents(export_gguf(folder, tmp_path / "x.gguf", "F32"))
    order = np.asarray([head * 48 + half * 24 + i for head in range(6) for i in range(24) for half in range(2)])
    for name, theirs, rows in (("attn_q", "q_proj", order), ("attn_k", "k_proj", order[:96]), ("attn_v", "v_proj", 0)):
        for kind in ("weight", "bias"):
            values = tensor(folder, f"model.layers.0.self_attn.{theirs}.{kind}")
            expected = values if name == "attn_v" else values[rows]
            np.testing.assert_array_equal(tensors[f"blk.0.{name}.{kind}"].data, expected)
    assert "output.weight" in tensors


def test_q8_0_has_a_scale_for_32_values(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Errors of half a step, and of a scale in float16; rows of 80 are no whole blocks, and stay in bf16."""
    folder = tiny("qwen3", "f32", num_blocks=1, intermediate_size=80)
    _, tensors = contents(export_gguf(folder, tmp_path / "x.gguf"))
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "BF16"
    found = tensors["blk.0.ffn_up.weight"]
    assert found.tensor_type.name == "Q8_0"
    blocks = np.ascontiguousarray(found.data).reshape(80, 6, 34)
    scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    values = (scale * blocks[..., 2:].view(np.int8)).reshape(80, 192)
    error = np.abs(values - tensor(folder, "model.layers.0.mlp.up_proj.weight")).reshape(80, 6, 32)
    assert (error <= 0.57 * scale).all()

"""The command line: results on standard output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import SIZES, error, output

import bombus
from bombus.cli import main
from bombus.models.model import flat


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"bombus {bombus.__version__}\n"


def test_tiny_writes_the_checkpoint_that_its_options_ask_for(run, tmp_path):
    folder = tmp_path / "made"
    arguments = ["--architecture", "llama", "--preset", "original", "--shards", "2", "--scales", "bf16"]
    out = output(run, "tiny", folder, *arguments, "--not-converted", "*.q_proj")
    assert out == f"{folder}\n"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert len([name for name in names if name.endswith(".safetensors")]) == 2
    assert json.loads((folder / "config.json").read_text("utf-8"))["architectures"] == ["LlamaForCausalLM"]
    params = flat(bombus.load_model(folder, preserve_source_types=True).params)
    attention = "decoder.blocks.0.self_attention."
    types = {name: params[attention + name].dtype.name for name in ("query.kernel", "key.kernel", "key.scale_inv")}
    assert types == {"query.kernel": "bfloat16", "key.kernel": "float8_e4m3fn", "key.scale_inv": "bfloat16"}


def test_inspect_shows_the_spec_and_the_tensors(run, fp8):
    out = output(run, "inspect", fp8)
    lines = out.splitlines()
    assert lines[0] == "Qwen3Spec"
    assert f"  {'vocab_size':20} 257" in lines
    assert f"  {'num_kv_heads':20} 2" in lines
    # Seven kernels and their scales, four norms of the block, the last norm and the embedding.
    assert lines[-1].startswith("20 tensors: ")
    # One tile, one float32 scale, in each of the seven kernels.
    assert "f32 28 B" in lines[-1]


def test_inspect_json_counts_bytes_by_type(run, fp8):
    found = json.loads(output(run, "inspect", fp8, "--json"))
    assert (found["spec"]["hidden_size"], found["spec"]["head_dim"], found["tensors"]) == (32, 8, 20)
    kernels = 32 * 32 + 2 * (16 * 32) + 32 * 32 + 3 * (64 * 32)
    wide = 257 * 32 + 32 * 3 + 2 * 8
    assert found["bytes"] == {"f8_e4m3fn": kernels, "f32": 7 * 4, "bf16": 2 * wide}


def test_plan_shows_what_would_be_read(run, fp8):
    kept = output(run, "plan", fp8, "--preserve-source-types")
    assert kept.startswith(f"{fp8}: ")
    (gate,) = (line for line in kept.splitlines() if line.startswith("decoder.blocks.0.ffn.gate.kernel"))
    assert gate.split()[1:6] == ["model.layers.{n}.mlp.gate_proj.weight", "f8_e4m3fn", "f8_e4m3fn[64,", "32]", "bf16"]
    assert " keep " in gate
    dequantized = output(run, "plan", fp8, "--policy", '{"*.gate.kernel": "f32", "default": "bf16"}')
    (gate,) = (line for line in dequantized.splitlines() if line.startswith("decoder.blocks.0.ffn.gate.kernel"))
    assert "f32[64, 32]" in gate
    assert " dequantize " in gate
    assert gate.endswith("*.gate.kernel")
    # One row for a weight, its scales included.
    assert "scale_inv" not in kept + dequantized


def test_plan_of_a_format_for_everything_leaves_norms_alone(run, fp8):
    shown = output(run, "plan", fp8, "--policy", "int4(group=32)").splitlines()
    rows = {line.split()[0]: line for line in shown[3:]}
    gate, embedding = rows["decoder.blocks.0.ffn.gate.kernel"], rows["embedder.token_embedding.embedding"]
    assert gate.split()[2:] == ["f8_e4m3fn", "int4(group=32)[64,", "32]", "bf16", "requantize", "1.15", "kB", "default"]
    assert embedding.split()[2:7] == ["bf16", "int4(group=32)[257,", "32]", "bf16", "quantize"]
    assert rows["output_norm.scale"].split()[2:6] == ["bf16", "bf16[32]", "f32", "keep"]


@pytest.mark.parametrize("shards", [1, 2])
def test_plan_json_lists_every_parameter(run, tiny, tmp_path, shards):
    folder = tiny("qwen3", "f8_e4m3fn", **SIZES, shards=shards)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"output_norm.*": "f32"}), "utf-8")
    found = json.loads(output(run, "plan", folder, "--preserve-source-types", "--policy", path, "--json"))
    parameters = {entry["parameter"]: entry for entry in found["parameters"]}
    # Seven kernels, their scales included, four norms of the block, the last norm and the embedding.
    assert len(parameters) == 13
    assert parameters["decoder.blocks.0.ffn.gate.kernel"] == {
        "parameter": "decoder.blocks.0.ffn.gate.kernel",
        "tensor": "model.layers.0.mlp.gate_proj.weight",
        "in file": "f8_e4m3fn",
        "stored": "f8_e4m3fn[64, 32]",
        "computed": "bf16",
        "action": "keep",
        "bytes": 64 * 32 + 4,
        "rule": "",
    }
    assert parameters["output_norm.scale"] == {
        "parameter": "output_norm.scale",
        "tensor": "model.norm.weight",
        "in file": "bf16",
        "stored": "f32[32]",
        "computed": "f32",
        "action": "cast",
        "bytes": 128,
        "rule": "output_norm.*",
    }
    kernels = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    wide = 257 * 32 + 32 * 3 + 2 * 8
    assert found["stored_bytes"] == {"f8_e4m3fn": kernels + 7 * 4, "bf16": 2 * (wide - 32), "f32": 128}
    assert found["file_bytes"] == kernels + 7 * 4 + 2 * wide
    assert found["bytes"] == sum(entry["bytes"] for entry in parameters.values())
    assert found["initialised"] == found["unused_tensors"] == []
    assert found["seconds"] is None


def test_plan_reads_no_tensor(run, fp8, tmp_path):
    """A NaN scale is found when tensors are read, so the plan of such a checkpoint is made."""
    folder = Path(shutil.copytree(fp8, tmp_path / "checkpoint"))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + length])["model.layers.0.mlp.up_proj.weight_scale_inv"]["data_offsets"]
    content[8 + length + start : 8 + length + start + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    assert " dequantize " in output(run, "plan", folder)
    status, _, err = run("generate", folder, "--prompt", "a")
    assert status == 1
    assert err.startswith(
        f"bombus: CheckpointError: {path}: tensor model.layers.0.mlp.up_proj.weight_scale_inv: has 1 "
    )


def test_generate_prints_the_same_text_plain_streamed_and_as_json(run, bf16, monkeypatch):
    loaded, tokenizer = bombus.load_model(bf16), bombus.load_tokenizer(bf16)
    calls = []

    def load_once(repo, **options):
        # Programs are compiled per loaded model; three loads of the same one would compile three times.
        calls.append((repo, options["preserve_source_types"], options["strict"], options["policy"]))
        return loaded

    monkeypatch.setattr(bombus, "load_model", load_once)
    prompt = "Bombus "
    call = ["generate", bf16, "--prompt", prompt, "--max-new-tokens", "6"]
    plain = output(run, *call)
    streamed = output(run, *call, "--stream", "--preserve-source-types")
    found = json.loads(output(run, *call, "--json", "--no-strict", "--policy", '{"*": "bf16"}'))
    assert calls == [
        (str(bf16), False, True, None),
        (str(bf16), True, True, None),
        (str(bf16), False, False, {"*": "bf16"}),
    ]
    assert found.pop("seconds") >= found.pop("time_to_first_token") > 0
    assert found.pop("tokens_per_second") > 0
    assert found == {
        "prompt": prompt,
        "text": bombus.generate(loaded, tokenizer, prompt, max_new_tokens=6),
        "finish_reason": "length",
        "prompt_tokens": 7,
        "new_tokens": 6,
    }
    assert plain == streamed == f"{prompt}{found['text']}\n"


def test_generate_says_what_a_quantized_cache_takes(run, bf16):
    """One block of 2 heads, keys and values of 8 codes each, with a scale and a zero point of four bytes."""
    call = ("generate", bf16, "--prompt", "a", "--max-new-tokens", "1", "--kv-cache")
    status, out, said = run(*call, "int8")
    assert (status, said) == (0, f"cache: {2 * 2 * (8 + 4 + 4)} bytes per token, of 512\n")
    assert out.startswith("a")
    assert error(run, *call, "int7").startswith("bombus: GenerationError: generate: keys and values: int7: ")


def test_the_demo_runs_as_a_module_and_shows_fp8_parameters():
    done = subprocess.run(
        [sys.executable, "-m", "bombus", "demo", "--max-new-tokens", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "f8_e4m3fn[544, 192]" in done.stdout
    assert "\n\n2 tokens, the first after " in done.stdout

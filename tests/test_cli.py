"""The command line: results on standard output, and every bad input one line of ours without a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bombus
from bombus.cli import main
from bombus.models.model import flat

# Every token of the vocabulary is a byte or the end, so that generated text is not empty.
SIZES = {"preset": "original", "num_blocks": 1, "vocab_size": 257}


@pytest.fixture(scope="module")
def bf16(tiny):
    return tiny("qwen3", "bf16", **SIZES)


@pytest.fixture(scope="module")
def fp8(tiny):
    return tiny("qwen3", "f8_e4m3fn", **SIZES)


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of a command."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def output(capsys, *arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    return out


@pytest.mark.parametrize("command", ["inspect", "plan", "generate"])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["/no/such/folder"], "bombus: HubError: /no/such/folder: repository: there is no such folder, and it is not"),
        (["{fp8}/config.json"], "bombus: HubError: {fp8}/config.json: repository: is a file. Give its folder, {fp8}\n"),
        (["{fp8}", "--revision", "main"], "bombus: HubError: {fp8}: revision: has no meaning for a local folder"),
        (["{fp8}", "--subfolder", "absent"], "bombus: CheckpointError: {fp8}: file "),
        (["{cut}"], "bombus: CheckpointError: {cut}/model.safetensors: file: is cut short: 1 bytes are missing"),
        (["{odd}"], "bombus: SpecError: config.json: field 'hidden_size': has the wrong type (expected int, found"),
    ],
)
def test_a_bad_repository_is_one_error_of_ours(capsys, fp8, tmp_path, command, arguments, text):
    cut, odd = tmp_path / "cut", tmp_path / "odd"
    shutil.copytree(fp8, cut)
    os.truncate(cut / "model.safetensors", (cut / "model.safetensors").stat().st_size - 1)
    shutil.copytree(fp8, odd)
    config = json.loads((odd / "config.json").read_text("utf-8")) | {"hidden_size": "32"}
    (odd / "config.json").write_text(json.dumps(config), "utf-8")
    names = {"fp8": fp8, "cut": cut, "odd": odd}
    prompt = ["--prompt", "a"] if command == "generate" else []
    status, out, err = run(capsys, command, *(argument.format(**names) for argument in arguments), *prompt)
    assert (status, out) == (1, "")
    assert err.startswith(text.format(**names))
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("bf61", "bombus: PolicyError: type 'bf61': is not a storage format. The closest are 'bf16', 'f16', 'bfp8'\n"),
        ("int4(groups=64)", "bombus: PolicyError: format 'int4': has no option 'groups'. Its options are group, zero_"),
        ("absent.json", "bombus: PolicyError: absent.json: policy file: cannot be read: "),
        ('{"*": ', "bombus: PolicyError: --policy: policy: is not valid JSON: "),
        (
            '{"*": {"compute": "f8_e4m3fn"}}',
            "bombus: PolicyError: policy rule '*', Policy.compute: cannot be f8_e4m3fn: nothing is computed in a ",
        ),
        ('{"output_nrom.*": "f32"}', "bombus: PlanError: {fp8}: policy rule 'output_nrom.*': matches no parameter. "),
        ('{"norm": "f8_e4m3fn"}', "bombus: PlanError: {fp8}: policy rule 'norm': stores nothing as f8_e4m3fn, which "),
    ],
)
def test_a_bad_policy_is_one_error_of_ours(capsys, fp8, policy, text):
    status, out, err = run(capsys, "plan", fp8, "--policy", policy)
    assert (status, out) == (1, "")
    assert err.startswith(text.replace("{fp8}", str(fp8)))
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--max-new-tokens", "0"], "max_new_tokens: is out of range (expected at least 1, found 0)"),
        (["--temperature", "-1"], "temperature: is out of range (expected a number from 0, found -1.0)"),
        (["--temperature", "nan"], "temperature: is out of range (expected a number from 0, found nan)"),
        (["--top-p", "2"], "top_p: is out of range (expected a number from 0 to 1, found 2.0)"),
        (["--top-k", "-1"], "top_k: is out of range (expected an integer from 0, found -1)"),
        (["--max-new-tokens", "513"], "goes past the model's 512 positions"),
        (["--chat"], "chat template: is not in this repository"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_for_text_is_one_error_of_ours(capsys, bf16, arguments, text, stream):
    status, out, err = run(capsys, "generate", bf16, "--prompt", "a", *arguments, *(["--stream"] if stream else []))
    assert (status, out) == (1, "")
    assert err.startswith("bombus: GenerationError: ")
    assert text in err


def test_generate_without_a_tokenizer_says_how_to_make_one(capsys, bf16, tmp_path):
    folder = shutil.copytree(bf16, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("tokenizer.json"))
    status, out, err = run(capsys, "generate", folder, "--prompt", "a")
    assert (status, out) == (1, "")
    assert err == (
        f"bombus: CheckpointError: {folder}: file tokenizer.json: is not there. "
        "Save it with a fast tokenizer of transformers, which writes tokenizer.json\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--architecture", "qwen4"], "bombus: SpecError: architecture 'qwen4': is unknown. The closest are 'qwen3'"),
        (["--weights", "f9"], "bombus: SpecError: weights 'f9': does not exist. Known: f32, bf16, f8_e4m3fn"),
        (["--scales", "f9"], "bombus: PolicyError: type 'f9': is not a storage format. Known: "),
        (["--head", "nonsense"], "bombus: SpecError: "),
        (["--shards", "0"], "bombus: "),
    ],
)
def test_a_tiny_checkpoint_that_cannot_be_made_is_one_error_of_ours(capsys, tmp_path, arguments, text):
    status, out, err = run(capsys, "tiny", tmp_path / "made", "--preset", "original", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(text)
    assert not (tmp_path / "made").exists()


def test_tiny_into_a_file_is_one_error_of_ours(capsys, tmp_path):
    path = tmp_path / "file"
    path.write_text("kept", "utf-8")
    status, out, err = run(capsys, "tiny", path, "--preset", "original")
    assert (status, out) == (1, "")
    assert err.startswith("bombus: ")
    assert str(path) in err
    assert path.read_text("utf-8") == "kept"


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["plan"], ["generate", "folder"], ["tiny", "x", "--shards", "a"]]
)
def test_a_wrong_call_is_answered_with_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: bombus")


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"bombus {bombus.__version__}\n"


def test_tiny_writes_the_checkpoint_that_its_options_ask_for(capsys, tmp_path):
    folder = tmp_path / "made"
    arguments = ["--architecture", "llama", "--preset", "original", "--shards", "2", "--scales", "bf16"]
    out = output(capsys, "tiny", folder, *arguments, "--not-converted", "*.q_proj")
    assert out == f"{folder}\n"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert len([name for name in names if name.endswith(".safetensors")]) == 2
    assert json.loads((folder / "config.json").read_text("utf-8"))["architectures"] == ["LlamaForCausalLM"]
    params = flat(bombus.load_model(folder, preserve_source_types=True).params)
    attention = "decoder.blocks.0.self_attention."
    types = {name: params[attention + name].dtype.name for name in ("query.kernel", "key.kernel", "key.scale_inv")}
    assert types == {"query.kernel": "bfloat16", "key.kernel": "float8_e4m3fn", "key.scale_inv": "bfloat16"}


def test_inspect_shows_the_spec_and_the_tensors(capsys, fp8):
    out = output(capsys, "inspect", fp8)
    lines = out.splitlines()
    assert lines[0] == "Qwen3Spec"
    assert f"  {'vocab_size':20} 257" in lines
    assert f"  {'num_kv_heads':20} 2" in lines
    # Seven kernels and their scales, four norms of the block, the last norm and the embedding.
    assert lines[-1].startswith("20 tensors: ")
    # One tile, one float32 scale, in each of the seven kernels.
    assert "f32 28 B" in lines[-1]


def test_inspect_json_counts_bytes_by_type(capsys, fp8):
    found = json.loads(output(capsys, "inspect", fp8, "--json"))
    assert (found["spec"]["hidden_size"], found["spec"]["head_dim"], found["tensors"]) == (32, 8, 20)
    kernels = 32 * 32 + 2 * (16 * 32) + 32 * 32 + 3 * (64 * 32)
    wide = 257 * 32 + 32 * 3 + 2 * 8
    assert found["bytes"] == {"f8_e4m3fn": kernels, "f32": 7 * 4, "bf16": 2 * wide}


def test_plan_shows_what_would_be_read(capsys, fp8):
    kept = output(capsys, "plan", fp8, "--preserve-source-types")
    assert kept.startswith(f"{fp8}: ")
    (gate,) = (line for line in kept.splitlines() if line.startswith("decoder.blocks.0.ffn.gate.kernel"))
    assert gate.split()[1:6] == ["model.layers.{n}.mlp.gate_proj.weight", "f8_e4m3fn", "f8_e4m3fn[64,", "32]", "bf16"]
    assert " keep " in gate
    dequantized = output(capsys, "plan", fp8, "--policy", '{"*.gate.kernel": "f32", "default": "bf16"}')
    (gate,) = (line for line in dequantized.splitlines() if line.startswith("decoder.blocks.0.ffn.gate.kernel"))
    assert "f32[64, 32]" in gate
    assert " dequantize " in gate
    assert gate.endswith("*.gate.kernel")
    # One row for a weight, its scales included.
    assert "scale_inv" not in kept + dequantized


def test_plan_of_a_format_for_everything_leaves_norms_alone(capsys, fp8):
    shown = output(capsys, "plan", fp8, "--policy", "int4(group=32)").splitlines()
    rows = {line.split()[0]: line for line in shown[3:]}
    gate, embedding = rows["decoder.blocks.0.ffn.gate.kernel"], rows["embedder.token_embedding.embedding"]
    assert gate.split()[2:] == ["f8_e4m3fn", "int4(group=32)[64,", "32]", "bf16", "requantize", "1.15", "kB", "default"]
    assert embedding.split()[2:7] == ["bf16", "int4(group=32)[257,", "32]", "bf16", "quantize"]
    assert rows["output_norm.scale"].split()[2:6] == ["bf16", "bf16[32]", "f32", "keep"]


@pytest.mark.parametrize("shards", [1, 2])
def test_plan_json_lists_every_parameter(capsys, tiny, tmp_path, shards):
    folder = tiny("qwen3", "f8_e4m3fn", **SIZES, shards=shards)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"output_norm.*": "f32"}), "utf-8")
    found = json.loads(output(capsys, "plan", folder, "--preserve-source-types", "--policy", path, "--json"))
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


def test_plan_reads_no_tensor(capsys, fp8, tmp_path):
    """A NaN scale is found when tensors are read, so the plan of such a checkpoint is made."""
    folder = Path(shutil.copytree(fp8, tmp_path / "checkpoint"))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + length])["model.layers.0.mlp.up_proj.weight_scale_inv"]["data_offsets"]
    content[8 + length + start : 8 + length + start + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    assert " dequantize " in output(capsys, "plan", folder)
    status, _, err = run(capsys, "generate", folder, "--prompt", "a")
    assert status == 1
    assert err.startswith(
        f"bombus: CheckpointError: {path}: tensor model.layers.0.mlp.up_proj.weight_scale_inv: has 1 "
    )


def test_generate_prints_the_same_text_plain_streamed_and_as_json(capsys, bf16, monkeypatch):
    loaded, tokenizer = bombus.load_model(bf16), bombus.load_tokenizer(bf16)
    calls = []

    def load_once(repo, **options):
        # Programs are compiled per loaded model; three loads of the same one would compile three times.
        calls.append((repo, options["preserve_source_types"], options["strict"], options["policy"]))
        return loaded

    monkeypatch.setattr(bombus, "load_model", load_once)
    prompt = "Bombus "
    call = ["generate", bf16, "--prompt", prompt, "--max-new-tokens", "6"]
    plain = output(capsys, *call)
    streamed = output(capsys, *call, "--stream", "--preserve-source-types")
    found = json.loads(output(capsys, *call, "--json", "--no-strict", "--policy", '{"*": "bf16"}'))
    assert calls == [
        (str(bf16), False, True, None),
        (str(bf16), True, True, None),
        (str(bf16), False, False, {"*": "bf16"}),
    ]
    assert found == {"prompt": prompt, "text": bombus.generate(loaded, tokenizer, prompt, max_new_tokens=6)}
    assert found["text"]
    assert plain == streamed == f"{prompt}{found['text']}\n"


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
    assert "f8_e4m3fn[320, 192]" in done.stdout
    assert "2 tokens of this random model, so noise, after 'Bombus ':" in done.stdout

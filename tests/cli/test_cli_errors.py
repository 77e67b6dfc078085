"""The command line: every bad input is one line of ours without a traceback."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from bombus.cli import main


@pytest.mark.parametrize("command", ["inspect", "plan", "generate"])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["/no/such/folder"], "bombus: HubError: /no/such/folder: repository: there is no such folder, and it is not"),
        (["{fp8}/config.json"], "bombus: HubError: {fp8}/config.json: repository: is a file. Give its folder, {fp8}\n"),
        (["{fp8}", "--revision", "main"], "bombus: HubError: {fp8}: revision: has no meaning for a local folder"),
        (["{fp8}", "--subfolder", "absent"], "bombus: CheckpointError: {fp8}: "),
        (["{cut}"], "bombus: CheckpointError: {cut}/model.safetensors: file: is cut short: 1 bytes are missing"),
        (["{odd}"], "bombus: SpecError: config.json: field 'hidden_size': has the wrong type (expected int, found"),
    ],
)
def test_a_bad_repository_is_one_error_of_ours(run, fp8, tmp_path, command, arguments, text):
    cut, odd = tmp_path / "cut", tmp_path / "odd"
    shutil.copytree(fp8, cut)
    os.truncate(cut / "model.safetensors", (cut / "model.safetensors").stat().st_size - 1)
    shutil.copytree(fp8, odd)
    config = json.loads((odd / "config.json").read_text("utf-8")) | {"hidden_size": "32"}
    (odd / "config.json").write_text(json.dumps(config), "utf-8")
    names = {"fp8": fp8, "cut": cut, "odd": odd}
    prompt = ["--prompt", "a"] if command == "generate" else []
    status, out, err = run(command, *(argument.format(**names) for argument in arguments), *prompt)
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
def test_a_bad_policy_is_one_error_of_ours(run, fp8, policy, text):
    status, out, err = run("plan", fp8, "--policy", policy)
    assert (status, out) == (1, "")
    assert err.startswith(text.replace("{fp8}", str(fp8)))
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--max-new-tokens", "0"], "max_new_tokens: is out of range (expected an integer from 1, found 0)"),
        (["--temperature", "-1"], "temperature: is out of range (expected a number from 0.0 to 10000.0, found -1.0)"),
        (["--temperature", "nan"], "temperature: is out of range (expected a number from 0.0 to 10000.0, found nan)"),
        (["--top-p", "2"], "top_p: is out of range (expected a number from 0.0 to 1.0, found 2.0)"),
        (["--top-k", "-1"], "top_k: is out of range (expected an integer from 0 to 2147483647, found -1)"),
        (["--max-new-tokens", "513"], "goes past the model's 512 positions"),
        (["--chat"], "chat template: is not in this repository"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_for_text_is_one_error_of_ours(run, bf16, arguments, text, stream):
    status, out, err = run("generate", bf16, "--prompt", "a", *arguments, *(["--stream"] if stream else []))
    assert (status, out) == (1, "")
    assert err.startswith("bombus: GenerationError: ")
    assert text in err


def test_generate_without_a_tokenizer_says_how_to_make_one(run, bf16, tmp_path):
    folder = shutil.copytree(bf16, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("tokenizer.json"))
    status, out, err = run("generate", folder, "--prompt", "a")
    assert (status, out) == (1, "")
    assert err == (
        f"bombus: CheckpointError: {folder}: tokenizer: neither tokenizer.json nor tokenizer.model is there. "
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
def test_a_tiny_checkpoint_that_cannot_be_made_is_one_error_of_ours(run, tmp_path, arguments, text):
    status, out, err = run("tiny", tmp_path / "made", "--preset", "original", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(text)
    assert not (tmp_path / "made").exists()


def test_tiny_into_a_file_is_one_error_of_ours(run, tmp_path):
    path = tmp_path / "file"
    path.write_text("kept", "utf-8")
    status, out, err = run("tiny", path, "--preset", "original")
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

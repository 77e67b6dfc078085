"""Where a load's policy is found, and what is said of it: discovery, presets, templates, explanations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_decoder import read_tensors
from quantized_files import SIZES, compressed, packed_integers, quantized, write
from safetensors.numpy import save_file

import bombus
from bombus.loader.policy import find_policy, user_folder
from bombus.loader.repository import Repository
from bombus.loader.tensors import TensorInfo
from bombus.models.model import flat

GATE, EMBEDDING, NORM = "decoder.blocks.0.ffn.gate.kernel", "embedder.token_embedding.embedding", "output_norm.scale"
GATE_TENSOR = "model.layers.0.mlp.gate_proj"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of policies, empty."""
    monkeypatch.setenv("BOMBUS_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "policies"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def repo(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A repository of its own, called My-Qwen3."""
    return Path(shutil.copytree(tiny("qwen3", "bf16", **SIZES), tmp_path / "My-Qwen3"))


def write_rules(path: Path, rules: Any) -> Path:
    path.write_text(json.dumps(rules))
    return path


def formats(report: bombus.LoadReport) -> dict[str, str]:
    return {path: str(format) for path, format in report.plan.model.formats.items()}


def test_auto_takes_the_first_place_that_has_a_policy(home: Path, repo: Path) -> None:
    """The preset, the user's file for the kind of model, the one for the model, the repository's own; and says so."""
    report = bombus.load_plan(repo, policy="auto")
    assert report.plan.policy == "preset accuracy"
    assert formats(report)[GATE] == "int8(group=64, scale=bf16)"
    places = [home / "qwen3.json", home / "my-qwen3.json", home / "My-Qwen3.json", repo / "bombus_policy.json"]
    for place, format in zip(places, ("int8", "int4", "mxfp8", "bfp8"), strict=True):
        write_rules(place, {"bombus_policy": 1, "rules": {"*.gate.kernel": format}})
        report = bombus.load_plan(repo, policy="auto")
        assert report.plan.policy == str(place)
        assert formats(report) == {path: format if path == GATE else "bf16" for path in formats(report)}


def test_the_choice_is_in_every_form_of_the_report(home: Path, repo: Path) -> None:
    file = write_rules(home / "qwen3.json", {"norm": "f32"})
    loaded = bombus.load_model(repo, policy="auto")
    assert str(loaded.report).splitlines()[-1] == f"policy: {file}"
    assert loaded.report.to_json()["policy"] == str(file)
    assert f"<p>policy: {file}</p>" in loaded.report._repr_html_()
    assert loaded.params["output_norm"]["scale"].dtype == np.float32


def test_a_policy_that_is_given_beats_all_places(home: Path, repo: Path) -> None:
    for place in (home / "qwen3.json", home / "My-Qwen3.json", repo / "bombus_policy.json"):
        write_rules(place, {"default": "f16"})
    report = bombus.load_plan(repo, policy="int8")
    assert (report.plan.policy, formats(report)[GATE]) == (None, "int8")
    assert "policy:" not in str(report)
    assert report.to_json()["policy"] is None
    report = bombus.load_plan(repo, policy="performance")
    assert (report.plan.policy, formats(report)[GATE]) == ("preset performance", "int4(group=32)")
    file = write_rules(repo / "mine.json", {"*.gate.kernel": "nvfp4"})
    report = bombus.load_plan(repo, policy=file)
    assert (report.plan.policy, formats(report)[GATE]) == (str(file), "nvfp4")


def test_without_a_policy_nothing_is_looked_for(home: Path, repo: Path) -> None:
    """Not even a malformed file is seen."""
    for place in (home / "qwen3.json", repo / "bombus_policy.json"):
        place.write_text("{")
    report = bombus.load_plan(repo)
    assert (report.plan.policy, set(formats(report).values())) == (None, {"bf16"})
    assert bombus.policy_template(repo).rules.keys() == formats(report).keys()


def test_the_users_folder_is_in_the_home_directory_unless_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BOMBUS_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert user_folder() == tmp_path / ".config" / "bombus" / "policies"
    monkeypatch.setenv("BOMBUS_HOME", "/elsewhere")
    assert user_folder() == Path("/elsewhere/policies")


def test_a_repository_on_the_hub_is_known_by_the_last_word_of_its_id(home: Path, tmp_path: Path) -> None:
    repository = Repository(name="Qwen/Qwen3-0.6B", local_files_only=True, cache_dir=tmp_path / "cache")
    config = {"model_type": "qwen3"}
    assert find_policy("auto", repository, config)[1] == "preset accuracy"
    file = write_rules(home / "qwen3-0.6b.json", {"default": "f16"})
    precision, where = find_policy("auto", repository, config)
    assert where == str(file)
    assert str(precision.default.params) == "f16"


@pytest.mark.parametrize("name", ["..", "a b", "policy*", ""])
def test_names_that_are_no_plain_words_are_no_file_names(name: str, home: Path, tmp_path: Path) -> None:
    write_rules(tmp_path / "home" / "secret.json", {"default": "f16"})
    repository = Repository(name="x/y", local_files_only=True, cache_dir=tmp_path / "cache")
    assert find_policy("auto", repository, {"model_type": f"{name}/secret"})[1] == "preset accuracy"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "policy: is not valid JSON: "),
        ("[]", "policy: is not a map (expected a JSON object of pattern: policy)"),
        (
            '{"bombus_policy": 2, "rules": {}}',
            "field 'bombus_policy': is newer than this version of Bombus reads (expected at most 1, found 2). Upgrade "
            "bombus",
        ),
        ('{"*.kernel": "int9"}', "policy rule '*.kernel', type 'int9': is not a storage format. The closest are "),
        ('{"*.kernel": "bfp_bf8"}', "policy rule '*.kernel': has 'bfp_bf8', a type of tt-xla, whose rules are ordered"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_malformed_file_is_named(text: str, problem: str, own: bool, home: Path, repo: Path) -> None:
    """It is never passed over for the next place."""
    file = repo / "bombus_policy.json" if own else home / "qwen3.json"
    file.write_text(text)
    with pytest.raises(bombus.PolicyError) as caught:
        bombus.load_plan(repo, policy="auto")
    assert str(caught.value).startswith(f"{file}: {problem}")


def test_a_preset_has_overrides_for_models_by_name(tiny: Callable[..., Path], home: Path, tmp_path: Path) -> None:
    """Llama-3.1-8B-Instruct's last block, from tt-metal; another folder of the same model has none."""
    folder = tiny("llama", "bf16", **{**SIZES, "num_blocks": 32})
    named = Path(shutil.copytree(folder, tmp_path / "Llama-3.1-8B-Instruct"))
    report = bombus.load_plan(named, policy="performance")
    assert report.plan.policy == "preset performance for llama-3.1-8b-instruct"
    found = formats(report)
    assert {path for path, format in found.items() if ".ffn." in path and format == "int8"} == {
        f"decoder.blocks.31.ffn.{name}.kernel" for name in ("gate", "intermediate")
    }
    assert found["decoder.blocks.31.ffn.output.kernel"] == found["decoder.blocks.30.ffn.gate.kernel"]
    assert found["decoder.blocks.30.ffn.gate.kernel"] == "int4(group=32)"
    config = {"model_type": "llama"}
    for other, preset in ((folder, "performance"), (named, "accuracy")):
        repository = Repository(name=str(other), folder=other)
        assert find_policy(preset, repository, config)[1] == f"preset {preset}"


def mixed(tiny: Callable[..., Path], folder: Path, wide: str) -> Path:
    """A bf16 checkpoint in which the tensors whose names hold `wide` are float32."""
    base = tiny("qwen3", "bf16", **SIZES)
    tensors = {name: value.astype(np.float32) if wide in name else value for name, value in read_tensors(base).items()}
    shutil.copytree(base, folder, dirs_exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def int4_checkpoint(tiny: Callable[..., Path], folder: Path) -> Path:
    """The feed-forward's first layer in compressed-tensors' int4."""
    weights = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True}
    section = compressed(weights, "pack-quantized", targets=[GATE_TENSOR])
    make = lambda values: packed_integers(values, 4, group=0)  # noqa: E731
    return quantized(tiny("qwen3", "f32", **SIZES), folder, section, make, GATE_TENSOR)


CHECKPOINTS: dict[str, Callable[[Callable[..., Path], Path], Path]] = {
    "bf16": lambda tiny, _: tiny("qwen3", "bf16", **SIZES),
    "FP8": lambda tiny, _: tiny("qwen3", "f8_e4m3fn", **SIZES, block_shape=(16, 24), scales="bf16"),
    "norms in f32": lambda tiny, folder: mixed(tiny, folder, "norm"),
    "a kernel in f32": lambda tiny, folder: mixed(tiny, folder, "gate_proj"),
    "the embedding in f32": lambda tiny, folder: mixed(tiny, folder, "embed_tokens"),
    "int4": int4_checkpoint,
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_template_as_it_is_keeps_the_model(name: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A rule for every parameter; all bytes, and what is computed in what, as without a policy. JSON is the same."""
    folder = CHECKPOINTS[name](tiny, tmp_path)
    expected = bombus.load_model(folder, preserve_source_types=True)
    policy = bombus.policy_template(folder)
    assert list(policy.rules) == list(expected.model.formats)
    assert policy.default is None
    assert bombus.MixedPrecision.from_json(json.dumps(policy.to_json())) == policy
    found = bombus.load_model(folder, policy=policy)
    before, after = flat(expected.params), flat(found.params)
    assert {path: value.dtype for path, value in after.items()} == {path: value.dtype for path, value in before.items()}
    for path, value in before.items():
        assert np.asarray(after[path]).tobytes() == np.asarray(value).tobytes(), path
    computed = [{entry.path: entry.computed for entry in made.report.plan.entries} for made in (expected, found)]
    assert computed[0] == computed[1]


def test_a_template_reads_no_tensor(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint whose every byte of data stands for NaN it is the same."""
    folder = tiny("qwen3", **SIZES)
    tensors = {
        name: np.full(value.nbytes, 255, np.uint8).view(value.dtype).reshape(value.shape)
        for name, value in read_tensors(folder).items()
    }
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    spoiled = write(folder, tmp_path, section, tensors)
    monkeypatch.setattr(TensorInfo, "read", None)
    assert bombus.policy_template(spoiled) == bombus.policy_template(folder)


def test_a_template_can_begin_with_one_format_for_all_weights(tiny: Callable[..., Path]) -> None:
    """Norms keep theirs."""
    folder = tiny("qwen3", "bf16", **SIZES)
    rules = bombus.policy_template(folder, default_format="int4(group=32)").to_json()["rules"]
    weights = {path for path in rules if path.endswith((".kernel", ".embedding"))}
    assert rules == {path: "int4(group=32)" if path in weights else "bf16" for path in rules}
    assert len(weights) == 8
    assert set(formats(bombus.load_plan(folder, policy=rules)).values()) == {"int4(group=32)", "bf16"}
    with pytest.raises(bombus.PolicyError) as caught:
        bombus.policy_template(folder, default_format="int44")
    assert str(caught.value) == "type 'int44': is not a storage format. The closest are 'int4', 'int8'"


def test_a_template_of_another_head_lists_its_parameters(tiny: Callable[..., Path]) -> None:
    folder = tiny("qwen3", "bf16", **SIZES, tie_word_embeddings=False)
    head = "language_modeling_head.output.kernel"
    assert head in bombus.policy_template(folder).rules
    assert head not in bombus.policy_template(folder, architecture="base").rules


def test_explain_names_the_rule_by_path_and_by_tensor(tiny: Callable[..., Path]) -> None:
    report = bombus.load_plan(tiny("qwen3", "bf16", **SIZES), policy={"feed_forward": "int8", "norm": "f32"})
    text = (
        f"{GATE}: Policy(params=int8, compute=None, output=None) from 'feed_forward', because no other rule matches. "
        "Stored as int8, computed in bf16"
    )
    assert report.explain(GATE) == report.explain(f"{GATE_TENSOR}.weight") == text
    assert report.explain("model.embed_tokens.weight") == (
        f"{EMBEDDING}: no rule matches and there is no default, so it is left as the checkpoint has it. "
        "Stored as bf16, computed in bf16"
    )
    with pytest.raises(bombus.PolicyError) as caught:
        report.explain("decoder.blocks.0.ffn.gte.kernel")
    assert str(caught.value) == (
        "parameter 'decoder.blocks.0.ffn.gte.kernel': does not exist. The closest are "
        "'decoder.blocks.0.ffn.gate.kernel', 'decoder.blocks.0.ffn.output.kernel', "
        "'decoder.blocks.0.ffn.intermediate.kernel'"
    )


def test_explain_names_the_rule_that_has_the_tensors_name(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Also where the file has the weight under another name, as codes or as its copy, or not at all."""
    packed = bombus.load_plan(int4_checkpoint(tiny, tmp_path / "packed"), policy={f"{GATE_TENSOR}.weight": "f16"})
    assert packed.explain(GATE) == packed.explain(f"{GATE_TENSOR}.weight")
    assert f" from '{GATE_TENSOR}.weight', because an exact name beats every pattern. Stored as f16" in packed.explain(
        GATE
    )
    base = tiny("qwen3", "bf16", **SIZES)
    tensors = read_tensors(base)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    del tensors["model.norm.weight"]
    folder = write(base, tmp_path / "tied", None, tensors)
    report = bombus.load_plan(
        folder, strict=False, policy=dict.fromkeys(("model.embed_tokens.*", "model.norm.*"), "f32")
    )
    assert " from 'model.embed_tokens.*', because " in report.explain(EMBEDDING)
    assert " from 'model.norm.*', because " in report.explain(NORM)

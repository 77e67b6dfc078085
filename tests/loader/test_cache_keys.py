"""The keys of the cache: other parameters have another one, the same ones the same, however they are asked for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cached import SIZES, count_conversions, key_of
from convention_cases import CASES
from convention_cases import SIZES as CONVENTION_SIZES
from conventions import write_convention
from converted import as_bytes
from damaged import edit
from failing_system import names
from meta_files import meta_params, meta_tensors, write_meta
from numpy_decoder import read_tensors
from safetensors.numpy import load_file, save_file

import bombus
from bombus.loader import cache as cache_module
from bombus.loader.cache import cache_key

WEIGHTS = "model.safetensors"
COMMIT = "0123456789abcdef" * 2 + "01234567"
DIGEST = "0123456789abcdef" * 4


def test_another_key_for_everything_that_changes_parameters(fp8: Path) -> None:
    """One for each: the policy, options of formats, how they are rounded, preservation, the spec, the head."""
    asked: list[dict[str, Any]] = [
        {},
        {"preserve_source_types": True},
        {"policy": "f32"},
        {"policy": "f16"},
        {"policy": "int8"},
        {"policy": "int8(group=32)"},
        {"policy": {"*.gate.*": "int8"}},
        {"policy": "mxfp8"},
        {"policy": "mxfp8(scale_rule=even)"},
        {"policy": "mxfp8(scale_rule=ceil)"},
        {"policy": "bfp8(scale_rule=search)"},
        {"policy": {"*.gate.scale_inv": "bf16"}, "preserve_source_types": True},
        {"architecture": "base"},
        {"spec": bombus.load_spec(fp8, norm_epsilon=1e-3)},
    ]
    assert len({key_of(fp8, **options) for options in asked}) == len(asked)


def test_ties_are_part_of_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint whose head is a copy of its embedding, as one and as two."""
    folder = Path(shutil.copytree(tiny("llama", "bf16", **SIZES), tmp_path / "checkpoint"))
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, folder / WEIGHTS)
    untied = bombus.load_spec(folder, tie_word_embeddings=False)
    assert bombus.load_spec(folder).tie_word_embeddings
    assert key_of(folder) != key_of(folder, spec=untied)
    for spec, count in ((None, 11), (untied, 12)):
        loaded = bombus.load_model(folder, spec=spec, cache=tmp_path / "cache")
        assert len(as_bytes(loaded.params)) == count
        assert as_bytes(loaded.params) == as_bytes(bombus.load_model(folder, spec=spec).params)


def test_the_same_key_for_everything_that_does_not(fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spelling of the path, links, what parameters are computed in, how a policy is written."""
    key = key_of(fp8)
    (tmp_path / "link").symlink_to(fp8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for repo in ("checkpoint", "./link", str(fp8), fp8 / ".." / "link", "~/checkpoint"):
        assert key_of(repo) == key
    assert key_of(tmp_path, subfolder="checkpoint") == key
    for options in ({"progress": True}, {"strict": False}, {"policy": "bf16"}):
        assert key_of(fp8, **options) == key
    computed = [{"default": {"params": "bf16", "compute": compute}} for compute in ("bf16", "f32")]
    assert key_of(fp8, policy=computed[0]) == key_of(fp8, policy=computed[1]) == key
    assert key_of(fp8, policy="int8") == key_of(fp8, policy=bombus.create_policy(params="int8"))
    loads = [bombus.load_model(repo, cache="cache") for repo in ("checkpoint", "link", fp8)]
    assert names(tmp_path / "cache") == [f"{key}.safetensors"]
    assert as_bytes(loads[0].params) == as_bytes(loads[2].params)


@pytest.mark.parametrize("shards", [1, 3])
def test_another_file_in_the_place_of_one(shards: int, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """The same size at another time, written into or replaced, and the same time: each shard counts."""
    folder = Path(shutil.copytree(tiny("llama", "bf16", shards=shards, **SIZES), tmp_path / "checkpoint"))
    seen = [key_of(folder)]
    for path in sorted(folder.glob("*.safetensors")):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        seen.append(key_of(folder))
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        os.replace(other, path)
        seen.append(key_of(folder))
    assert len(set(seen)) == len(seen) == 1 + 2 * shards
    os.utime(folder / "config.json")
    assert key_of(folder) == seen[-1]


def test_files_of_scales_and_of_copies_count(fp8: Path) -> None:
    """Each in a file of its own: what is multiplied, and what is only compared."""
    tensors = read_tensors(fp8)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    weight_map = {
        name: "model-copy.safetensors"
        if name == "lm_head.weight"
        else f"model-{'scales' if name.endswith('scale_inv') else 'rest'}.safetensors"
        for name in tensors
    }
    for file in set(weight_map.values()):
        save_file({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, fp8 / file)
    (fp8 / WEIGHTS).unlink()
    (fp8 / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    seen = [key_of(fp8)]
    for file in sorted(set(weight_map.values())):
        os.utime(fp8 / file, ns=(1, 1))
        seen.append(key_of(fp8))
    assert len(set(seen)) == 4


def test_other_values_are_loaded(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Not those of before, which have the same shapes."""
    folder = Path(shutil.copytree(tiny("llama", "bf16", **SIZES), tmp_path / "checkpoint"))
    before = as_bytes(bombus.load_model(folder, cache=tmp_path / "cache").params)
    shutil.copyfile(tiny("llama", "bf16", seed=1, **SIZES) / WEIGHTS, folder / WEIGHTS)
    after = as_bytes(bombus.load_model(folder, cache=tmp_path / "cache").params)
    assert after == as_bytes(bombus.load_model(folder).params) != before
    assert len(names(tmp_path / "cache")) == 2


def test_what_config_json_says_of_the_same_bytes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """GPTQ's two versions differ in what zero points mean, and the files are the same."""
    convention = CASES["gptq"]
    base = tiny("llama", "f32", num_blocks=1, vocab_size=34, **CONVENTION_SIZES[convention.base])
    folder = write_convention(convention, base, tmp_path / "checkpoint").folder
    cache = tmp_path / "cache"
    before = as_bytes(bombus.load_model(folder, cache=cache).params)
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit(folder, quantization_config={**section, "checkpoint_format": "gptq_v2"})
    after = as_bytes(bombus.load_model(folder, cache=cache).params)
    assert after == as_bytes(bombus.load_model(folder).params) != before


def test_every_shard_of_metas_layout(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A tensor is in pieces, one in each: the second may change alone."""
    base = tiny("llama", "f32", **SIZES)
    pieces = meta_tensors(base, shards=2)
    folder, cache = write_meta(tmp_path / "meta", pieces, meta_params(base)), tmp_path / "cache"
    before = as_bytes(bombus.load_model(folder, cache=cache).params)
    pieces[1]["layers.0.feed_forward.w1.weight"] += 1
    write_meta(tmp_path / "other", pieces, meta_params(base))
    shutil.copyfile(tmp_path / "other" / "consolidated.01.pth", folder / "consolidated.01.pth")
    after = as_bytes(bombus.load_model(folder, cache=cache).params)
    assert after == as_bytes(bombus.load_model(folder).params) != before


def hub_cache(folder: Path, weights: Path, digest: str, *, shared: bool = False, commit: str = COMMIT) -> Path:
    """The cache of huggingface_hub with one repository in it, whose weights are a blob of this name."""
    repository = folder / "models--owner--tiny"
    snapshot = repository / "snapshots" / commit
    blob = (folder / "blobs" / digest[:2] if shared else repository / "blobs") / digest
    for place in (snapshot, blob.parent, repository / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copyfile(weights / WEIGHTS, blob)
    shutil.copyfile(weights / "config.json", snapshot / "config.json")
    (snapshot / WEIGHTS).unlink(missing_ok=True)
    (snapshot / WEIGHTS).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("shared", [False, True], ids=["blobs", "shared blobs"])
def test_on_the_hub_the_contents_are_the_key(shared: bool, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Not the time, the commit, the cache or how one gets there; another digest is another file."""
    base = tiny("llama", "bf16", **SIZES)
    snapshot = hub_cache(tmp_path / "hub", base, DIGEST, shared=shared)
    key = key_of(snapshot)
    assert key_of("owner/tiny", cache_dir=tmp_path / "hub", local_files_only=True) == key
    os.utime(snapshot / WEIGHTS)
    assert key_of(snapshot) == key
    assert key_of(hub_cache(tmp_path / "hub", base, DIGEST, shared=shared, commit="f" * 40)) == key
    assert key_of(hub_cache(tmp_path / "another", base, DIGEST, shared=shared)) == key
    assert key_of(hub_cache(tmp_path / "other", base, DIGEST[::-1], shared=shared)) != key
    cache = tmp_path / "cache"
    loads = [
        bombus.load_model(snapshot, cache=cache),
        bombus.load_model("owner/tiny", cache_dir=tmp_path / "another", local_files_only=True, cache=cache),
    ]
    assert as_bytes(loads[0].params) == as_bytes(loads[1].params)
    assert names(cache) == [f"{key}.safetensors"]


def test_a_folder_called_blobs_is_not_the_hubs(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Its files are named as anywhere else, and the name says nothing of what is in them."""
    folder = Path(shutil.copytree(tiny("llama", "bf16", **SIZES), tmp_path / "blobs"))
    before = as_bytes(bombus.load_model(folder, cache=tmp_path / "cache").params)
    shutil.copyfile(tiny("llama", "bf16", seed=1, **SIZES) / WEIGHTS, folder / WEIGHTS)
    assert as_bytes(bombus.load_model(folder, cache=tmp_path / "cache").params) != before


def test_a_checkpoint_that_changes_while_it_is_read_is_not_kept(
    fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may be of the old or of the new one."""
    real, cache = cache_module.stream_parameters, tmp_path / "cache"

    def stream(*arguments: Any) -> Any:
        yield from real(*arguments)
        os.utime(fp8 / WEIGHTS, ns=(0, 0))

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "stream_parameters", stream)
        with pytest.raises(bombus.CheckpointError) as caught:
            bombus.load_model(fp8, cache=cache)
    assert str(caught.value) == f"{fp8}: checkpoint: was changed while it was read. Load it again"
    assert names(cache) == []
    bombus.load_model(fp8, cache=cache)
    assert len(names(cache)) == 1


def test_a_checkpoint_that_is_gone(fp8: Path, tmp_path: Path) -> None:
    """The folder, its weights, its weights since they were planned: an error that says so, also with a full cache."""
    cache = tmp_path / "cache"
    bombus.load_model(fp8, cache=cache)
    plan = bombus.load_plan(fp8).plan
    (fp8 / WEIGHTS).unlink()
    with pytest.raises(bombus.CheckpointError) as caught:
        cache_key(plan)
    assert str(caught.value) == f"{fp8 / WEIGHTS}: file: cannot be read: No such file or directory"
    with pytest.raises(bombus.CheckpointError) as caught:
        bombus.load_model(fp8, cache=cache)
    assert str(caught.value).startswith(f"{fp8}: weights: none of {WEIGHTS}, ")
    shutil.rmtree(fp8)
    with pytest.raises(bombus.HubError) as caught_hub:
        bombus.load_model(fp8, cache=cache)
    assert str(caught_hub.value).startswith(f"{fp8}: repository: there is no such folder")
    assert len(names(cache)) == 1


def test_what_is_made_at_random_is_not_kept(fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """strict=False with a parameter missing; without one it is kept."""
    made, cache = count_conversions(monkeypatch), tmp_path / "cache"
    bombus.load_model(fp8, strict=False, cache=cache)
    assert len(names(cache)) == len(made) == 1
    tensors = read_tensors(fp8)
    del tensors["model.norm.weight"]
    save_file(tensors, fp8 / WEIGHTS)
    loaded = bombus.load_model(fp8, strict=False, cache=cache)
    assert loaded.report.initialised == ("output_norm.scale",)
    assert len(names(cache)) == len(made) == 1

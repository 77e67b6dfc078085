"""The headers of a checkpoint, single or sharded: everything that is missing or out of place is listed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from meta_files import as_torch

from bombus.loader.checkpoint import read_headers
from bombus.loader.repository import open_repository
from bombus.policies.errors import CheckpointError

INDEX = "model.safetensors.index.json"
ONE, TWO, THREE = (f"model-0000{index}-of-00003.safetensors" for index in (1, 2, 3))


def write(folder, shards, weight_map=None):
    """Shards of small tensors with distinct values, and their index (by default the true one)."""
    number = 0
    for shard, names in shards.items():
        values = {name: np.full((2,), number := number + 1, np.float32) for name in names}
        safetensors.numpy.save_file(values, folder / shard)
    if weight_map is None:
        weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def headers(folder):
    return read_headers(open_repository(folder))


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        headers(folder)
    return str(caught.value)


def test_shards_are_read_by_the_index(tmp_path):
    write(tmp_path, {ONE: ["a", "b"], TWO: ["c"]})
    found = headers(tmp_path)
    assert {name: (info.file.name, info.read(name).tolist()) for name, info in found.items()} == {
        "a": (ONE, [1.0, 1.0]),
        "b": (ONE, [2.0, 2.0]),
        "c": (TWO, [3.0, 3.0]),
    }


def test_missing_shards_are_all_listed_with_what_they_hold(tmp_path):
    write(tmp_path, {ONE: ["a", "b"], TWO: ["c"], THREE: ["d", "e", "f"]})
    (tmp_path / ONE).unlink()
    (tmp_path / THREE).unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}: 2 problems\n"
        f"  - shard {ONE}: is missing, with 2 tensors. Download it again\n"
        f"  - shard {THREE}: is missing, with 3 tensors. Download it again"
    )


def test_tensors_that_the_index_promises_are_all_listed(tmp_path):
    write(tmp_path, {ONE: ["a"], TWO: ["b"]}, {"a": ONE, "b": TWO, "c": ONE, "d": TWO})
    assert refusal(tmp_path) == (
        f"{tmp_path}: 2 problems\n"
        f"  - tensor c: is not in {ONE}, where {INDEX} says it is\n"
        f"  - tensor d: is not in {TWO}, where {INDEX} says it is"
    )


def test_a_tensor_in_two_shards_is_an_error(tmp_path):
    write(tmp_path, {ONE: ["a"], TWO: ["a", "b"]}, {"a": ONE, "b": TWO})
    assert refusal(tmp_path) == f"{tmp_path}: tensor a: is in {TWO}, but {INDEX} says {ONE}"


def test_a_tensor_in_the_wrong_shard_is_named_from_both_sides(tmp_path):
    write(tmp_path, {ONE: ["a", "c"], TWO: ["b"]}, {"a": ONE, "b": TWO, "c": TWO})
    assert refusal(tmp_path) == (
        f"{tmp_path}: 2 problems\n"
        f"  - tensor c: is not in {TWO}, where {INDEX} says it is\n"
        f"  - tensor c: is in {ONE}, but {INDEX} says {TWO}"
    )


def test_a_tensor_that_the_index_does_not_name_is_not_lost(tmp_path):
    write(tmp_path, {ONE: ["a", "extra"]}, {"a": ONE})
    assert refusal(tmp_path) == f"{tmp_path}: tensor extra: is in {ONE}, but {INDEX} says nothing"


def test_a_shard_on_disk_that_the_index_does_not_name_is_not_opened(tmp_path):
    write(tmp_path, {ONE: ["a"]})
    (tmp_path / TWO).write_bytes(b"not a safetensors file")
    assert list(headers(tmp_path)) == ["a"]


def test_a_damaged_shard_is_named(tmp_path):
    write(tmp_path, {ONE: ["a"], TWO: ["b"]})
    os.truncate(tmp_path / TWO, (tmp_path / TWO).stat().st_size - 3)
    assert refusal(tmp_path).startswith(f"{tmp_path / TWO}: file: is cut short: 3 bytes are missing")


@pytest.mark.parametrize(
    "name",
    [
        "{tmp}/outside.safetensors",
        "../outside.safetensors",
        "..",
        "",
        "./model.safetensors",
        "sub/model.safetensors",
        r"..\outside.safetensors",
        r"C:\outside.safetensors",
        "model.bin",
        "config.json",
    ],
)
def test_a_shard_name_that_is_no_plain_file_name_is_refused_unopened(tmp_path, name):
    folder = tmp_path / "repository"
    folder.mkdir()
    name = name.format(tmp=tmp_path)
    # A FIFO blocks whoever opens it: the test would hang, not pass, if the name were followed.
    os.mkfifo(tmp_path / "outside.safetensors")
    write(folder, {}, {"a": name})
    assert refusal(folder) == (f"{folder / INDEX}: shard {name!r}: must be the plain name of a .safetensors file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "file: must hold a JSON object (found [])"),
        ('"model.safetensors"', "file: must hold a JSON object (found 'model.safetensors')"),
        ("{", "file: is not valid JSON: "),
        ("[" * 100_000, "file: is not valid JSON: "),
        ("{}", "weight_map: must map tensor names to file names"),
        ('{"weight_map": []}', "weight_map: must map tensor names to file names"),
        ('{"weight_map": null}', "weight_map: must map tensor names to file names"),
        ('{"weight_map": {"a": 1}}', "weight_map: must map tensor names to file names"),
        ('{"weight_map": {"a": ["model.safetensors"]}}', "weight_map: must map tensor names to file names"),
    ],
)
def test_a_malformed_index_is_refused_by_name(tmp_path, text, message):
    (tmp_path / INDEX).write_text(text, encoding="utf-8")
    assert refusal(tmp_path).startswith(f"{tmp_path / INDEX}: {message}")


def test_an_index_that_is_not_text_is_refused_by_name(tmp_path):
    (tmp_path / INDEX).write_bytes(b"\xff\xfe{}")
    assert refusal(tmp_path).startswith(f"{tmp_path / INDEX}: file: is not valid JSON: ")


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, ONE])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused_unopened(tmp_path, name, make):
    if name == ONE:
        write(tmp_path, {}, {"a": ONE})
    make(tmp_path / name)
    assert refusal(tmp_path) == (f"{tmp_path / name}: file: is not a regular file. Replace it by the real file")


def test_links_into_the_blobs_of_the_hugging_face_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "0123", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    safetensors.numpy.save_file({"a": np.ones((2,), np.float32)}, blobs / "4567")
    (snapshot / "model.safetensors").symlink_to("../../blobs/4567")
    assert headers(snapshot)["a"].read("a").tolist() == [1.0, 1.0]


def test_a_link_to_nothing_says_so(tmp_path):
    write(tmp_path, {}, {"a": ONE})
    (tmp_path / ONE).symlink_to("../../blobs/4567")
    target = (tmp_path / "../../blobs/4567").resolve()
    assert refusal(tmp_path) == (
        f"{tmp_path / ONE}: file: is a link to {target}, which is not there. Download the file again"
    )


@pytest.mark.parametrize("sharded", [False, True])
def test_a_git_lfs_pointer_is_called_one(tmp_path, sharded):
    name = ONE if sharded else "model.safetensors"
    if sharded:
        write(tmp_path, {}, {"a": ONE})
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "utf-8")
    assert refusal(tmp_path) == (
        f"{tmp_path / name}: file: is a Git LFS pointer, not the weights. Run `git lfs pull` in the folder, "
        "or download the file again, for example with `hf download`"
    )


def test_a_folder_without_weights_says_what_is_looked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert refusal(tmp_path) == (
        f"{tmp_path}: weights: none of model.safetensors, {INDEX}, pytorch_model.bin, pytorch_model.bin.index.json, "
        "consolidated.00.pth is there. Point at the folder of a Hugging Face checkpoint"
    )


def test_pickles_are_read_by_their_index(tmp_path):
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, shard in weight_map.items():
        (tmp_path / shard).write_bytes(as_torch({name: np.full((2,), ord(name), np.float32)}))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    assert {name: info.read(name).tolist() for name, info in headers(tmp_path).items()} == {
        "a": [97] * 2,
        "b": [98] * 2,
    }


def test_safetensors_come_before_pickles(tmp_path):
    """A damaged pickle beside them is not even opened."""
    safetensors.numpy.save_file({"a": np.ones((2,), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    assert list(headers(tmp_path)) == ["a"]


def test_an_index_of_pickles_names_pickles_only(tmp_path):
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}), encoding="utf-8")
    assert refusal(tmp_path) == f"{index}: shard 'model.safetensors': must be the plain name of a .bin file"

"""`bombus convert`, `bombus cache ls` and `rm`, `generate --cache`: what they print, and with which status."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from caching_process import digest
from command_line import SIZES, Run, error, output
from converted import as_bytes
from failing_system import fail, names

import bombus
from bombus.cli import main
from bombus.loader.cache import cached_entries
from bombus.loader.report import readable_bytes


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments)`: (exit status, standard output, standard error) of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's, for a wrong call
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, not made yet."""
    monkeypatch.setenv("BOMBUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fp8(tiny: Callable[..., Path]) -> Path:
    return tiny("qwen3", "f8_e4m3fn", **SIZES)


@pytest.fixture
def filled(fp8: Path, cache: Path) -> list[str]:
    """Three sets of parameters in the cache; their keys, the largest first."""
    for policy in ("f32", None, "int8"):
        bombus.load_model(fp8, policy=policy, cache="auto")
    return [entry.key for entry in cached_entries()]


def test_convert_writes_a_folder_and_says_how_large_it_is(run: Run, fp8: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    plan = bombus.load_plan(fp8, policy="int8")
    before, after = readable_bytes(plan.file_nbytes), readable_bytes(plan.nbytes)
    assert output(run, "convert", fp8, "-o", made, "--policy", "int8") == f"{made}: {after}, from {before} in {fp8}\n"
    loaded = bombus.load_model(made, preserve_source_types=True)
    assert as_bytes(loaded.params) == as_bytes(bombus.load_model(fp8, policy="int8").params)
    assert bombus.load_tokenizer(made).encode("Bombus") == bombus.load_tokenizer(fp8).encode("Bombus")


def test_convert_takes_what_load_model_takes(run: Run, fp8: Path, tmp_path: Path) -> None:
    """A subfolder, types that are kept, another head; and the size of shards."""
    made = tmp_path / "made"
    place = ["convert", fp8.parent, "--subfolder", fp8.name, "--output", made, "--architecture", "base"]
    said = output(run, *place, "--preserve-source-types", "--max-shard-bytes", "10000")
    assert said.startswith(f"{made}: ")
    assert said.endswith(f" in {fp8.parent}\n")
    assert json.loads((made / "config.json").read_text())["architectures"] == ["Qwen3Model"]
    assert len(json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]) > 10
    loaded = bombus.load_model(made, preserve_source_types=True)
    kept = bombus.load_model(fp8, architecture="base", preserve_source_types=True)
    assert as_bytes(loaded.params) == as_bytes(kept.params)


def test_what_convert_refuses(run: Run, fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder, itself, a policy that there is not, a full disk: one line, and nothing is written."""
    status, out, err = run("convert", fp8)
    assert (status, out) == (2, "")
    assert err.endswith("bombus convert: error: the following arguments are required: -o/--output\n")
    before = names(fp8)
    assert error(run, "convert", fp8, "-o", fp8) == (
        f"bombus: CheckpointError: {fp8}: folder: is the checkpoint itself. Give another folder"
    )
    assert error(run, "convert", fp8, "-o", tmp_path / "made", "--policy", "int9").startswith(
        "bombus: PolicyError: type 'int9': is not a storage format."
    )
    assert error(run, "convert", tmp_path / "no", "-o", tmp_path / "made").startswith("bombus: HubError: ")
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert error(run, "convert", fp8, "-o", file) == (
        f"bombus: CheckpointError: {file}: folder: cannot be made: File exists. Check the permissions of the folder "
        "that it is to be in, or give another"
    )
    fail(monkeypatch, "pwrite", OSError(28, "No space left on device"))
    assert error(run, "convert", fp8, "-o", tmp_path / "made") == (
        f"bombus: CheckpointError: {tmp_path / 'made' / 'model.safetensors'}: file: could not be written: No space "
        "left on device. Check the free space and the permissions of the folder"
    )
    assert names(tmp_path / "made") == []
    assert names(fp8) == before


def test_ls_lists_what_is_kept(run: Run, filled: list[str], fp8: Path, cache: Path) -> None:
    sizes = [(cache / f"{key}.safetensors").stat().st_size for key in filled]
    policies = [entry.policy for entry in cached_entries()]
    lines = output(run, "cache", "ls").splitlines()
    assert lines == [
        *(
            f"{key}  {readable_bytes(size):>10}  {fp8}  {policy}"
            for key, size, policy in zip(filled, sizes, policies, strict=True)
        ),
        f"3 in {cache}, {readable_bytes(sum(sizes))}",
    ]
    assert json.loads(output(run, "cache", "ls", "--json")) == [
        {
            "key": key,
            "repository": str(fp8),
            "policy": policy,
            "path": str(cache / f"{key}.safetensors"),
            "nbytes": size,
        }
        for key, size, policy in zip(filled, sizes, policies, strict=True)
    ]


def test_ls_of_nothing(run: Run, cache: Path) -> None:
    assert output(run, "cache", "ls") == f"0 in {cache}, 0 B\n"
    assert output(run, "cache", "ls", "--json") == "[]\n"
    assert output(run, "cache", "rm", "--all") == "0 removed, 0 B\n"
    assert not cache.exists()


def test_rm_removes_keys_and_beginnings_of_keys(run: Run, filled: list[str], cache: Path) -> None:
    """And says how much room that makes; what is in use stays in memory."""
    (cache / "mine.txt").write_text("mine")
    sizes = {key: (cache / f"{key}.safetensors").stat().st_size for key in filled}
    assert output(run, "cache", "rm", filled[0][:12]) == f"1 removed, {readable_bytes(sizes[filled[0]])}\n"
    assert names(cache) == sorted([*(f"{key}.safetensors" for key in filled[1:]), "mine.txt"])
    left = readable_bytes(sizes[filled[1]] + sizes[filled[2]])
    assert output(run, "cache", "rm", filled[2], filled[1], filled[2][:9]) == f"2 removed, {left}\n"
    assert names(cache) == ["mine.txt"]


def test_rm_all(run: Run, filled: list[str], cache: Path) -> None:
    total = readable_bytes(sum(path.stat().st_size for path in cache.iterdir()))
    assert output(run, "cache", "rm", "--all") == f"3 removed, {total}\n"
    assert names(cache) == []


def test_what_rm_refuses(run: Run, filled: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is not there, an empty one, nothing at all, a key beside --all, a file that the system keeps."""
    for key in ("nothing", ""):
        assert error(run, "cache", "rm", key) == (
            f"bombus: CheckpointError: {cache}: key {key!r}: is not in the cache. See `bombus cache ls`"
        )
    status, out, err = run("cache", "rm")
    assert (status, out) == (2, "")
    assert err.endswith("bombus cache rm: error: one of the arguments KEY --all is required\n")
    status, out, err = run("cache", "rm", filled[0], "--all")
    assert (status, out) == (2, "")
    assert "not allowed with argument" in err
    status, out, err = run("cache")
    assert (status, out) == (2, "")
    assert err.endswith("bombus cache: error: the following arguments are required: COMMAND\n")
    fail(monkeypatch, "unlink", PermissionError(13, "Permission denied"))
    assert error(run, "cache", "rm", "--all") == (
        f"bombus: CheckpointError: {cache / filled[0]}.safetensors: file: could not be removed: Permission denied. "
        "Check the permissions of the folder"
    )
    assert len(names(cache)) == 3


def test_generate_keeps_what_it_has_converted(
    run: Run, fp8: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the user's cache, or in a folder; the model is the same from the checkpoint, the first and the second time."""
    # The text is a digest of the parameters: what a model says of them is compiled for seconds, and tested elsewhere.
    monkeypatch.setattr(bombus, "generate", lambda loaded, *_, **options: [digest(loaded.params)])
    call = ("generate", fp8, "--prompt", "Bombus ", "--max-new-tokens", "4")
    text = output(run, *call)
    assert text == f"Bombus {digest(bombus.load_model(fp8).params)}\n"
    assert not cache.exists()
    assert output(run, *call, "--cache") == text
    (path,) = cache.iterdir()
    inode = os.stat(path).st_ino
    assert output(run, *call, "--cache") == text
    assert [os.stat(path).st_ino for path in cache.iterdir()] == [inode]
    assert output(run, *call, "--cache", tmp_path / "other") == text
    assert names(tmp_path / "other") == names(cache)


def test_generate_with_a_cache_that_cannot_be_written(run: Run, fp8: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert error(run, "generate", fp8, "--prompt", "a", "--cache", file / "cache") == (
        f"bombus: CheckpointError: {file / 'cache'}: folder: cannot be made: Not a directory. Check the permissions "
        "of the folder that it is to be in, or give another"
    )

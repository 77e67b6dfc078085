"""Rows 57 to 66: tokenizers, templates, generation, and files that change or do not come while they are read."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_client import attach
from hub_faults import cut
from hub_server import HubServer
from malformed import WEIGHTS, case, shard

import bombus
from bombus import CheckpointError, GenerationError, HubError, SpecError
from bombus.loader.tensors import TensorInfo

Action = Callable[[], Any]


@case("57", GenerationError)
def tokenizer_larger_than_the_embedding(folder: Path) -> Action:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"more{number}": 5000 + number for number in range(3)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    loaded = bombus.load_model(folder)
    return lambda: bombus.generate(loaded, bombus.load_tokenizer(folder), "a", max_new_tokens=1)


def _template(name: str, source: str, rows: str) -> None:
    def spoil(folder: Path) -> Action:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": source}))
        tokenizer = bombus.load_tokenizer(folder)
        return lambda: tokenizer.apply_chat_template([{"role": "user", "content": "x"}])

    spoil.__name__ = name
    case(rows, GenerationError, traced="nested_loops" not in name)(spoil)


_template("template_that_escapes", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "58")
_template("template_of_300_mb", "{{ 'a' * 300000000 }}", "59")
_template(
    "template_of_nested_loops",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "59",
)
_template(
    "template_that_doubles",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "59",
)


@case("60", SpecError)
def generation_config_out_of_range(folder: Path) -> None:
    values = {"do_sample": True, "top_p": 2, "temperature": float("nan"), "eos_token_id": -1}
    (folder / "generation_config.json").write_text(json.dumps(values).replace("NaN", "1e999"))


@case("60", SpecError)
def eos_outside_the_vocabulary(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 99999]}))


def _on_a_hub(folder: Path, action: Callable[[HubServer, Path], Any]) -> Action:
    """What to do with a hub that serves the folder, and the cache of this process."""

    def run() -> Any:
        with (
            HubServer() as hub,
            pytest.MonkeyPatch.context() as patch,
            tempfile.TemporaryDirectory() as home,
        ):
            hub.add("owner/tiny", folder)
            attach(hub, patch, Path(home))
            return action(hub, Path(home))

    return run


@case("61", HubError)
def download_that_breaks_off(folder: Path) -> Action:
    def load(hub: HubServer, home: Path) -> None:
        hub.fault("GET", WEIGHTS, cut(150, reset=True), times=99)
        try:
            bombus.load_model("owner/tiny")
        finally:
            hub.forget_faults()
            bombus.load_model("owner/tiny")

    return _on_a_hub(folder, load)


@case("62", CheckpointError)
def full_disk(folder: Path) -> Action:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save() -> None:
        before = (folder / WEIGHTS).read_bytes()
        loaded = bombus.load_model(folder)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "pwrite", full)
                bombus.save_model(loaded, folder)
        finally:
            assert (folder / WEIGHTS).read_bytes() == before
            assert not list(folder.glob(".*partial"))

    return save


@case("63")
def killed_while_writing(folder: Path) -> Action:
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        from bombus.loader.safetensors import read_header
        from bombus.loader.write import TensorWriter

        path = Path(sys.argv[1])
        tensors = read_header(path)
        with TensorWriter(path, {name: (info.shape, info.dtype) for name, info in tensors.items()}) as writer:
            name, info = tensors.popitem()
            writer.write(name, info.read(name))
            os.kill(os.getpid(), signal.SIGKILL)
    """

    def save() -> None:
        before = (folder / WEIGHTS).read_bytes()
        ended = subprocess.run([sys.executable, "-c", script, str(folder / WEIGHTS)])
        assert ended.returncode == -signal.SIGKILL
        assert list(folder.glob(".*partial"))
        assert (folder / WEIGHTS).read_bytes() == before
        bombus.save_model(bombus.load_model(folder), folder)
        assert not list(folder.glob(".*partial"))

    return save


@case("64")
def two_loads_at_once(folder: Path) -> Action:
    """Into one cache, in processes that share nothing else."""

    def load() -> None:
        script = "import sys, bombus; print(bombus.load_model(sys.argv[1], cache=sys.argv[2]).report.nbytes)"
        command = [sys.executable, "-c", script, str(folder), str(folder / "cache")]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        sizes = {process.communicate()[0] for process in processes}
        assert len(sizes) == 1
        assert int(sizes.pop()) > 0
        assert [path.suffix for path in (folder / "cache").iterdir()] == [".safetensors"]

    return load


@case("65", CheckpointError)
def file_cut_short_while_it_is_read(folder: Path) -> Action:
    def load() -> None:
        read = TensorInfo.read

        def then(info: TensorInfo, name: str) -> Any:
            os.truncate(folder / WEIGHTS, 5000)
            return read(info, name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TensorInfo, "read", then)
            bombus.load_model(folder)

    return load


@case("66", HubError)
def offline_with_an_incomplete_snapshot(folder: Path) -> Action:
    shard(folder)

    def load(hub: HubServer, home: Path) -> None:
        bombus.load_model("owner/tiny")
        for name in ("one.safetensors", "two.safetensors"):
            for path in home.glob(f"hub/models--*/snapshots/*/{name}"):
                path.unlink()
        count = len(hub.requests)
        try:
            bombus.load_model("owner/tiny", local_files_only=True)
        finally:
            assert len(hub.requests) == count

    return _on_a_hub(folder, load)

"""`bombus env`: what it prints, with kernels and without."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import flax
import jax
import jaxlib
import pytest
from command_line import Run, error, output

import bombus
from bombus.evaluation.machine import this_machine
from bombus.kernels import native

MISSING = "they were not built when the package was installed; a C++ compiler builds them"
BUILD = "install a C++ compiler (g++ or clang++) and then Bombus again: pip install --force-reinstall --no-deps bombus"


@pytest.fixture
def programs() -> Iterator[None]:
    """No folder of programs is chosen yet, which a command before this may have done in this process."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: None) -> Path:
    """A cache of 2500 bytes of parameters and 3 of programs."""
    monkeypatch.setenv("BOMBUS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "compiled" / "programs").mkdir(parents=True)
    (tmp_path / "cache" / "key.safetensors").write_bytes(bytes(2500))
    (tmp_path / "cache" / "compiled" / "programs" / "program").write_bytes(b"abc")
    (tmp_path / "cache" / "gone").symlink_to(tmp_path / "nowhere")
    return tmp_path / "cache"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two instruction sets, as on an older processor."""
    monkeypatch.delenv(native.VARIABLE, raising=False)
    monkeypatch.setattr(native, "library", lambda: native.Library(loaded=None))
    monkeypatch.setattr(native, "kernels_in_use", lambda: "avx2")
    monkeypatch.setattr(native, "available", lambda: ("avx2", "plain"))


def without(monkeypatch: pytest.MonkeyPatch, reason: str, available: tuple[str, ...]) -> None:
    """No kernels, for this reason."""
    monkeypatch.setattr(native, "library", lambda: native.Library(loaded=None, reason=reason))
    monkeypatch.setattr(native, "available", lambda: available)


def lines(run: Run) -> dict[str, str]:
    """First word -> the rest, of every line that has one in front."""
    found = [line for line in output(run, "env").splitlines() if not line.startswith(" ")]
    return {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in found}


def test_env(run: Run, cache: Path, kernels: None) -> None:
    machine = this_machine()
    size = os.lstat(cache / "gone").st_size
    assert lines(run) == {
        "bombus": bombus.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "processor": f"{machine.processor}, {machine.cores} cores",
        "instructions": ", ".join(machine.instructions) or "none that matter here",
        "system": f"{platform.system()} {platform.machine()}",
        "platform": f"cpu: {', '.join(map(str, jax.devices()))}",
        "kernels": "avx2, the best for this processor",
        "available": "avx2, plain, xla; choose with BOMBUS_KERNELS",
        "parameters": f"{cache}, {(2500 + size) / 1000:.2f} kB",
        "programs": f"{cache}/compiled, 3 B",
    }


def test_env_in_json(run: Run, cache: Path, kernels: None) -> None:
    found = json.loads(output(run, "env", "--json"))
    assert list(found) == ["versions", "machine", "devices", "kernels", "folders"]
    assert found["versions"]["jaxlib"] == jaxlib.__version__
    assert found["machine"] == this_machine().to_json()
    assert found["devices"] == {"platform": "cpu", "names": list(map(str, jax.devices()))}
    assert found["kernels"] == {
        "in_use": "avx2",
        "available": ["avx2", "plain"],
        "variable": None,
        "reason": None,
        "remedy": None,
    }
    assert found["folders"]["programs"] == {"path": str(cache / "compiled"), "bytes": 3}


def test_programs_elsewhere_and_folders_that_are_not_there(
    run: Run, tmp_path: Path, kernels: None, programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMBUS_CACHE", str(tmp_path / "none"))
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "one").write_bytes(bytes(12))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    found = json.loads(output(run, "env", "--json"))["folders"]
    assert found == {
        "parameters": {"path": str(tmp_path / "none"), "bytes": 0},
        "programs": {"path": str(tmp_path / "programs"), "bytes": 12},
    }
    assert not (tmp_path / "none").exists()


def test_kernels_that_were_chosen(run: Run, kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "avx2")
    assert lines(run)["kernels"] == "avx2, BOMBUS_KERNELS=avx2"


def test_kernels_that_are_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    without(monkeypatch, MISSING, ())
    text = output(run, "env")
    assert f"kernels      XLA's own operations, several times slower on CPU: {MISSING}\n" in text
    assert f"available    xla; choose with BOMBUS_KERNELS\n             {BUILD}\n" in text
    found = json.loads(output(run, "env", "--json"))["kernels"]
    assert found == {"in_use": "xla", "available": [], "variable": None, "reason": MISSING, "remedy": BUILD}


def test_kernels_that_were_switched_off() -> None:
    """In a process of its own, as the choice is made once."""
    environment = {**os.environ, native.VARIABLE: "xla", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "bombus", "env"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nkernels      XLA's own operations, several times slower on CPU: BOMBUS_KERNELS=xla\n" in done.stdout
    assert "\n             unset BOMBUS_KERNELS to use the C++ kernels\n" in done.stdout


def test_a_choice_that_is_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "sse")
    native.library.cache_clear()
    try:
        said = error(run, "env")
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
    known = ", ".join((native.XLA, *native.NAMES))
    assert said == f"bombus: PolicyError: BOMBUS_KERNELS=sse: is no name of kernels (expected {known})"

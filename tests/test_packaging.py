"""The wheel holds what the checkout holds: built through the sdist from a copy, installed elsewhere, run there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bombus.loader.shipped import SHIPPED

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders() -> dict[str, Path]:
    """Import name -> folder of every package on disk."""
    found = {path.parent.name: path.parent for path in ROOT.glob("*/__init__.py")}
    return {("bombus" if name == "bombus" else f"bombus.{name}"): path for name, path in found.items()}


def test_the_disk_and_pyproject_agree(pyproject: dict[str, Any]) -> None:
    setuptools = pyproject["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(folders()), "packages in pyproject.toml, folders on disk"
    expected = {name: path.name for name, path in folders().items() if name != "bombus"}
    assert setuptools["package-dir"] == expected, "package-dir in pyproject.toml, folders on disk"


def test_every_folder_has_its_bare_name_banned(pyproject: dict[str, Any]) -> None:
    banned = pyproject["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert {f"bombus.{name}" for name in banned} == set(folders()) - {"bombus"}


@pytest.mark.parametrize("name", sorted(folders()))
def test_packages_are_one_level_deep(name: str) -> None:
    nested = [path.relative_to(ROOT) for path in folders()[name].glob("*/**/*.py")]
    assert not nested, "setuptools would leave a nested package out of the wheel"


@dataclass(frozen=True)
class Built:
    """A wheel, and the folder that it is installed in."""

    wheel: Path
    target: Path

    def python(self, *arguments: str, cwd: Path) -> str:
        """The standard output of Python on the installed wheel, in a folder that holds none of our sources."""
        environment = {**os.environ, "PYTHONPATH": str(self.target)}
        return _run([sys.executable, *arguments], cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packaging")
    # A copy, because building writes build/ and bombus.egg-info/ beside the sources.
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    for name in (*(path.name for path in folders().values()), "tests", "notebooks", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    # Without --wheel: the sdist first, and the wheel out of the sdist.
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)], cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    target = folder / "target"
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    _run([sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), str(wheel)], cwd=folder)
    return Built(wheel=wheel, target=target)


def test_the_wheel_holds_every_module_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    # The library of C++ kernels is there where there is a compiler; tests/test_packaging_kernels.py has both ways.
    inside = {name for name in names if ".dist-info/" not in name and not name.startswith("bombus/kernels/_native")}
    expected = {
        "/".join((*package.split("."), path.name))
        for package, folder in folders().items()
        for path in folder.iterdir()
        if path.suffix == ".py"
    }
    presets = {f"bombus/policies/presets/{path.name}" for path in (ROOT / "policies" / "presets").glob("*.json")}
    assert len(presets) >= 3
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bombus" / "shipped").glob("*/*")}
    assert len(shipped) == 6 * len(SHIPPED)
    assert inside == expected | presets | shipped | {"bombus/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    # Tests, notebooks and bare `loader` are nowhere in it.
    assert {name.split("/")[0] for name in inside} == {"bombus"}


def test_the_wheel_is_small_and_a_shipped_model_in_it_whole(built: Built) -> None:
    assert built.wheel.stat().st_size < 4_500_000
    for folder in SHIPPED.values():
        for path in (ROOT / "bombus" / folder).iterdir():
            installed = built.target / "bombus" / folder / path.name
            assert installed.read_bytes() == path.read_bytes()


def test_the_wheel_needs_nothing_heavy(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert needed
    assert not [line for line in needed if "torch" in line or "transformers" in line]
    assert "License-Expression: Apache-2.0" in lines


def test_presets_are_read_from_the_wheel(built: Built, tmp_path: Path) -> None:
    code = "import bombus; print(bombus.load_preset('performance', models=['Llama-3.1-8B-Instruct'])[1])"
    assert built.python("-c", code, cwd=tmp_path) == "preset performance for llama-3.1-8b-instruct\n"


def test_the_main_job_runs_from_the_wheel(built: Built, tmp_path: Path) -> None:
    output = built.python("-m", "bombus", "demo", "--max-new-tokens", "4", cwd=tmp_path)
    assert "decoder.blocks.{0..5}.ffn.gate.kernel" in output
    assert "f8_e4m3fn[544, 192]" in output
    assert "\n\nROMEO:\n" in output
    assert "\n\n4 tokens, the first after " in output
    script = built.target / "bin" / "bombus"
    assert built.python(str(script), "--version", cwd=tmp_path).startswith("bombus 0.")
    assert not list(tmp_path.iterdir())


def test_the_wheel_is_what_runs_there(built: Built, tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys, bombus, bombus.cli\n"
        "print(bombus.loader.__file__)\n"
        "print(*(module.__file__ for name, module in sys.modules.items() if name.split('.')[0] == 'bombus'), sep='|')\n"
        "print([name for name in ('tests', 'notebooks', 'benchmarks') if importlib.util.find_spec(f'bombus.{name}')])"
    )
    loader, modules, leaked = built.python("-c", code, cwd=tmp_path).splitlines()
    assert Path(loader) == built.target / "bombus" / "loader" / "__init__.py"
    assert all(Path(file).is_relative_to(built.target) for file in modules.split("|"))
    assert leaked == "[]"


def _run(command: list[str], *, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout

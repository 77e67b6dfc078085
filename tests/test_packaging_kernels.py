"""The C++ kernels in what is installed: their sources in the sdist, and an install where no compiler is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WHY = "Command '['false', '--version']' returned non-zero exit status 1."
pytestmark = pytest.mark.once

# A product of a low-precision weight: computed, and said what was missing.
PRODUCT = """
import jax.numpy as jnp, numpy as np, warnings
from bombus.kernels import product, quantize
from bombus.policies.formats import find_format
weight = quantize(jnp.eye(8), find_format("int8"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = product(jnp.arange(8.0), weight, compute_type=np.dtype("float32"))
print(np.abs(np.asarray(y) - np.arange(8)).max() < 1e-5, *(warning.message for warning in caught))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what was built in it, because building writes beside the sources."""
    folder = tmp_path_factory.mktemp("packaging") / "source"
    folder.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", ".*")
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
        elif (path / "__init__.py").exists():
            shutil.copytree(path, folder / path.name, ignore=unwanted)
    return folder


def run(*command: str, cwd: Path, **variables: str) -> str:
    # What pip says is looked at, also where it was told to be quiet.
    environment = {**os.environ, "PIP_QUIET": "0", **variables}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr  # pip's builds are in the latter


def test_the_sdist_has_all_of_their_sources(source: Path, tmp_path: Path) -> None:
    """Headers too: without them a wheel that is built from it would quietly have no kernels."""
    run("-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(source), cwd=tmp_path, CC="false")
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    expected = {f"kernels/cpp/{path.name}" for path in (ROOT / "kernels" / "cpp").iterdir()}
    assert len(expected) > 5
    assert expected <= inside
    assert "setup.py" in inside


def test_without_a_compiler_it_installs_and_says_why(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    quiet = ["--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]
    said = run("-m", "pip", "install", "-v", *quiet, "--target", str(target), str(source), cwd=tmp_path, CC="false")
    assert f"bombus: the C++ kernels were not built, XLA's operations take their place: {WHY}" in said
    assert (target / "bombus" / "kernels" / "native.py").exists()
    assert not list(target.rglob("*.so"))
    here = {"PYTHONPATH": str(target), "BOMBUS_KERNELS": "", "JAX_PLATFORMS": "cpu"}
    found = json.loads(run("-m", "bombus", "env", "--json", cwd=tmp_path, **here))["kernels"]
    reason = "they were not built when the package was installed; a C++ compiler builds them"
    assert (found["in_use"], found["available"], found["reason"]) == ("xla", [], reason)
    warned = f"bombus runs without its C++ kernels, several times slower on CPU: {reason}"
    assert run("-c", PRODUCT, cwd=tmp_path, **here) == f"True {warned}\n"


def test_an_old_library_does_not_stay_beside_new_sources(source: Path, tmp_path: Path) -> None:
    """In place, as an editable install builds: what cannot be built again is removed."""
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    (name,) = run("-c", "from importlib.machinery import EXTENSION_SUFFIXES as s; print(s[0])", cwd=tmp_path).split()
    old = copy / "kernels" / f"_native{name}"
    old.write_bytes(b"old")
    said = run("setup.py", "-q", "build_ext", "--inplace", cwd=copy, CC="false")
    assert WHY in said
    assert not old.exists()

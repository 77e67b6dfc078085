"""The rules of the source tree that no type checker sees: who imports whom, who opens files, how long a file is."""

from __future__ import annotations

import ast
import inspect
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest

import bombus
from bombus.models.registry import architectures

ROOT = Path(__file__).resolve().parents[1]
# Lowest first: a package imports from itself and from those before it.
ORDER = ("policies", "kernels", "layers", "models", "loader", "generation", "evaluation", "bombus")
# Calls that read, write or map a file, by the last word of what is called.
FILE_CALLS = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink"),
    *("mmap", "memmap", "fromfile", "tofile", "savez", "load_file", "save_file", "safe_open", "from_file"),
}
# The face makes tiny checkpoints and reads what a user gives it; a policy may be the path of a JSON file.
MAY_OPEN_FILES = {"loader", "bombus"}
# What the system says of the machine and of the process is in files on Linux.
OPENS_ONE_FILE = {"policies/files.py": {"read_text"}, "evaluation/machine.py": {"read_text", "write_text"}}
# Compiled programs are run as they lie in the user's own folder, and JAX writes them as pickles.
NEEDS = {"generation/kept.py": {"pickle"}}
# Files over 250 lines, and why they are not two.
LONG: dict[str, str] = {}


class Source:
    """One Python file of the package, parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.package = path.parent.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def imports(self) -> Iterator[str]:
        """The full name of every module or member that is imported, wherever in the file."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}:{node.lineno}: write bombus.x instead of a relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def calls(self) -> Iterator[str]:
        """The last word of the name of everything that is called, but for functions of ours: they are read there."""
        ours = {name.rpartition(".")[2] for name in self.imports() if package_of(name)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute):
                    yield node.func.attr
                elif isinstance(node.func, ast.Name) and node.func.id not in ours:
                    yield node.func.id


SOURCES = [Source(path) for package in ORDER for path in sorted((ROOT / package).glob("*.py"))]
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


def package_of(imported: str) -> str | None:
    """The package of ours that an imported name is in; the face for `bombus` itself."""
    first, _, rest = imported.partition(".")
    if first != "bombus":
        return None
    inner = rest.partition(".")[0]
    return inner if inner in ORDER else "bombus"


def test_every_package_has_its_place_in_the_order() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(ORDER)


@each_source
def test_imports_run_downward_only(source: Source) -> None:
    allowed = ORDER[: ORDER.index(source.package) + 1]
    upward = [name for name in source.imports() if package_of(name) not in (None, *allowed)]
    assert not upward, f"{source.name} is in {source.package} and imports {upward} from above"


@each_source
def test_only_the_hub_file_reaches_the_network(source: Source) -> None:
    network = {"huggingface_hub", "requests", "httpx", "urllib3", "aiohttp", "socket"}
    found = [name for name in source.imports() if name.split(".")[0] in network or name.startswith("urllib.request")]
    assert not found or source.name == "loader/hub.py", f"{source.name} imports {found}"


@each_source
def test_nothing_needs_torch(source: Source) -> None:
    banned = {"torch", "transformers", "tensorflow", "pickle"}
    found = {name for name in source.imports() if name.split(".")[0] in banned}
    assert found == NEEDS.get(source.name, set())


@each_source
def test_only_the_loader_opens_files(source: Source) -> None:
    if source.package in MAY_OPEN_FILES:
        return
    found = FILE_CALLS.intersection(source.calls())
    assert found == OPENS_ONE_FILE.get(source.name, set()), f"{source.name} calls {sorted(found)}"


def test_long_files_are_known() -> None:
    long = {source.name for source in SOURCES if len(source.text.splitlines()) > 250}
    assert long == set(LONG), "a file over 250 lines is two files, or says here why not"


def test_a_model_is_one_small_file() -> None:
    """It imports another model's only to subclass what is there."""
    models = {source.path.stem: source for source in SOURCES if "\nregister(\n" in source.text}
    assert len(models) == len(architectures())
    assert statistics.median(len(source.text.splitlines()) for source in models.values()) < 180
    for name, source in models.items():
        imported = [full.split(".")[2:] for full in source.imports() if full.startswith("bombus.models.")]
        classes = [node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
        bases = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
        others = {module for module, _ in imported if module in models and module != name}
        assert others == {module for module, what in imported if module in others and what in bases}, source.name


@each_source
def test_every_file_says_what_it_is(source: Source) -> None:
    assert ast.get_docstring(source.tree), f"{source.name} has no docstring"


@each_source
def test_nothing_is_left_to_do(source: Source) -> None:
    marks = re.findall(r"\b(?:TO" + "DO|FIX" + "ME|XXX)\\b", source.text)
    assert not marks, f"{source.name} holds {marks}: do it, or open an issue"


@pytest.mark.parametrize("name", bombus.__all__)
def test_public_names_are_documented(name: str) -> None:
    value = getattr(bombus, name)
    undocumented = [] if _is_documented(value) else [name]
    if inspect.isclass(value):
        for attribute, member in vars(value).items():
            public = not attribute.startswith("_") and isinstance(member, (property, staticmethod, classmethod))
            public = public or (not attribute.startswith("_") and inspect.isfunction(member))
            if public and not _is_documented(member):
                undocumented.append(f"{name}.{attribute}")
    assert not undocumented


def test_the_public_names_are_sorted_and_there() -> None:
    assert list(bombus.__all__) == sorted(bombus.__all__)
    assert all(hasattr(bombus, name) for name in bombus.__all__)


def test_importing_computes_nothing() -> None:
    # With a platform that does not exist, the first array and the first look at a device are errors.
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    control = run("import jax.numpy; jax.numpy.zeros(())")
    assert control.returncode != 0
    assert "no_such_platform" in control.stderr
    imported = run("import sys, bombus, bombus.cli, bombus.testing; print('torch' in sys.modules)")
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout == "False\n"


def _is_documented(value: object) -> bool:
    text = getattr(value, "__doc__", None)
    # A dataclass without a docstring gets its signature.
    return bool(text) and not re.match(r"\w+\(.*\)$", text or "")

"""The C++ kernels for instructions that few machines have: what they compute, emulated, and where they may be."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels" / "cpp"
NATIVE = ROOT / "tests" / "native"
# A namespace for each, in a source of that name.
X86 = ("avx2", "avx512", "avx512_bf16", "amx")


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    """The command of a C++ compiler."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(command[0]) is None:
        pytest.skip(f"no C++ compiler {command[0]}")
    return command


def compile_all(compiler: list[str], sources: Sequence[Path], flags: Sequence[str], folder: Path) -> list[Path]:
    """An object of each source, in the folder."""
    objects = [folder / f"{source.stem}.o" for source in sources]

    def one(source: Path, into: Path) -> None:
        command = [*compiler, "-std=c++17", "-O0", f"-I{SOURCES}", *flags, "-c", str(source), "-o", str(into)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, sources, objects))
    return objects


# Two minutes of compiling: for whoever changes these kernels, `BOMBUS_TEST_EMULATED=1` (CONTRIBUTING.md).
pytestmark = pytest.mark.skipif("BOMBUS_TEST_EMULATED" not in os.environ, reason="BOMBUS_TEST_EMULATED is not set")


def test_emulated_kernels_equal_sums_in_float64(compiler: list[str], tmp_path: Path) -> None:
    asked = subprocess.run(
        [*compiler, "-E", "-x", "c++", "-"], input="#include <simde/x86/avx512.h>\n", capture_output=True, text=True
    )
    if asked.returncode:
        pytest.skip("no SIMDe (Debian's libsimde-dev), which emulates AVX-512")
    # Addresses too: no kernel reads past a buffer.
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags = ["-DBOMBUS_EMULATED", f"-I{NATIVE}", "-Wno-psabi", *sanitizers]
    sources = [SOURCES / f"{name}.cc" for name in ("avx512", "avx512_bf16", "amx", "running", "ahead")]
    objects = compile_all(compiler, [*sources, NATIVE / "check_avx512.cc"], flags, tmp_path)
    program = tmp_path / "check"
    subprocess.run([*compiler, *sanitizers, *map(str, objects), "-o", str(program), "-lpthread"], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["avx512", "avx512_bf16", "amx"]


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 only")
def test_what_the_library_shares_runs_on_every_processor(compiler: list[str], tmp_path: Path) -> None:
    """The linker keeps one of several copies of a function: none may have instructions that some processors lack."""
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    wrong, of_their_own = [], dict.fromkeys(X86, 0)
    for name, made in zip(
        X86, compile_all(compiler, [SOURCES / f"{name}.cc" for name in X86], [], tmp_path), strict=True
    ):
        listing = subprocess.run(
            ["objdump", "-d", "-C", "--no-show-raw-insn", str(made)], capture_output=True, text=True, check=True
        ).stdout
        for function, code in re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)*)", listing, re.MULTILINE):
            if re.search(r"\tv[a-z]", code):  # every instruction of AVX begins with v
                if f"bombus::{name}::" in function:
                    of_their_own[name] += 1
                else:
                    wrong.append(f"{name}: {function}")
    assert wrong == []
    assert of_their_own["avx2"] > 20
    assert of_their_own["avx512"] > 20
    assert of_their_own["avx512_bf16"] > 20
    assert of_their_own["amx"] > 20

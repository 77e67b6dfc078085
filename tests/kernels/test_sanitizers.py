"""The C++ kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, without XLA and Python."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "cpp"
CHECKS = [ROOT / "tests" / "native" / name for name in ("check_product.cc", "check_attention.cc", "check_rows.cc")]
# XLA's side. Instruction sets that the processor lacks are left out; tests/native/check_avx512.cc emulates them.
ELSEWHERE = ("ffi",)
COMPILER = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
# What is left out of `undefined` makes code four times as large, and says of addresses what `address` says of bytes.
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize=null,object-size,pointer-overflow,vptr"],
    "thread": ["-fsanitize=thread"],
}
ROUNDS = {
    "check_product": {"address": 100, "thread": 25},
    "check_attention": {"address": 25, "thread": 6},
    "check_rows": {"address": 200, "thread": 50},
}

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"no C++ compiler {COMPILER[0]!r}"),
]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def build(flags: list[str], folder: Path) -> list[Path]:
    """The programs, compiled with these flags; skips where the compiler's libraries for them are not installed."""
    tried = folder / "tried.cc"
    tried.write_text("int main() { return 0; }\n", encoding="utf-8")
    if run([*COMPILER, *flags, str(tried), "-o", str(folder / "tried")]).returncode:
        pytest.skip(f"the compiler cannot link with {flags[0]}")
    sources = [*CHECKS, *(path for path in sorted(KERNELS.glob("*.cc")) if not path.name.startswith(ELSEWHERE))]
    objects = [folder / f"{source.stem}.o" for source in sources]
    # Without optimizations: the compiler is what takes the time, and every access is one that a sanitizer sees.
    options = ["-std=c++17", "-O0", "-g1", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror", f"-I{KERNELS}"]
    options += ["-fno-sanitize-recover=all", *flags]

    def compile_one(source: Path, made: Path) -> None:
        done = run([*COMPILER, *options, "-c", str(source), "-o", str(made)])
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources, objects))
    checks, shared = objects[: len(CHECKS)], objects[len(CHECKS) :]
    for check in checks:
        linked = run([*COMPILER, *flags, str(check), *map(str, shared), "-o", str(check.with_suffix("")), "-lpthread"])
        assert linked.returncode == 0, linked.stderr
    return [check.with_suffix("") for check in checks]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_products_are_right_and_clean(sanitizer: str, tmp_path: Path) -> None:
    """Random products on several threads, in buffers as long as what they hold: nothing is said, float64 agrees.

    And so for attention, and for what is done to rows.
    """
    for program, seed, threads in (
        (program, *run) for program in build(SANITIZERS[sanitizer], tmp_path) for run in ((1, 3), (2, 7))
    ):
        rounds = ROUNDS[program.name][sanitizer]
        command = [str(program), str(seed), str(rounds), str(threads)]
        done = run(command)
        if "unexpected memory mapping" in done.stderr:  # where the kernel puts a program out of the sanitizer's reach
            done = run(["setarch", "-R", *command])
        assert done.returncode == 0, f"{program.name}, seed {seed}, {threads} threads\n{done.stdout}\n{done.stderr}"
        assert done.stderr == ""
        # One to three products of a round, with at least one instruction set.
        names, count = done.stdout.rsplit(" products are right\n")[0].rsplit(" ", 1)
        assert "plain" in names.split()
        assert int(count) >= rounds * len(names.split())

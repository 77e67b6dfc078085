"""Compiles the C++ kernels where there is a compiler; pyproject.toml has all the rest.

Without one the package installs all the same, and takes XLA's own operations (`bombus env` says which).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("kernels/cpp")
FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden"]


class BuildKernels(build_ext):
    """Builds the library that kernels/native.py loads, or says why not."""

    def build_extension(self, ext: Extension) -> None:
        """Compile every source by itself, as many at a time as there are cores."""
        target, objects = Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp)
        try:
            command = [*compiler(), *FLAGS, f"-I{headers()}"]
            objects.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            built = [objects / f"{Path(source).stem}.o" for source in ext.sources]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for done in [
                    pool.submit(run, [*command, "-c", source, "-o", str(path)])
                    for source, path in zip(ext.sources, built, strict=True)
                ]:
                    done.result()
            run([*compiler(), "-shared", "-s", *map(str, built), "-o", str(target), "-lpthread"])
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            # An old library beside new sources would be worse than none; in place it lies in the checkout.
            for path in (target, Path("kernels") / target.name):
                path.unlink(missing_ok=True)
            print(f"bombus: the C++ kernels were not built, XLA's operations take their place: {error}")


def compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, or what Python was built with. Raises OSError where $CC does not run."""
    if "CC" in os.environ:  # whoever hides the C compiler does not mean the C++ one
        subprocess.run([*shlex.split(os.environ["CC"]), "--version"], stdout=subprocess.DEVNULL, check=True)
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def headers() -> Path:
    """The folder of XLA's headers, which come with jaxlib."""
    import jaxlib

    return Path(jaxlib.__file__).parent / "include"


def run(command: list[str]) -> None:
    """Run a command quietly; what it printed is shown where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout + done.stderr)
        done.check_returncode()


setup(
    ext_modules=[
        Extension(
            "bombus.kernels._native",
            sorted(map(str, SOURCES.glob("*.cc"))),
            # For a source distribution, which needs them too.
            depends=sorted(map(str, [*SOURCES.glob("*.h"), *SOURCES.glob("*.inc")])),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)

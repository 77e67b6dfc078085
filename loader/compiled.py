"""Where compiled programs are kept for the next process."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from os import PathLike
from pathlib import Path
from tempfile import NamedTemporaryFile

import jax
from jax.experimental.compilation_cache import compilation_cache

from bombus.loader.cache import cache_folder

_PROGRAMS = "programs"
_MAGIC = b"bombus compiled program 1\n"
_chosen: list[Path] = []


def use_compilation_cache(folder: str | PathLike[str] | None = None) -> Path:
    """Keep compiled programs in a folder, for this process and later ones; the folder.

    By default `compiled` beside the cache of converted parameters ($BOMBUS_CACHE, else ~/.cache/bombus), or where JAX
    keeps them already. It is JAX's persistent compilation cache, switched on for all of this process; the programs of
    generation are kept there under keys of their own, so that the next process need not even trace them. What is in
    the folder is run as it is: it must be one that only you can write.
    """
    known = jax.config.values["jax_compilation_cache_dir"]
    chosen = Path(folder or known or cache_folder() / "compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    # What was compiled before this has settled that there is no cache.
    compilation_cache.reset_cache()
    # Also what compiles fast: a start is made of many small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _chosen[:] = [chosen]
    return chosen


def kept_folder() -> Path | None:
    """Where the programs of generation are kept; None where use_compilation_cache is not in force."""
    values = jax.config.values
    in_force = values["jax_enable_compilation_cache"] and [values["jax_compilation_cache_dir"]] == [*map(str, _chosen)]
    return _chosen[0] / _PROGRAMS if in_force else None


def read_kept(key: str) -> bytes | None:
    """What was kept under a key; None where nothing was, or something else than what was written is there."""
    folder = kept_folder()
    contents = b""
    if folder is not None:
        with suppress(OSError):
            contents = (folder / key).read_bytes()
    program = contents[len(_MAGIC) + hashlib.sha256().digest_size :]
    return program if program and contents == _sealed(key, program) else None


def keep_bytes(key: str, program: bytes) -> None:
    """Keep a program under a key, whole or not at all. Where nothing can be written, nothing is kept."""
    folder = kept_folder()
    if folder is None:
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=".", delete=False) as file:
            try:
                file.write(_sealed(key, program))
                file.close()
                os.replace(file.name, folder / key)
            except OSError:
                os.unlink(file.name)


@cache
def processor() -> tuple[str, ...]:
    """What a program for CPUs is compiled for: a folder may be shared by machines of several kinds."""
    found = {platform.processor(), f"{os.cpu_count()} cores"}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found |= {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return tuple(sorted(found))


def source_digest(folders: Iterable[str]) -> str:
    """A digest of the Python files and libraries in these folders.

    Of their contents, not their times: packages are also installed with the times of 1980.
    """
    digest = hashlib.sha256()
    for folder in map(Path, folders):
        for path in sorted(path for path in folder.iterdir() if path.suffix in (".py", ".so", ".pyd")):
            digest.update(f"{folder.name}/{path.name}:{path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _sealed(key: str, program: bytes) -> bytes:
    """A file's contents: the digest is also of the key, for a file that was given another's name."""
    return _MAGIC + hashlib.sha256(key.encode() + b"\n" + program).digest() + program

"""Where compiled programs are kept for the next process."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from bombus.loader.cache import cache_folder


def use_compilation_cache(folder: str | PathLike[str] | None = None) -> Path:
    """Keep compiled programs in a folder, for this process and later ones; the folder.

    By default `compiled` beside the cache of converted parameters ($BOMBUS_CACHE, else ~/.cache/bombus), or where JAX
    keeps them already. It is JAX's persistent compilation cache, switched on for all of this process. What is in it is
    run as it is: it must be a folder that only you can write.
    """
    known = jax.config.values["jax_compilation_cache_dir"]
    chosen = Path(folder or known or cache_folder() / "compiled").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    # What was compiled before this has settled that there is no cache.
    compilation_cache.reset_cache()
    # Also what compiles fast: a start is made of many small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return chosen

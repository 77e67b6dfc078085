"""The cache of converted parameters: a second load of the same thing maps them, and neither reads nor converts.

One file for each set of parameters, KEY.safetensors in $BOMBUS_CACHE (by default ~/.cache/bombus): the parameters by
path, and in the metadata what they are. The key is a digest of the files that were read (on the hub their contents'
digests, else size and time), of how every parameter lies there and what is done to it, and of this format's version.
On CPU the arrays are the mapped file's pages. Nobody writes into such a file: it is made under another name, and
renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bombus.loader.meta import JoinedTensor
from bombus.loader.plan import LoadPlan
from bombus.loader.read import arrays_of, stream_parameters
from bombus.loader.safetensors import read_header, read_metadata
from bombus.loader.sources import Source
from bombus.loader.write import TensorWriter, make_folder, remove_file, remove_partials
from bombus.models.model import Params, nested
from bombus.policies.errors import CheckpointError, Problem
from bombus.policies.formats import DType, Shape

AUTO = "auto"
_VERSION = 1
_SUFFIX = ".safetensors"
_FIELD = "bombus_cache"
# What the hub's cache calls a file: its SHA-256, or Git's SHA-1 of a small one.
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """A file of the cache: its key, the repository and the policy that it was made from, and its size in bytes."""

    key: str
    repository: str
    policy: str
    path: Path
    nbytes: int


def cache_folder() -> Path:
    """Where converted parameters are kept: $BOMBUS_CACHE, by default ~/.cache/bombus (or $XDG_CACHE_HOME/bombus)."""
    chosen = os.environ.get("BOMBUS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bombus"


def load_cached(plan: LoadPlan, cache: str | os.PathLike[str], where: str, progress: bool | None) -> Params:
    """The parameters of a plan from the cache, where they are made first if they are not there.

    cache: "auto" for `cache_folder`, or another folder. Raises CheckpointError when it cannot be written.
    """
    folder = cache_folder() if cache == AUTO else Path(cache).expanduser()
    path = folder / f"{cache_key(plan)}{_SUFFIX}"
    params = _mapped(path, plan)
    if params is None:
        _write(path, plan, where, progress)
        params = _mapped(path, plan)
    if params is None:
        problem = Problem(subject="cache", message="was changed by somebody else while it was read", remedy="try again")
        raise CheckpointError(problem, where=str(path))
    return params


def cache_key(plan: LoadPlan) -> str:
    """The digest that names the parameters of a plan. Raises CheckpointError for files that are no longer there."""
    known: dict[Path, list[Any]] = {}
    entries = []
    for entry in plan.entries:
        if (source := entry.source) is not None:
            known |= {file: _identity(file) for file in _files(source) if file not in known}
            # A file and a name are a tensor; config.json, which is not among the files, may change what it means.
            how = [str(source.stored), repr(source.layout), repr(source.selection)]
            read = [source.names, *how, [known[file] for file in _files(source)]]
            entries.append([entry.path, list(entry.shape), str(entry.format), entry.action, read])
    text = json.dumps([_VERSION, repr(plan.model.spec), entries])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached_entries(folder: Path | None = None) -> list[CacheEntry]:
    """What is in the cache, the largest first. Files that are not its own are left out."""
    found = []
    for path in (cache_folder() if folder is None else folder).glob(f"*{_SUFFIX}"):
        try:
            size = path.stat().st_size
            about = json.loads(read_metadata(path).get(_FIELD, "null"))
        except (CheckpointError, OSError, ValueError):
            about = None
        if isinstance(about, Mapping):
            names = {name: str(about.get(name)) for name in ("repository", "policy")}
            found.append(CacheEntry(key=path.stem, **names, path=path, nbytes=size))
    return sorted(found, key=lambda entry: (-entry.nbytes, entry.key))


def remove_cached(keys: list[str] | None = None, folder: Path | None = None) -> list[CacheEntry]:
    """Remove what has these keys, or beginnings of keys (None: everything); what was removed.

    Parameters that are in use stay as they are. Raises CheckpointError for a key that there is not, and where a file
    cannot be removed.
    """
    folder = cache_folder() if folder is None else folder
    entries = cached_entries(folder)
    # Everything begins with nothing, which is no way to ask for everything.
    wanted = [[entry for entry in entries if key and entry.key.startswith(key)] for key in keys or ()]
    unknown = [key for key, found in zip(keys or (), wanted, strict=True) if not found]
    if unknown:
        raise CheckpointError(
            [
                Problem(subject=f"key {key!r}", message="is not in the cache", remedy="see `bombus cache ls`")
                for key in unknown
            ],
            where=str(folder),
        )
    chosen = entries if keys is None else list(dict.fromkeys(entry for found in wanted for entry in found))
    for entry in chosen:
        remove_file(entry.path)
    if folder.is_dir():
        remove_partials(folder)
    return chosen


def entry_to_json(entry: CacheEntry) -> dict[str, Any]:
    """Plain data."""
    return {**asdict(entry), "path": str(entry.path)}


def _files(source: Source) -> Iterator[Path]:
    """The files that a parameter is read from, or that are compared when it is."""
    copies = [info for info, _ in source.copies.values()]
    told = [info for piece in source.pieces for info in piece.told.values()]
    for info in (*source.infos, *told, *copies):
        yield from (part.file for part in (info.parts if isinstance(info, JoinedTensor) else (info,)))


def _identity(file: Path) -> list[Any]:
    """What changes when the contents of a file do, however its path is spelled."""
    try:
        real = file.resolve()
        status = real.stat()
    except OSError as error:
        problem = Problem(subject="file", message=f"cannot be read: {error.strerror or error}")
        raise CheckpointError(problem, where=str(file)) from error
    if "blobs" in real.parts[-3:-1] and _DIGEST.fullmatch(real.name):
        return [real.name, status.st_size]
    return [str(real), status.st_size, status.st_mtime_ns, status.st_ino]


def _expected(plan: LoadPlan) -> dict[str, tuple[Shape, DType]]:
    """path -> (shape, type) of every array of a plan's parameters."""
    return {path: array for entry in plan.entries for path, array in arrays_of(entry).items()}


def _write(path: Path, plan: LoadPlan, where: str, progress: bool | None) -> None:
    rules = plan.policy or ("" if plan.precision is None else json.dumps(plan.precision.to_json()))
    about = {"version": _VERSION, "repository": where, "policy": rules}
    make_folder(path.parent)
    with (
        TensorWriter(path, _expected(plan), {_FIELD: json.dumps(about)}) as writer,
        closing(stream_parameters(plan, progress)) as parameters,
    ):
        for arrays in parameters:
            for name in list(arrays):
                # Taken out, so that nothing keeps it while the next is made.
                writer.write(name, np.asarray(arrays.pop(name)))
        if f"{cache_key(plan)}{_SUFFIX}" != path.name:
            problem = Problem(subject="checkpoint", message="was changed while it was read", remedy="load it again")
            raise CheckpointError(problem, where=where)


def _mapped(path: Path, plan: LoadPlan) -> Params | None:
    """The parameters in a file of the cache; None where it is not there or not whole."""
    expected = _expected(plan)
    try:
        with path.open("rb") as file:
            header = read_header(path)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return _mapped(path, plan)  # another load has put its own there, whose header may be longer
            if {name: (info.shape, info.dtype) for name, info in header.items()} != expected:
                return None
            pages = np.memmap(file, np.uint8, "r")
    except (CheckpointError, OSError, ValueError):
        return None
    stored = {name: header[name] for name in expected}
    # On CPU taken over as they are where they are aligned, as all but small ones are.
    arrays = {name: pages[i.start : i.stop].view(i.dtype).reshape(i.shape) for name, i in stored.items()}
    return nested(jax.device_put(arrays))

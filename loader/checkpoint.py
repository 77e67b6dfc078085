"""A checkpoint: its configuration, and the headers of all its files, before any tensor byte is read.

Files of three kinds, the first that is there: safetensors, PyTorch's pickles, and Meta's own (meta.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bombus.loader import meta
from bombus.loader.json_file import read_json
from bombus.loader.repository import Repository
from bombus.loader.safetensors import read_header
from bombus.loader.tensors import TensorInfo
from bombus.loader.torch_files import read_torch_header
from bombus.policies.errors import CheckpointError, Problem

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of files: the name of a single one, that of an index of several, and the reader of a header."""

    weights: str
    index: str
    read: Callable[[Path], dict[str, TensorInfo]]


_KINDS = (
    _Kind(weights=WEIGHTS, index=INDEX, read=read_header),
    _Kind(weights="pytorch_model.bin", index="pytorch_model.bin.index.json", read=read_torch_header),
)


def read_config(repository: Repository) -> dict[str, Any]:
    """The configuration: config.json, or what Meta's params.json comes to. Raises CheckpointError without either."""
    path = repository.find("config.json")
    if path is None and _is_meta(repository):
        return _read_meta(repository, None)[0]
    if path is None:
        path = repository.require("config.json", "give the folder or id of a Hugging Face checkpoint")
    return read_json(path)


def read_headers(repository: Repository, *, progress: bool | None = None) -> dict[str, TensorInfo]:
    """Name -> TensorInfo for every tensor of the repository's weights.

    Raises CheckpointError that lists every missing shard, and every tensor that the index promises and its shard
    does not have.
    """
    for kind in _KINDS:
        single = repository.find(kind.weights)
        if single is not None:
            return kind.read(single)
        index = repository.find(kind.index)
        if index is not None:
            return _read_shards(repository, kind, index, progress)
    if _is_meta(repository):
        return _read_meta(repository, progress)[1]
    raise CheckpointError(_no_weights(repository), where=str(repository))


def _read_shards(repository: Repository, kind: _Kind, index: Path, progress: bool | None) -> dict[str, TensorInfo]:
    weight_map = _weight_map(index, kind)
    paths, missing = repository.fetch(dict.fromkeys(weight_map.values()), progress=progress)
    if missing:
        raise CheckpointError(
            [
                Problem(
                    subject=f"shard {name}",
                    message=f"is missing, with {sum(shard == name for shard in weight_map.values())} tensors",
                    remedy="download it again",
                )
                for name in missing
            ],
            where=str(repository),
        )
    shards = {name: kind.read(path) for name, path in paths.items()}
    problems = [
        Problem(subject=f"tensor {tensor}", message=f"is not in {name}, where {kind.index} says it is")
        for tensor, name in weight_map.items()
        if tensor not in shards[name]
    ]
    # A tensor that a shard holds and the index does not name would be lost without a word.
    problems += [
        Problem(
            subject=f"tensor {tensor}",
            message=f"is in {name}, but {kind.index} says {weight_map.get(tensor, 'nothing')}",
        )
        for name, header in shards.items()
        for tensor in header
        if weight_map.get(tensor) != name
    ]
    if problems:
        raise CheckpointError(problems, where=str(repository))
    return {tensor: shards[name][tensor] for tensor, name in weight_map.items()}


def _weight_map(path: Path, kind: _Kind) -> dict[str, str]:
    weight_map = read_json(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise CheckpointError(
            Problem(subject="weight_map", message="must map tensor names to file names"), where=str(path)
        )
    ending = Path(kind.weights).suffix
    for name in dict.fromkeys(weight_map.values()):
        # Checked before anything of that name is opened or fetched.
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(ending):
            raise CheckpointError(
                Problem(subject=f"shard {name!r}", message=f"must be the plain name of a {ending} file"),
                where=str(path),
            )
    return weight_map


def _is_meta(repository: Repository) -> bool:
    return repository.find(meta.PARAMS) is not None


def _read_meta(repository: Repository, progress: bool | None) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """(configuration, headers under Hugging Face's names) of a checkpoint in Meta's layout."""
    params = repository.require(meta.PARAMS, "download it again")
    shards: list[dict[str, TensorInfo]] = []
    while (path := repository.find(meta.SHARD.format(len(shards)))) is not None:
        shards.append(read_torch_header(path))
    if not shards:
        raise CheckpointError(_no_weights(repository), where=str(repository))
    return meta.read_meta(read_json(params), shards, str(params.parent))


def _no_weights(repository: Repository) -> Problem:
    names = [name for kind in _KINDS for name in (kind.weights, kind.index)] + [meta.SHARD.format(0)]
    if repository.offline:
        return Problem(
            subject="weights",
            message=f"none of {', '.join(names)} is in the local cache, and the network is switched off",
            remedy="unset HF_HUB_OFFLINE and local_files_only, or download the repository first",
        )
    return Problem(
        subject="weights",
        message=f"none of {', '.join(names)} is there",
        remedy="point at the folder of a Hugging Face checkpoint",
    )

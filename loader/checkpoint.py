"""A checkpoint: the headers of all its files, single or sharded, before any tensor byte is read."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from bombus.loader.hub import Repository, read_json
from bombus.loader.safetensors import read_header
from bombus.loader.tensors import TensorInfo
from bombus.policies.errors import CheckpointError, Problem

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")


def read_headers(repository: Repository, *, progress: bool | None = None) -> dict[str, TensorInfo]:
    """Name -> TensorInfo for every tensor of the repository's weights.

    Raises CheckpointError that lists every missing shard, and every tensor that the index promises and its shard
    does not have.
    """
    single = repository.find(WEIGHTS)
    if single is not None:
        return read_header(single)
    index = repository.find(INDEX)
    if index is None:
        raise CheckpointError(_no_weights(repository), where=str(repository))
    weight_map = _weight_map(index)
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
    shards = {name: read_header(path) for name, path in paths.items()}
    problems = [
        Problem(subject=f"tensor {tensor}", message=f"is not in {name}, where {INDEX} says it is")
        for tensor, name in weight_map.items()
        if tensor not in shards[name]
    ]
    # A tensor that a shard holds and the index does not name would be lost without a word.
    problems += [
        Problem(
            subject=f"tensor {tensor}", message=f"is in {name}, but {INDEX} says {weight_map.get(tensor, 'nothing')}"
        )
        for name, header in shards.items()
        for tensor in header
        if weight_map.get(tensor) != name
    ]
    if problems:
        raise CheckpointError(problems, where=str(repository))
    return {tensor: shards[name][tensor] for tensor, name in weight_map.items()}


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise CheckpointError(
            Problem(subject="weight_map", message="must map tensor names to file names"), where=str(path)
        )
    for name in dict.fromkeys(weight_map.values()):
        # Checked before anything of that name is opened or fetched.
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                Problem(subject=f"shard {name!r}", message="must be the plain name of a .safetensors file"),
                where=str(path),
            )
    return weight_map


def _no_weights(repository: Repository) -> Problem:
    if repository.offline:
        return Problem(
            subject="weights",
            message=f"neither {WEIGHTS} nor {INDEX} is in the local cache, and the network is switched off",
            remedy="unset HF_HUB_OFFLINE and local_files_only, or download the repository first",
        )
    pickled = next((name for name in _PICKLES if repository.has(name)), None)
    if pickled:
        return Problem(
            subject="weights",
            message=f"are only there as {pickled}, a pickle, which this version does not read",
            remedy="save the model with safetensors (`save_pretrained` of transformers does)",
        )
    return Problem(
        subject="weights",
        message=f"neither {WEIGHTS} nor {INDEX} is there",
        remedy="point at the folder of a Hugging Face checkpoint",
    )

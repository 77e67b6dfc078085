"""convert_checkpoint: a checkpoint as another one, tensor by tensor: the model is never in memory as a whole."""

from __future__ import annotations

from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Unpack

from bombus.loader.generation_config import read_generation_config
from bombus.loader.load import plan_checkpoint
from bombus.loader.read import in_file_order, stream_parameters
from bombus.loader.report import LoadReport
from bombus.loader.repository import HubOptions, open_repository
from bombus.loader.save import write_folder
from bombus.loader.write import remove_file, write_bytes
from bombus.policies.errors import CheckpointError, PlanError, Problem
from bombus.policies.mixed_precision import PolicyLike

# What a folder has beside weights and configurations, and text goes through.
_TEXT_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)


def convert_checkpoint(
    repo: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    policy: PolicyLike = None,
    preserve_source_types: bool = False,
    architecture: str | None = None,
    strict: bool = True,
    max_shard_bytes: int = 5_000_000_000,
    progress: bool | None = None,
    **hub: Unpack[HubOptions],
) -> LoadReport:
    """Write `folder` as save_model would write the model that load_model returns, with its tokenizer; the report.

    Reads what load_model reads: pickles and Meta's layout become safetensors. One parameter is in memory at a time.
    Raises what load_model and save_model raise, CheckpointError where `folder` is the repository itself, and
    PlanError for parameters that are missing, also with strict=False.
    """
    repository, target = open_repository(repo, **hub), Path(folder)
    plan = plan_checkpoint(
        repository,
        architecture=architecture,
        policy=policy,
        preserve_source_types=preserve_source_types,
        strict=strict,
        progress=progress,
    )
    made = [entry.path for entry in plan.entries if entry.source is None]
    if made:
        raise PlanError(
            [
                Problem(subject=f"parameter {path}", message="is not in the checkpoint, so not in another")
                for path in made
            ],
            where=str(repository),
        )
    sources = in_file_order(plan)
    if any(source.info.file.parent.resolve() == target.resolve() for _, source in sources):
        problem = Problem(subject="folder", message="is the checkpoint itself", remedy="give another folder")
        raise CheckpointError(problem, where=str(target))
    order = [entry.path for entry, _ in sources]
    generation = read_generation_config(repository, vocab_size=plan.model.spec.vocab_size)
    texts = {name: _read(path) for name in _TEXT_FILES if (path := repository.find(name)) is not None}
    with closing(stream_parameters(plan, progress)) as parameters:
        write_folder(plan.model, order, parameters, target, generation, max_shard_bytes)
    for name, text in texts.items():
        write_bytes(target / name, text)
    # One of an earlier conversion, which this checkpoint does not have, would be read in the place of its own.
    for name in _TEXT_FILES if texts else ():
        if name not in texts:
            remove_file(target / name)
    return LoadReport(plan, str(repository))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        problem = Problem(subject="file", message=f"cannot be read: {error.strerror or error}")
        raise CheckpointError(problem, where=str(path)) from error

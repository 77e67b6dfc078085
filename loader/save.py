"""save_model: a loaded model as a Hugging Face folder that transformers loads too."""

from __future__ import annotations

import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from bombus.loader.checkpoint import INDEX, WEIGHTS
from bombus.loader.load import LoadedModel
from bombus.loader.quantization import write_quantization_config
from bombus.models.model import Model, flat
from bombus.policies.errors import PlanError, Problem
from bombus.policies.formats import type_name


def save_model(loaded: LoadedModel, folder: str | PathLike[str], *, max_shard_bytes: int = 5_000_000_000) -> list[Path]:
    """Write config.json, generation_config.json and safetensors to `folder`; the paths written.

    Parameters are written as they are stored: FP8 codes and scales bit for bit, under the names that
    transformers and vLLM read. Files are complete or not there: each is renamed into place when it is whole.
    Raises PlanError when the parameters are not those of the model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model, values = loaded.model, flat(loaded.params)
    _check(model, values)
    mapping = model.architecture.mapping
    shards: list[dict[str, jax.Array]] = [{}]
    size = 0
    for path, value in values.items():
        if size and size + value.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][mapping.tensor(path)] = value
        size += value.nbytes
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        partial = folder / f".{name}.partial"
        save_file({tensor: np.asarray(value) for tensor, value in shard.items()}, partial, {"format": "pt"})
        os.replace(partial, folder / name)
    if count > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(value.nbytes for value in values.values())
        names.append(_write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}))
    names.append(_write_json(folder / "config.json", config_json(model)))
    generation = loaded.generation_config
    if generation.eos_token_ids:
        names.append(_write_json(folder / "generation_config.json", generation.to_hf()))
    # A file of an earlier save that the new one does not overwrite would be read in its place.
    stale = INDEX if count == 1 else WEIGHTS
    (folder / stale).unlink(missing_ok=True)
    return [folder / name for name in names]


def config_json(model: Model) -> dict[str, Any]:
    """The config.json of a model as it is stored."""
    spec, architecture = model.spec, model.architecture
    stored = {path: model.stored[path] for path in model.stored}
    embedding = next(dtype for path, dtype in stored.items() if path.endswith(".embedding"))
    config = {
        "architectures": [architecture.class_name(spec.head)],
        "model_type": architecture.name,
        "torch_dtype": _TORCH_NAMES[type_name(embedding)],
        **spec.to_hf(),
    }
    if model.tiles:
        (block_shape,) = set(model.tiles.values())
        kept = [path for path in stored if path.endswith(".kernel") and path.removesuffix(".kernel") not in model.tiles]
        layers = [architecture.mapping.tensor(path).removesuffix(".weight") for path in kept]
        config["quantization_config"] = write_quantization_config(block_shape, layers)
    return config


_TORCH_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def _check(model: Model, values: dict[str, Any]) -> None:
    problems = [
        Problem(subject=f"parameter {path}", message="is missing" if path in model.stored else "is not the model's")
        for path in sorted(set(model.stored).symmetric_difference(values))
    ]
    problems += [
        Problem(
            subject=f"parameter {path}",
            message="is not stored as the model says",
            expected=type_name(model.stored[path]),
            found=type_name(value.dtype),
        )
        for path, value in values.items()
        if path in model.stored and value.dtype != model.stored[path]
    ]
    if problems:
        raise PlanError(problems, where="save_model")


def _write_json(path: Path, value: Any) -> str:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path.name

"""save_model: a loaded model as a Hugging Face folder that transformers loads too."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from bombus.loader.checkpoint import INDEX, WEIGHTS
from bombus.loader.layouts import BLOCK_FP8, CODES, COMPRESSED, Layout
from bombus.loader.load import LoadedModel
from bombus.loader.quantization import write_quantization
from bombus.models.model import Model, flat
from bombus.models.storage import is_weight
from bombus.policies.errors import PlanError, Problem
from bombus.policies.formats import DType, Format, type_name


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
    _, layout = quantization_of(model)
    shards: list[dict[str, Callable[[], np.ndarray]]] = [{}]
    size = 0
    tensors = _tensors(model, values, layout)
    for name, (nbytes, tensor) in tensors.items():
        if size and size + nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += nbytes
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        partial = folder / f".{name}.partial"
        save_file({name: tensor() for name, tensor in shard.items()}, partial, {"format": "pt"})
        os.replace(partial, folder / name)
    if count > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(nbytes for nbytes, _ in tensors.values())
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
    section, _ = quantization_of(model)
    return {
        "architectures": [architecture.class_name(spec.head)],
        "model_type": architecture.name,
        "torch_dtype": _TORCH_NAMES[type_name(_wide_type(model))],
        **spec.to_hf(),
        **({"quantization_config": section} if section else {}),
    }


def quantization_of(model: Model) -> tuple[dict[str, Any] | None, Layout | None]:
    """The `quantization_config` of a model as it is stored, and the layout of its weights. See write_quantization."""
    weights = {path: format for path, format in model.formats.items() if is_weight(path)}
    if not any(format.is_low for format in weights.values()):
        return None, BLOCK_FP8
    mapping = model.architecture.mapping
    layers = {path: mapping.tensor(path).rpartition(".")[0] for path in weights}
    embeddings = frozenset(layers[path] for path in weights if path.endswith(".embedding"))
    formats = {layers[path]: format for path, format in weights.items()}
    shapes = {layers[path]: model.shapes[path] for path in weights}
    if model.spec.tie_word_embeddings:
        # A head that is the embedding is a layer to others, and one that they would look for codes of.
        tied = ((mapping.tied_tensor(path), format) for path, format in weights.items() if not format.is_low)
        formats |= {tensor.rpartition(".")[0]: format for tensor, format in tied if tensor is not None}
    return write_quantization(formats, shapes, embeddings)


def _wide_type(model: Model) -> DType:
    """The type of the embedding, or the one that it is dequantized to."""
    format = next(format for path, format in model.formats.items() if path.endswith(".embedding"))
    return model.main_type if format.is_low else format.dtype


def _tensors(
    model: Model, values: Mapping[str, jax.Array], layout: Layout | None
) -> dict[str, tuple[int, Callable[[], np.ndarray]]]:
    """The tensors to write by name, each with its size and what makes it, so that one shard is held at a time."""
    mapping = model.architecture.mapping
    tensors: dict[str, tuple[int, Callable[[], np.ndarray]]] = {}

    def add(name: str, leaf: str, value: jax.Array, format: Format, lies: Layout) -> None:
        size, dtype = lies.file_type(leaf, format, shape)
        nbytes = int(np.prod(size, dtype=np.int64)) * dtype.itemsize
        tensors[name] = (nbytes, lambda: lies.to_file(leaf, np.asarray(value), format))

    for path, format in model.formats.items():
        layer = path.rpartition(".")[0]
        name, shape = mapping.tensor(path), model.shapes[path]
        if not format.is_low:
            add(name, CODES, values[path], format, BLOCK_FP8)
            continue
        lies = layout or COMPRESSED[format.name][0]
        theirs = name.rpartition(".")[0]
        add(f"{theirs}.{lies.words[CODES]}", CODES, values[path], format, lies)
        for part in format.parts(shape):
            add(f"{theirs}.{lies.words[part]}", part, values[f"{layer}.{part}"], format, lies)
        if "weight_shape" in lies.also and format.name.startswith("int"):
            sizes = np.array(shape, np.int64)
            tensors[f"{theirs}.weight_shape"] = (sizes.nbytes, lambda sizes=sizes: sizes)  # type: ignore[misc]
    return tensors


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

"""save_model: a loaded model as a Hugging Face folder that transformers loads too."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bombus.loader.checkpoint import INDEX, WEIGHTS
from bombus.loader.generation_config import GenerationConfig
from bombus.loader.layouts import BLOCK_FP8, CODES, Layout
from bombus.loader.load import LoadedModel
from bombus.loader.quantization import write_quantization
from bombus.loader.write import TensorWriter, make_folder, remove_file, write_bytes
from bombus.models.model import Model, flat
from bombus.models.storage import is_weight, part_paths
from bombus.policies.errors import PlanError, Problem
from bombus.policies.formats import DType, Format, Shape, type_name

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def save_model(loaded: LoadedModel, folder: str | PathLike[str], *, max_shard_bytes: int = 5_000_000_000) -> list[Path]:
    """Write config.json, generation_config.json and safetensors to `folder`; the paths written.

    Parameters are written as they are stored: FP8 codes and scales bit for bit, under the names that
    transformers and vLLM read. Files are complete or not there: they are renamed into place when all tensors are
    written, and an error before that leaves what was in the folder.
    Raises PlanError when the parameters are not those of the model, CheckpointError when a file cannot be written.
    """
    model, values = loaded.model, flat(loaded.params)
    _check(model, values)
    parameters = ({name: values[name] for name in _leaves(model, path)} for path in model.formats)
    return write_folder(model, list(model.formats), parameters, Path(folder), loaded.generation_config, max_shard_bytes)


def write_folder(
    model: Model,
    order: Sequence[str],
    parameters: Iterator[Mapping[str, jax.Array]],
    folder: Path,
    generation: GenerationConfig,
    max_shard_bytes: int,
) -> list[Path]:
    """See save_model. parameters: the arrays of each parameter of `order`, one after the other, by path."""
    make_folder(folder)
    _, layout = quantization_of(model)
    tensors = {path: _tensors(model, path, layout) for path in order}
    shards: list[list[str]] = [[]]
    size = 0
    for path in order:
        nbytes = sum(tensor.nbytes for tensor in tensors[path])
        if size and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(path)
        size += nbytes
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    weight_map: dict[str, str] = {}
    with ExitStack() as writers:
        for name, paths in zip(names, shards, strict=True):
            held = {tensor.name: (tensor.shape, tensor.dtype) for path in paths for tensor in tensors[path]}
            weight_map |= dict.fromkeys(held, name)
            writer = writers.enter_context(TensorWriter(folder / name, held, {"format": "pt"}))
            for path in paths:
                _write_parameter(writer, tensors[path], next(parameters))
    if count > 1:
        total = sum(tensor.nbytes for path in order for tensor in tensors[path])
        names.append(_write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}))
    names.append(_write_json(folder / "config.json", config_json(model)))
    if generation.eos_token_ids:
        names.append(_write_json(folder / "generation_config.json", generation.to_hf()))
    # A file of an earlier save that the new one does not overwrite would be read in its place.
    stale = {WEIGHTS, INDEX, "generation_config.json", *filter(_SHARD.fullmatch, os.listdir(folder))}
    for name in sorted(stale.difference(names)):
        remove_file(folder / name)
    return [folder / name for name in names]


def _write_parameter(writer: TensorWriter, tensors: list[_Tensor], arrays: Mapping[str, jax.Array]) -> None:
    """A function of its own, so that nothing keeps the arrays while the next parameter is made."""
    for tensor in tensors:
        writer.write(tensor.name, tensor.make(arrays))


def config_json(model: Model) -> dict[str, Any]:
    """The config.json of a model as it is stored."""
    spec, architecture = model.spec, model.architecture
    section, _ = quantization_of(model)
    return {
        "architectures": [architecture.class_name(spec.head)],
        "model_type": architecture.name,
        # torch calls these types as NumPy does.
        "torch_dtype": _wide_type(model).name,
        **spec.to_hf(),
        **({"quantization_config": section} if section else {}),
    }


def quantization_of(model: Model) -> tuple[dict[str, Any] | None, Callable[[Format], Layout]]:
    """The `quantization_config` of a model as it is stored, and the layout of each format. See write_quantization."""
    weights = {path: format for path, format in model.formats.items() if is_weight(path)}
    if not any(format.is_low for format in weights.values()):
        return None, lambda _: BLOCK_FP8
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


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A tensor to write, and what makes it of the arrays of its parameter."""

    name: str
    shape: Shape
    dtype: DType
    make: Callable[[Mapping[str, jax.Array]], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _leaves(model: Model, path: str) -> list[str]:
    """The paths of the arrays of a parameter, its codes or values first."""
    return [path, *part_paths(path, model.formats[path], model.shapes[path]).values()]


def _tensors(model: Model, path: str, layout: Callable[[Format], Layout]) -> list[_Tensor]:
    """The tensors of one parameter."""
    format, shape = model.formats[path], model.shapes[path]
    lies = layout(format) if format.is_low else BLOCK_FP8
    name = model.architecture.mapping.tensor(path)
    layer = name.rpartition(".")[0]

    def tensor(leaf: str, name: str, array: str) -> _Tensor:
        size, dtype = lies.file_type(leaf, format, shape)

        def make(arrays: Mapping[str, jax.Array]) -> np.ndarray:
            return lies.to_file(leaf, np.asarray(arrays[array]), format).reshape(size)

        return _Tensor(name=name, shape=size, dtype=dtype, make=make)

    leaves = dict(zip((CODES, *format.parts(shape)), _leaves(model, path), strict=True))
    tensors = [tensor(leaf, lies.name(layer, leaf) if format.is_low else name, array) for leaf, array in leaves.items()]
    if "weight_shape" in lies.told and format.name.startswith("int"):
        sizes = np.array(shape, np.int64)
        tensors.append(
            _Tensor(name=f"{layer}.weight_shape", shape=sizes.shape, dtype=sizes.dtype, make=lambda _: sizes)
        )
    return tensors


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
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
    return path.name

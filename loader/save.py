"""save_model: a loaded model as a Hugging Face folder that transformers loads too."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import jax

from bombus.loader.checkpoint import INDEX, WEIGHTS
from bombus.loader.generation_config import GenerationConfig
from bombus.loader.layouts import BLOCK_FP8, BLOCKS, Layout
from bombus.loader.load import LoadedModel
from bombus.loader.quantization import write_quantization
from bombus.loader.units import Unit, main_formats, make_units
from bombus.loader.write import TensorWriter, make_folder, remove_file, write_bytes
from bombus.loader.written import Written
from bombus.models.model import Model, flat
from bombus.models.storage import is_weight, part_paths
from bombus.policies.errors import PlanError, Problem
from bombus.policies.formats import DType, Format, Shape, find_format, type_name

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
    units = _written(model, order)
    headers = {unit: unit.headers() for unit in units}
    shards: list[dict[str, tuple[Shape, DType]]] = [{}]
    for held in headers.values():
        if shards[-1] and _nbytes(shards[-1]) + _nbytes(held) > max_shard_bytes:
            shards.append({})
        shards[-1] |= held
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(TensorWriter(folder / name, shard, {"format": "pt"}))
            for name, shard in zip(names, shards, strict=True)
        }
        # The parts of a fused tensor wait for each other.
        waiting: dict[Written, dict[str, jax.Array]] = {}
        unit_of = {path: unit for unit in units for path in unit.unit.paths}
        for path in order:
            arrays = waiting.setdefault(unit_of[path], {})
            arrays |= next(parameters)
            if all(part in arrays for part in unit_of[path].unit.paths):
                _write_unit(writers, weight_map, unit_of[path], waiting.pop(unit_of[path]))
                del arrays
    if count > 1:
        index = {"metadata": {"total_size": sum(map(_nbytes, shards))}, "weight_map": weight_map}
        names.append(_write_json(folder / INDEX, index))
    names.append(_write_json(folder / "config.json", config_json(model)))
    if generation != GenerationConfig():
        names.append(_write_json(folder / "generation_config.json", generation.to_hf()))
    # A file of an earlier save that the new one does not overwrite would be read in its place.
    stale = {WEIGHTS, INDEX, "generation_config.json", *filter(_SHARD.fullmatch, os.listdir(folder))}
    for name in sorted(stale.difference(names)):
        remove_file(folder / name)
    return [folder / name for name in names]


def _write_unit(
    writers: Mapping[str, TensorWriter],
    weight_map: Mapping[str, str],
    written: Written,
    arrays: Mapping[str, jax.Array],
) -> None:
    """A function of its own, so that nothing keeps the arrays while the next parameters are made."""
    for name, tensor in written.tensors(arrays):
        writers[weight_map[name]].write(name, tensor)


def _nbytes(headers: Mapping[str, tuple[Shape, DType]]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers.values())


def _units(model: Model, order: Iterable[str]) -> list[Unit]:
    """What is written, as transformers names it for the model's head."""
    units = make_units(model.spec, model.shapes, order, model.architecture.mapping.spelled_for(model.spec.head))
    return [unit.in_codes() if model.formats[unit.paths[0]].is_low else unit for unit in units]


def _written(model: Model, order: Iterable[str]) -> list[Written]:
    """How the units of a model are written."""
    _, layout = quantization_of(model)
    weights = _units(model, filter(is_weight, model.formats))
    main = main_formats(weights, model.formats)
    found = []
    for unit in _units(model, order):
        whole = unit.format(model.formats, main)
        lies = layout(whole) if whole.is_low else BLOCK_FP8
        found.append(
            Written(unit=unit, stored=tuple(model.formats[path] for path in unit.paths), whole=whole, layout=lies)
        )
    return found


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
        # Else transformers takes the family's own, which may be none of this vocabulary's.
        "pad_token_id": None,
        **({"quantization_config": section} if section else {}),
    }


def quantization_of(model: Model) -> tuple[dict[str, Any] | None, Callable[[Format], Layout]]:
    """The `quantization_config` of a model as it is stored, and the layout of each format. See write_quantization."""
    weights = {path: format for path, format in model.formats.items() if is_weight(path)}
    if not any(format.is_low for format in weights.values()):
        return None, lambda _: BLOCK_FP8
    mapping = model.architecture.mapping
    units = _units(model, weights)
    main = main_formats(units, weights)
    found = {unit: unit.format(weights, main) for unit in units}
    if all(unit.place.stacked and format == find_format("mxfp4") for unit, format in found.items() if format.is_low):
        kept = [unit.place.layer for unit, format in found.items() if not format.is_low]
        return {"quant_method": "mxfp4", "modules_to_not_convert": kept}, lambda _: BLOCKS
    formats = {layer: format for unit, format in found.items() for layer in unit.names(unit.place.layer)}
    shapes = {layer: unit.shape for unit in units for layer in unit.names(unit.place.layer)}
    embeddings = frozenset(unit.place.layer for unit in units if unit.paths[0].endswith(".embedding"))
    if model.spec.tie_word_embeddings:
        # A head that is the embedding is a layer to others, and one that they would look for codes of.
        tied = ((mapping.tied_tensor(path), format) for path, format in weights.items() if not format.is_low)
        formats |= {tensor.rpartition(".")[0]: format for tensor, format in tied if tensor is not None}
    return write_quantization(formats, shapes, embeddings)


def _wide_type(model: Model) -> DType:
    """The type of the embedding, or the one that it is dequantized to."""
    format = next(format for path, format in model.formats.items() if path.endswith(".embedding"))
    return model.main_type if format.is_low else format.dtype


def _leaves(model: Model, path: str) -> list[str]:
    """The paths of the arrays of a parameter, its codes or values first."""
    return [path, *part_paths(path, model.formats[path], model.shapes[path]).values()]


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

"""Reading: the tensors of a plan, one at a time, in the order of the files, each placed before the next is read."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from tqdm.auto import tqdm

from bombus.kernels import Weight, dequantize, requantize
from bombus.loader.layouts import CODES
from bombus.loader.plan import Entry, LoadPlan
from bombus.loader.sources import Source
from bombus.loader.tensors import TensorInfo, same_bytes
from bombus.models import Params
from bombus.models.model import flat, nested, weight_leaves
from bombus.models.storage import is_weight
from bombus.policies.errors import CheckpointError, Problem


def read_parameters(plan: LoadPlan, progress: bool | None) -> Params:
    """Fill the parameters in the order of the files, so that a disk reads forward."""
    values: dict[str, jax.Array] = {}
    sources = [(entry, entry.source) for entry in plan.entries if entry.source is not None]
    sources.sort(key=lambda pair: (str(pair[1].info.file), pair[1].info.start))
    total = sum(info.nbytes for _, source in sources for info in source.infos)
    hidden = None if progress is None else not progress
    with tqdm(total=total, desc="parameters", unit="B", unit_scale=True, disable=hidden, delay=0.5) as bar:
        for entry, source in sources:
            for name, (copy, original) in source.copies.items():
                _check_tied(source.tensor, original, name, copy)
            # Waiting bounds the memory: no queue of tensors that are read and not yet converted.
            values |= jax.block_until_ready(_read(entry, source))
            bar.update(sum(info.nbytes for info in source.infos))
    made = [path for entry in plan.entries if entry.action == "initialise" for path in _leaves(entry)]
    if made:
        # Only what is asked for is computed: XLA drops the rest of the model.
        values |= jax.jit(lambda key: {path: flat(plan.model.init(key))[path] for path in made})(jax.random.key(0))
    return nested(values)


def _leaves(entry: Entry) -> list[str]:
    """The paths of a parameter's arrays."""
    layer = entry.path.rpartition(".")[0]
    return [entry.path, *(f"{layer}.{part}" for part in entry.format.parts(entry.shape))]


def _read(entry: Entry, source: Source) -> dict[str, jax.Array]:
    """path -> array for one parameter, its parts included, as it is to be stored."""
    # XLA takes an aligned host buffer over without a copy on CPU; elsewhere it is freed after the transfer.
    if not is_weight(entry.path) or (entry.action in ("keep", "cast") and not source.format.is_low):
        value = jax.device_put(_without_float64(source.info.read(source.tensor)))
        return {entry.path: value if value.dtype == entry.format.dtype else _cast(value, entry.format.dtype)}
    weight = _read_weight(entry, source)
    if entry.action == "dequantize":
        return {entry.path: _dequantize(weight, entry.format.dtype)}
    if entry.action != "keep":
        weight = requantize(weight, entry.format)
        problem = quantization_problem(weight, f"tensor {source.tensor}")
        if problem is not None:
            raise CheckpointError(problem, where=str(source.info.file))
    return weight_leaves(entry.path, weight)


def _read_weight(entry: Entry, source: Source) -> Weight:
    """The weight as the file has it."""
    shape = (entry.shape[0], entry.shape[1])
    host = _without_float64(source.info.read(source.tensor))
    if not source.format.is_low:
        return Weight.plain(jax.device_put(host))
    layout, format = source.layout, source.format
    codes = jax.device_put(layout.from_file(CODES, host, format, shape))
    parts = {}
    for part, (name, info) in source.parts.items():
        tensor = info.read(name).reshape(layout.file_type(part, format, shape)[0])
        array = layout.from_file(part, tensor, format, shape)
        if part != "zero_point":
            _check_scale(name, info, array)
        parts[part] = jax.device_put(array)
    return Weight(codes=codes, **parts, format=format, shape=shape)


_dequantize = partial(jax.jit, static_argnums=1)(dequantize)


@partial(jax.jit, static_argnums=1)
def _cast(value: jax.Array, dtype: np.dtype) -> jax.Array:
    return value.astype(dtype)


def _without_float64(host: np.ndarray) -> np.ndarray:
    return host.astype(np.float32) if host.dtype == np.float64 else host


def quantization_problem(weight: Weight, subject: str) -> Problem | None:
    """What is wrong where values were not finite, or too large or small for the type of the scales: these show it."""
    if weight.scale_inv is None:
        return None
    scale = np.asarray(weight.scale_inv).astype(np.float32)
    if (np.isfinite(scale) & (scale > 0)).all():
        return None
    return Problem(
        subject=subject,
        message=f"cannot be stored as {weight.format}: it has values that are not finite, or too large or too small "
        "for its scales",
        remedy="load it as f32 to see them, or give this parameter another format",
    )


def _check_scale(name: str, info: TensorInfo, scale: np.ndarray) -> None:
    values = scale.astype(np.float32)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        where = np.argwhere(bad)[0]
        raise CheckpointError(
            Problem(
                subject=f"tensor {name}",
                message=f"has {int(bad.sum())} scales that are not positive numbers",
                expected="positive finite scales",
                found=f"{values[tuple(where)]} at {where.tolist()}",
                remedy="download the checkpoint again",
            ),
            where=str(info.file),
        )


def _check_tied(tensor: str, info: TensorInfo, name: str, copy: TensorInfo) -> None:
    if not same_bytes(info, copy):
        raise CheckpointError(
            Problem(
                subject=f"tensor {name}",
                message=f"differs from {tensor}, but config.json says that they are tied",
                remedy="set tie_word_embeddings to false: load_model(repo, spec=load_spec(repo, "
                "tie_word_embeddings=False))",
            ),
            where=str(info.file),
        )

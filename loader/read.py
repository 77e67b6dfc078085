"""Reading: the tensors of a plan, in the order of the files, a few ahead of the one that is placed and converted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
from tqdm.auto import tqdm

from bombus.kernels import Weight, dequantize, program, requantize
from bombus.loader.layouts import CODES
from bombus.loader.plan import Entry, LoadPlan
from bombus.loader.sources import Source
from bombus.loader.tensors import TensorInfo, empty, same_bytes
from bombus.models import Params
from bombus.models.model import flat, nested, weight_leaves
from bombus.models.storage import is_weight, part_paths
from bombus.policies.errors import CheckpointError, Problem
from bombus.policies.formats import DType, Shape


def read_parameters(plan: LoadPlan, progress: bool | None) -> Params:
    """The parameters of a plan, all in memory."""
    values: dict[str, jax.Array] = {}
    for arrays in stream_parameters(plan, progress):
        values |= arrays
    return nested(values)


def stream_parameters(plan: LoadPlan, progress: bool | None) -> Generator[dict[str, jax.Array]]:
    """The arrays of one parameter after the other, by path, in the order of the files, so that a disk reads forward.

    While one is placed on its device and converted, the next ones are read; closing the generator ends that.
    """
    sources = in_file_order(plan)
    total = sum(info.nbytes for _, source in sources for info in source.infos)
    hidden = None if progress is None else not progress
    with (
        tqdm(total=total, desc="parameters", unit="B", unit_scale=True, disable=hidden, delay=0.5) as bar,
        ThreadPoolExecutor(_READERS) as readers,
    ):
        # As many as there are readers, and one that waits: more would be memory that nobody asked for.
        ahead: deque[Future[dict[str, np.ndarray]]] = deque()
        waiting = ((entry, piece) for entry, source in sources for piece in source.pieces)

        def fetched() -> dict[str, np.ndarray]:
            while len(ahead) <= _READERS and (following := next(waiting, None)) is not None:
                ahead.append(readers.submit(_fetch, *following))
            return ahead.popleft().result()

        try:
            for entry, source in sources:
                # Waiting bounds the memory: no queue of tensors that are read and not yet converted.
                if source.experts:
                    yield jax.block_until_ready(_stack(entry, source, fetched))
                else:
                    yield jax.block_until_ready(_place(entry, source, fetched()))
                bar.update(sum(info.nbytes for info in source.infos))
        finally:
            for future in ahead:
                future.cancel()
    made = [path for entry in plan.entries if entry.action == "initialise" for path in arrays_of(entry)]
    if made:
        # Only what is asked for is computed: XLA drops the rest of the model.
        yield jax.jit(lambda key: {path: flat(plan.model.init(key))[path] for path in made})(jax.random.key(0))


def in_file_order(plan: LoadPlan) -> list[tuple[Entry, Source]]:
    """What is read, in the order in which the tensors lie in the files."""
    sources = [(entry, entry.source) for entry in plan.entries if entry.source is not None]
    return sorted(sources, key=lambda pair: (str(pair[1].info.file), pair[1].info.start))


# One copies out of the page cache, another meanwhile waits for the disk.
_READERS = 2


def arrays_of(entry: Entry) -> dict[str, tuple[Shape, DType]]:
    """path -> (shape, type) of a parameter's arrays."""
    format, parts = entry.format, entry.format.parts(entry.shape)
    paths = part_paths(entry.path, format, entry.shape)
    return {entry.path: (format.codes_shape(entry.shape), format.dtype), **{paths[part]: parts[part] for part in parts}}


def _stack(entry: Entry, source: Source, fetched: Callable[[], dict[str, np.ndarray]]) -> dict[str, jax.Array]:
    """path -> array for the parameter of all experts, of which one after the other is `fetched` and converted."""
    one = replace(entry, shape=entry.shape[1:])
    stacks = {path: empty(shape, dtype) for path, (shape, dtype) in arrays_of(entry).items()}
    for number, expert in enumerate(source.experts):
        for path, array in _place(one, expert, fetched()).items():
            stacks[path][number] = np.asarray(array)
    return {path: jax.device_put(stack) for path, stack in stacks.items()}


def _fetch(entry: Entry, source: Source) -> dict[str, np.ndarray]:
    """leaf -> array of a parameter as its files have it: its values or codes, and its parts. Checked against its copies
    and what is told of it.
    """
    for name, (copy, original) in source.copies.items():
        _check_tied(source.tensor, original, name, copy)
    host = source.info.read(source.tensor)
    if source.format.is_low:
        arrays = _fetch_low(source, host, _shape_in_file(entry, source))
    else:
        # JAX has no float64 unless a user switches it on for everything.
        arrays = {CODES: host.astype(np.float32) if host.dtype == np.float64 else host}
    return arrays if source.selection is None else source.selection.take(arrays, source.stored, source.format)


def _shape_in_file(entry: Entry, source: Source) -> tuple[int, int]:
    """The shape of the weight that the tensors hold: one expert's, with all that is fused."""
    shape = entry.shape[-2:]
    outputs, inputs = shape if source.selection is None else source.selection.file_shape(shape)
    return outputs, inputs


def _fetch_low(source: Source, host: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """leaf -> array of a weight in low precision, whose codes are read already."""
    layout, format = source.layout, source.stored
    for word, info in source.told.items():
        _check_told(source, word, info, shape)
    arrays = {CODES: layout.from_file(CODES, host, format, shape)}
    for part, (name, info) in source.parts.items():
        tensor = info.read(name).reshape(layout.file_type(part, format, shape)[0])
        arrays[part] = layout.from_file(part, tensor, format, shape)
        if part != "zero_point":
            _check_scale(name, info, arrays[part])
    return arrays


def _place(entry: Entry, source: Source, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """path -> array for one parameter, its parts included, on its device and as it is to be stored."""
    # XLA takes an aligned host buffer over without a copy on CPU; elsewhere it is freed after the transfer.
    placed = {leaf: jax.device_put(array) for leaf, array in arrays.items()}
    codes = placed.pop(CODES)
    if not is_weight(entry.path) or (entry.action in ("keep", "cast") and not source.format.is_low):
        return {entry.path: codes if codes.dtype == entry.format.dtype else _cast(entry.format.dtype, codes)}
    if source.format.is_low:
        shape = (entry.shape[0], entry.shape[1])
        weight = Weight(codes=codes, **placed, format=source.format, shape=shape)
    else:
        weight = Weight.plain(codes)
    if entry.action == "dequantize":
        return {entry.path: _dequantize(entry.format.dtype, weight)}
    if entry.action != "keep":
        weight = requantize(weight, entry.format)
        problem = quantization_problem(weight, f"tensor {source.tensor}")
        if problem is not None:
            raise CheckpointError(problem, where=str(source.info.file))
    return weight_leaves(entry.path, weight)


@program
def _dequantize(dtype: np.dtype, weight: Weight) -> jax.Array:
    return dequantize(weight, dtype)


@program
def _cast(dtype: np.dtype, value: jax.Array) -> jax.Array:
    return value.astype(dtype)


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


def read_activation_scales(plan: LoadPlan) -> dict[str, np.ndarray]:
    """The activation scales of a plan, by tensor."""
    return {name: info.read(name) for name, info in plan.activation_scales.items()}


def _check_told(source: Source, word: str, info: TensorInfo, shape: tuple[int, int]) -> None:
    name = f"{source.layer}.{word}"
    expected = source.layout.contradiction(word, info.read(name), source.stored, shape)
    if expected is not None:
        raise CheckpointError(
            Problem(
                subject=f"tensor {name}",
                message="does not say what its weight is stored as",
                expected=expected,
                remedy="check quantization_config in config.json, or download the checkpoint again",
            ),
            where=str(info.file),
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
    if not same_bytes(info, copy, name):
        raise CheckpointError(
            Problem(
                subject=f"tensor {name}",
                message=f"differs from {tensor}, but config.json says that they are tied",
                remedy="set tie_word_embeddings to false: load_model(repo, spec=load_spec(repo, "
                "tie_word_embeddings=False))",
            ),
            where=str(info.file),
        )

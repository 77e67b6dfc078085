"""Reading: the tensors of a plan, one at a time, in the order of the files, each placed before the next is read."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from tqdm.auto import tqdm

from bombus.kernels import dequantize, quantize
from bombus.loader.plan import Entry, LoadPlan
from bombus.loader.safetensors import TensorInfo, read_tensor, same_bytes
from bombus.models import Params
from bombus.models.model import flat, nested
from bombus.policies.errors import CheckpointError, Problem


def read_parameters(plan: LoadPlan, progress: bool | None) -> Params:
    """Fill the parameters in the order of the files, so that a disk reads forward."""
    values: dict[str, jax.Array] = {}
    entries = sorted(
        (entry for entry in plan.entries if entry.info is not None),
        key=lambda entry: (str(entry.info.file), entry.info.start) if entry.info else ("", 0),
    )
    total = sum(entry.info.nbytes for entry in entries if entry.info)
    hidden = None if progress is None else not progress
    with tqdm(total=total, desc="parameters", unit="B", unit_scale=True, disable=hidden, delay=0.5) as bar:
        for entry in entries:
            assert entry.info is not None
            _fill(values, entry, entry.info, plan)
            bar.update(entry.info.nbytes)
    made = [entry.path for entry in plan.entries if entry.action == "initialise"]
    if made:
        # Only what is asked for is computed: XLA drops the rest of the model.
        values |= jax.jit(lambda key: {path: flat(plan.model.init(key))[path] for path in made})(jax.random.key(0))
    return nested(values)


def _fill(values: dict[str, jax.Array], entry: Entry, info: TensorInfo, plan: LoadPlan) -> None:
    for name, copy in entry.copies.items():
        _check_tied(entry, info, name, copy)
    host = read_tensor(entry.tensor or "", info)
    layer, _, name = entry.path.rpartition(".")
    if name == "scale_inv":
        _check_scale(entry.tensor or "", info, host)
    # XLA takes an aligned host buffer over without a copy on CPU; elsewhere it is freed after the transfer.
    if entry.action == "dequantize" and entry.scale is not None:
        scale_name = f"{entry.tensor}_scale_inv"
        scale = read_tensor(scale_name, entry.scale)
        _check_scale(scale_name, entry.scale, scale)
        value = _dequantize(jax.device_put(host), jax.device_put(scale), plan.block_shape, entry.stored)
    elif entry.action == "quantize":
        value, scale_inv = _quantize(jax.device_put(_without_float64(host)), plan.model.tiles[layer])
        stored = plan.model.stored[f"{layer}.scale_inv"]
        values[f"{layer}.scale_inv"] = jax.block_until_ready(_cast(scale_inv, stored))
    elif entry.action == "cast":
        value = _cast(jax.device_put(_without_float64(host)), entry.stored)
    else:
        value = jax.device_put(host)
    # Waiting bounds the memory: no queue of tensors that are read and not yet converted.
    values[entry.path] = jax.block_until_ready(value)


_dequantize = partial(jax.jit, static_argnums=(2, 3))(dequantize)
_quantize = partial(jax.jit, static_argnums=1)(quantize)


@partial(jax.jit, static_argnums=1)
def _cast(value: jax.Array, dtype: np.dtype) -> jax.Array:
    return value.astype(dtype)


def _without_float64(host: np.ndarray) -> np.ndarray:
    return host.astype(np.float32) if host.dtype == np.float64 else host


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


def _check_tied(entry: Entry, info: TensorInfo, name: str, copy: TensorInfo) -> None:
    if not same_bytes(info, copy):
        raise CheckpointError(
            Problem(
                subject=f"tensor {name}",
                message=f"differs from {entry.tensor}, but config.json says that they are tied",
                remedy="set tie_word_embeddings to false: load_model(repo, spec=load_spec(repo, "
                "tie_word_embeddings=False))",
            ),
            where=str(info.file),
        )

"""load_model: repo -> files -> headers -> spec -> plan -> tensors, one at a time -> parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from bombus.kernels import dequantize, quantize
from bombus.loader.checkpoint import read_headers
from bombus.loader.generation_config import GenerationConfig, read_generation_config
from bombus.loader.hub import Repository, open_repository, read_json
from bombus.loader.plan import Entry, LoadPlan, make_plan
from bombus.loader.quantization import read_block_shape
from bombus.loader.report import LoadReport
from bombus.loader.safetensors import TensorInfo, read_tensor, same_bytes
from bombus.models import DecoderSpec, Model, Params, find_architecture
from bombus.models.model import flat, nested
from bombus.policies import as_precision
from bombus.policies.errors import CheckpointError, Problem
from bombus.policies.mixed_precision import PolicyLike


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A stateless model, its parameters (a nested dict of jax.Array), its spec, and the report of the load."""

    model: Model
    params: Params
    spec: DecoderSpec
    report: LoadReport
    generation_config: GenerationConfig


def load_spec(
    repo: str | PathLike[str],
    *,
    architecture: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    strict: bool = True,
    **overrides: Any,
) -> DecoderSpec:
    """The spec that a repository's config.json describes, with `overrides` for single fields.

    `architecture` is a class of transformers ("Qwen3ForCausalLM") or a head ("causal_lm",
    "sequence_classification", "base"); the default is what config.json names. Raises SpecError that lists
    everything in the configuration that is missing, malformed or not supported; `strict=False` ignores unknown
    fields.
    """
    repository = open_repository(
        repo,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    spec = _spec(_config(repository), architecture, strict)
    return spec.configure(**overrides) if overrides else spec


def load_plan(
    repo: str | PathLike[str],
    *,
    spec: DecoderSpec | None = None,
    architecture: str | None = None,
    policy: PolicyLike = None,
    preserve_source_types: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    strict: bool = True,
    progress: bool | None = None,
) -> LoadReport:
    """What load_model would do with the same arguments, from the headers alone: no tensor is read."""
    repository = open_repository(
        repo,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    plan = _plan(repository, spec, architecture, policy, preserve_source_types, strict, progress)
    return LoadReport(plan, str(repository))


def load_model(
    repo: str | PathLike[str],
    *,
    spec: DecoderSpec | None = None,
    architecture: str | None = None,
    policy: PolicyLike = None,
    preserve_source_types: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    strict: bool = True,
    progress: bool | None = None,
) -> LoadedModel:
    """The model of a Hugging Face checkpoint, as LoadedModel(model, params, spec, report, generation_config).

    repo: an id on the hub or a local folder; revision, subfolder, token, cache_dir and local_files_only are
        huggingface_hub's.
    spec, architecture: see load_spec; both override config.json.
    policy: what each parameter is stored as and computed in; anything as_precision takes. Without one a parameter
        keeps the file's 16- or 32-bit type and is computed in it, and FP8 weights are dequantized to it.
    preserve_source_types: keep every type the file has, FP8 codes and scales bit for bit; a policy beside it
        decides only the parameters that it names.
    strict: False leaves out unexpected tensors and unknown configuration fields, and initialises missing
        parameters (from seed 0, listed in the report).
    progress: show a bar; None shows it in a terminal or notebook.

    Raises HubError, SpecError, CheckpointError or PlanError; the last lists everything that does not fit before
    any tensor is read. Tensors are read one at a time, so the host never holds a second copy of the model.
    """
    started = time.perf_counter()
    repository = open_repository(
        repo,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    plan = _plan(repository, spec, architecture, policy, preserve_source_types, strict, progress)
    generation_config = read_generation_config(repository)
    params = _read(plan, progress)
    report = LoadReport(plan, str(repository), time.perf_counter() - started)
    return LoadedModel(
        model=plan.model,
        params=params,
        spec=plan.model.spec,
        report=report,
        generation_config=generation_config,
    )


def _config(repository: Repository) -> dict[str, Any]:
    return read_json(repository.require("config.json", "give the folder or id of a Hugging Face checkpoint"))


def _spec(config: Mapping[str, Any], wanted: str | None, strict: bool) -> DecoderSpec:
    architecture, head = find_architecture(config, wanted)
    return architecture.spec.from_hf(config, head=head, strict=strict)


def _plan(
    repository: Repository,
    spec: DecoderSpec | None,
    architecture: str | None,
    policy: PolicyLike,
    preserve_source_types: bool,
    strict: bool,
    progress: bool | None,
) -> LoadPlan:
    if spec is not None and architecture is not None:
        raise TypeError("give spec or architecture, not both: a spec names its architecture")
    precision = as_precision(policy)
    config = _config(repository)
    return make_plan(
        _spec(config, architecture, strict) if spec is None else spec,
        read_headers(repository, progress=progress),
        precision,
        preserve_source_types=preserve_source_types,
        block_shape=read_block_shape(config),
        strict=strict,
        where=str(repository),
    )


def _read(plan: LoadPlan, progress: bool | None) -> Params:
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

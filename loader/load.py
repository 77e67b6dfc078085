"""load_model: repo -> files -> headers -> spec -> plan -> tensors, one at a time -> parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Unpack

from bombus.loader.cache import load_cached
from bombus.loader.checkpoint import read_config, read_headers
from bombus.loader.generation_config import GenerationConfig, read_generation_config
from bombus.loader.json_file import read_json
from bombus.loader.plan import LoadPlan, make_plan
from bombus.loader.policy import find_policy, template
from bombus.loader.quantization import MODELOPT_FILE, read_declared_type, read_scheme
from bombus.loader.read import read_activation_scales, read_parameters
from bombus.loader.report import LoadReport
from bombus.loader.repository import HubOptions, Repository, open_repository
from bombus.loader.tensors import TensorInfo
from bombus.models import DecoderSpec, Model, Params, find_architecture
from bombus.policies import MixedPrecision
from bombus.policies.formats import find_format
from bombus.policies.mixed_precision import PolicyLike


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadedModel:
    """A stateless model, its parameters (a nested dict of jax.Array), its spec, and the report of the load."""

    model: Model
    params: Params
    spec: DecoderSpec
    report: LoadReport
    generation_config: GenerationConfig

    def __repr__(self) -> str:
        return f"LoadedModel({type(self.spec).__name__}, {self.report.summary})"


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

    `architecture` is a class of transformers ("Qwen3ForCausalLM") or a head ("causal_lm", "base",
    "sequence_classification", "token_classification", "question_answering"); the default is what config.json names.
    Raises SpecError that lists everything in the configuration that is missing, malformed or not supported;
    `strict=False` ignores unknown fields.
    """
    repository = open_repository(
        repo,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    spec = _spec(read_config(repository), architecture, strict)
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
    plan = plan_checkpoint(
        repository,
        spec=spec,
        architecture=architecture,
        policy=policy,
        preserve_source_types=preserve_source_types,
        strict=strict,
        progress=progress,
    )
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
    cache: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> LoadedModel:
    """The model of a Hugging Face checkpoint, as LoadedModel(model, params, spec, report, generation_config).

    repo: an id on the hub or a local folder; revision, subfolder, token, cache_dir and local_files_only are
        huggingface_hub's.
    spec, architecture: see load_spec; both override config.json.
    policy: what each parameter is stored as and computed in; anything as_precision takes, or "auto" (see
        find_policy). A format that the checkpoint is not in is quantized to, tensor by tensor. Without a policy a
        parameter keeps the file's 16- or 32-bit type and is computed in it, and low-precision weights are
        dequantized to it.
    preserve_source_types: keep every format the file has, codes and scales bit for bit; a policy beside it
        decides only the parameters that it names.
    strict: False leaves out unexpected tensors and unknown configuration fields, and initialises missing
        parameters (from seed 0, listed in the report).
    cache: "auto" keeps the converted parameters in the user's cache (see loader/cache.py), or in the folder that is
        given; the next load of the same thing maps them, which takes neither time nor, on CPU, memory.
    progress: show a bar; None shows it in a terminal or notebook.

    Raises HubError, SpecError, CheckpointError or PlanError; the last lists everything that does not fit before
    any tensor is read. Tensors are read a few ahead of the one that is placed: the host never holds the model twice.
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
    plan = plan_checkpoint(
        repository,
        spec=spec,
        architecture=architecture,
        policy=policy,
        preserve_source_types=preserve_source_types,
        strict=strict,
        progress=progress,
    )
    generation_config = read_generation_config(repository, vocab_size=plan.model.spec.vocab_size)
    # What is made at random is no conversion of anything.
    if cache is not None and all(entry.source is not None for entry in plan.entries):
        params = load_cached(plan, cache, str(repository), progress)
    else:
        params = read_parameters(plan, progress)
    scales = read_activation_scales(plan)
    report = LoadReport(plan, str(repository), time.perf_counter() - started, scales)
    return LoadedModel(
        model=plan.model,
        params=params,
        spec=plan.model.spec,
        report=report,
        generation_config=generation_config,
    )


def policy_template(
    repo: str | PathLike[str],
    *,
    default_format: Any = None,
    architecture: str | None = None,
    strict: bool = True,
    **hub: Unpack[HubOptions],
) -> MixedPrecision:
    """A rule for every parameter of a checkpoint with the format it has there, from the headers alone.

    Weights get `default_format` where it is given. `to_json` of the result is a policy file to edit.
    """
    plan = load_plan(repo, architecture=architecture, strict=strict, preserve_source_types=True, **hub).plan
    stream = next(entry.computed for entry in plan.entries if entry.path.endswith(".embedding"))
    return template(plan.model.formats, find_format(stream), default_format)


def _spec(config: Mapping[str, Any], wanted: str | None, strict: bool) -> DecoderSpec:
    architecture, head = find_architecture(config, wanted)
    return architecture.spec.from_hf(config, head=head, strict=strict)


def plan_checkpoint(
    repository: Repository,
    *,
    spec: DecoderSpec | None = None,
    architecture: str | None = None,
    policy: PolicyLike = None,
    preserve_source_types: bool = False,
    strict: bool = True,
    progress: bool | None = None,
) -> LoadPlan:
    """The plan of a load; see load_model."""
    if spec is not None and architecture is not None:
        raise TypeError("give spec or architecture, not both: a spec names its architecture")
    config = read_config(repository)
    precision, found = find_policy(policy, repository, config)
    if spec is None:
        spec = _spec(config, architecture, strict)
    headers = read_headers(repository, progress=progress)
    return make_plan(
        spec,
        headers,
        precision,
        preserve_source_types=preserve_source_types,
        scheme=read_scheme(config, _modelopt(repository, config, headers)),
        declared=read_declared_type(config),
        strict=strict,
        where=str(repository),
        policy=found,
    )


def _modelopt(
    repository: Repository, config: Mapping[str, Any], headers: Mapping[str, TensorInfo]
) -> dict[str, Any] | None:
    """modelopt's own configuration, looked for only where there is something that config.json does not explain."""
    wide = all(info.dtype.itemsize > 1 for info in headers.values())
    path = None if wide or "quantization_config" in config else repository.find(MODELOPT_FILE)
    return None if path is None else read_json(path)

"""Bombus: a functional model loader and model zoo for JAX and Flax."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bombus.evaluation import BatchTuning, Bench, EvaluationError, bench, tune_batch
    from bombus.generation import (
        Generated,
        History,
        LogitsProcessor,
        TextStream,
        Timings,
        chat,
        generate,
        generate_tokens,
        warmup,
    )
    from bombus.kernels import cast_weight
    from bombus.layers import Cache, CacheFormat, fp8_aware_dense
    from bombus.loader import (
        GenerationConfig,
        LoadedModel,
        LoadReport,
        Tokenizer,
        convert_checkpoint,
        dequantize,
        load_generation_config,
        load_model,
        load_plan,
        load_spec,
        load_tokenizer,
        policy_template,
        quantize,
        save_model,
        use_compilation_cache,
    )
    from bombus.models import Model, Output, build_model, calibrate_cache
    from bombus.policies import (
        MixedPrecision,
        Policy,
        apply_policy,
        cast,
        create_policy,
        from_first_match,
        from_tt_transformers,
        from_tt_xla,
        load_preset,
        resolve_format,
        resolve_type,
    )
    from bombus.policies.errors import (
        BombusError,
        CheckpointError,
        GenerationError,
        HubError,
        LoadError,
        PlanError,
        PolicyError,
        SpecError,
    )
    from bombus.policies.formats import Format, find_format

__version__ = "0.1.0"

__all__ = [
    "BatchTuning",
    "Bench",
    "BombusError",
    "Cache",
    "CacheFormat",
    "CheckpointError",
    "EvaluationError",
    "Format",
    "Generated",
    "GenerationConfig",
    "GenerationError",
    "History",
    "HubError",
    "LoadError",
    "LoadReport",
    "LoadedModel",
    "LogitsProcessor",
    "MixedPrecision",
    "Model",
    "Output",
    "PlanError",
    "Policy",
    "PolicyError",
    "SpecError",
    "TextStream",
    "Timings",
    "Tokenizer",
    "apply_policy",
    "bench",
    "build_model",
    "calibrate_cache",
    "cast",
    "cast_weight",
    "chat",
    "convert_checkpoint",
    "create_policy",
    "dequantize",
    "find_format",
    "fp8_aware_dense",
    "from_first_match",
    "from_tt_transformers",
    "from_tt_xla",
    "generate",
    "generate_tokens",
    "load_generation_config",
    "load_model",
    "load_plan",
    "load_preset",
    "load_spec",
    "load_tokenizer",
    "policy_template",
    "quantize",
    "resolve_format",
    "resolve_type",
    "save_model",
    "tune_batch",
    "use_compilation_cache",
    "warmup",
]

# Where the names are, the first place that has one; measurements last, which few programs take.
_PACKAGES = ("generation", "loader", "models", "layers", "kernels", "policies", "evaluation")
_PLACES = (*_PACKAGES[:-1], "policies.errors", "policies.formats", _PACKAGES[-1])

if not TYPE_CHECKING:  # to a type checker every name would be there

    def __getattr__(name: str) -> Any:
        """A public name or a package when it is first asked for: until then nothing is imported, JAX neither."""
        if name in _PACKAGES:
            return import_module(f"bombus.{name}")
        for place in _PLACES if name in __all__ else ():
            module = import_module(f"bombus.{place}")
            if name in getattr(module, "__all__", vars(module)):
                globals()[name] = getattr(module, name)
                return globals()[name]
        raise AttributeError(f"module 'bombus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES, *__all__})

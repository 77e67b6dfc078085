"""Bombus: a functional model loader and model zoo for JAX and Flax."""

from bombus.generation import Generated, generate, generate_tokens
from bombus.kernels import cast_weight
from bombus.layers import Cache, fp8_aware_dense
from bombus.loader import (
    GenerationConfig,
    LoadedModel,
    LoadReport,
    Tokenizer,
    dequantize,
    load_generation_config,
    load_model,
    load_plan,
    load_spec,
    load_tokenizer,
    policy_template,
    quantize,
    save_model,
)
from bombus.models import Model, Output, build_model
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
    "BombusError",
    "Cache",
    "CheckpointError",
    "Format",
    "Generated",
    "GenerationConfig",
    "GenerationError",
    "HubError",
    "LoadError",
    "LoadReport",
    "LoadedModel",
    "MixedPrecision",
    "Model",
    "Output",
    "PlanError",
    "Policy",
    "PolicyError",
    "SpecError",
    "Tokenizer",
    "apply_policy",
    "build_model",
    "cast",
    "cast_weight",
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
]

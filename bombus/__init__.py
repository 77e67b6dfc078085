"""Bombus: a functional model loader and model zoo for JAX and Flax."""

from bombus.generation import Generated, generate, generate_tokens
from bombus.layers import Cache, fp8_aware_dense
from bombus.loader import (
    GenerationConfig,
    LoadedModel,
    LoadReport,
    Tokenizer,
    load_generation_config,
    load_model,
    load_plan,
    load_spec,
    load_tokenizer,
    save_model,
)
from bombus.models import Model, Output, build_model
from bombus.policies import MixedPrecision, Policy, apply_policy, cast, create_policy, resolve_type
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

__version__ = "0.1.0"

__all__ = [
    "BombusError",
    "Cache",
    "CheckpointError",
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
    "create_policy",
    "fp8_aware_dense",
    "generate",
    "generate_tokens",
    "load_generation_config",
    "load_model",
    "load_plan",
    "load_spec",
    "load_tokenizer",
    "resolve_type",
    "save_model",
]

"""Architectures, one file each; importing this package registers them."""

from bombus.models import (
    deepseek_v3,
    gemma,
    gemma2,
    gemma3_text,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from bombus.models.calibration import calibrate_cache
from bombus.models.decoder import Output
from bombus.models.llama import LlamaSpec
from bombus.models.model import Model, Params, build_model
from bombus.models.qwen3 import Qwen3Spec
from bombus.models.registry import architectures, find_architecture
from bombus.models.spec import DecoderSpec, Spec

__all__ = [
    "DecoderSpec",
    "LlamaSpec",
    "Model",
    "Output",
    "Params",
    "Qwen3Spec",
    "Spec",
    "architectures",
    "build_model",
    "calibrate_cache",
    "deepseek_v3",
    "find_architecture",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
]

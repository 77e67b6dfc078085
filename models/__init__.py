"""Architectures, one file each; importing this package registers them."""

from bombus.models import llama, qwen3
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
    "find_architecture",
    "llama",
    "qwen3",
]

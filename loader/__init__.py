"""From a repository to parameters: hub, files, headers, plan, tensors; and back to files."""

from bombus.loader.convert import dequantize, quantize
from bombus.loader.generation_config import GenerationConfig, load_generation_config
from bombus.loader.load import LoadedModel, load_model, load_plan, load_spec, policy_template
from bombus.loader.report import LoadReport
from bombus.loader.save import save_model
from bombus.loader.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "GenerationConfig",
    "LoadReport",
    "LoadedModel",
    "Tokenizer",
    "dequantize",
    "load_generation_config",
    "load_model",
    "load_plan",
    "load_spec",
    "load_tokenizer",
    "policy_template",
    "quantize",
    "save_model",
]

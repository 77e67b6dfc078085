"""From a repository to parameters, and back to files.

| step | files |
|---|---|
| where files are | repository, shipped, hub, hub_problems, folder, json_file |
| what is in them | checkpoint, safetensors, torch_files (pickles, zip_records, torch_tensors), meta; tensors |
| how weights are stored there | conventions, layouts, quantization, compressed, qweight |
| what becomes of them | places, selection, sources, matching, plan, policy, report |
| doing it | load, read, cache, compiled, convert |
| writing | units, written, write, save, convert_checkpoint |
| text | tokenizer, tokenizer_model (sentencepiece, tiktoken_file), chat_template |
| how it is made | generation_config, generation_kinds, generation_settings |
"""

from bombus.loader.compiled import use_compilation_cache
from bombus.loader.convert import dequantize, quantize
from bombus.loader.convert_checkpoint import convert_checkpoint
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
    "convert_checkpoint",
    "dequantize",
    "load_generation_config",
    "load_model",
    "load_plan",
    "load_spec",
    "load_tokenizer",
    "policy_template",
    "quantize",
    "save_model",
    "use_compilation_cache",
]

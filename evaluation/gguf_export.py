"""A GGUF file of a checkpoint, for comparisons with llama.cpp and nothing else: weights and sizes, no tokenizer.

Qwen3 and Llama, in 16 or 32 bits. The file is written by the `gguf` package, one tensor at a time. Where transformers
turns dimension i of a head together with i + half, llama.cpp's Llama turns neighbours: rows of queries and keys are
put in that order. Its Qwen3 turns as transformers does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bombus.evaluation.errors import EvaluationError
from bombus.loader import load_spec
from bombus.loader.checkpoint import read_config, read_headers
from bombus.loader.repository import open_repository
from bombus.loader.tensors import TensorInfo
from bombus.models import DecoderSpec
from bombus.policies.errors import Problem, closest

TYPES = ("Q8_0", "BF16", "F32")
_BLOCK = 32  # values of a row that share a scale in Q8_0
_ENDS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_BLOCKS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OF_HEADS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
# model_type -> the layers of a block.
_ARCHITECTURES = {"qwen3": _BLOCKS | _OF_HEADS, "llama": _BLOCKS}
_REMEDY = "give a file that llama.cpp's own converter made: gguf=FILE (--gguf FILE)"


def export_gguf(repo: str | PathLike[str], file: str | PathLike[str], type: str = "Q8_0", **hub: Any) -> Path:
    """`file`, written with the weights of a repository: matrices in "Q8_0", "BF16" or "F32", vectors in float32.

    Rows that are no whole blocks of Q8_0 are kept in BF16. Raises EvaluationError that lists everything about the
    checkpoint that this does not write, or without the `gguf` package.
    """
    if type not in TYPES:
        raise EvaluationError(Problem(subject=f"type {type!r}", message="is not written", remedy=closest(type, TYPES)))
    repository = open_repository(repo, **hub)
    architecture = str(read_config(repository).get("model_type"))
    spec = load_spec(repo, architecture="causal_lm", **hub)
    headers = read_headers(repository)
    names = _names(headers, architecture, spec)
    problems = [*_unknown(names, headers), *_beyond(architecture, spec)]
    if problems:
        raise EvaluationError(problems, where=str(repository))
    try:
        gguf: Any = importlib.import_module("gguf")
    except ImportError:
        raise EvaluationError(
            Problem(subject="gguf", message="is not installed", remedy="run `pip install gguf`")
        ) from None
    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(str(file), architecture)
    for name, value in _sizes(spec).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{name}", value)
    writer.add_tokenizer_model("no_vocab")
    stored = {}
    for tensor, written in names.items():
        shape = headers[tensor].shape
        kept = "F32" if len(shape) == 1 else "BF16" if type == "Q8_0" and shape[-1] % _BLOCK else type
        stored[tensor] = types[kept]
        size = gguf.quant_shape_to_byte_shape(shape, types[kept])
        writer.add_tensor_info(written, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=types[kept])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in names:
            values = headers[tensor].read(tensor)
            if architecture == "llama":
                values = _neighbours(tensor, values, spec)
            writer.write_tensor_data(_bytes(values, stored[tensor], gguf.quants.quantize))
    except OSError as error:
        raise EvaluationError(
            Problem(subject="GGUF file", message=f"cannot be written: {error}"), where=str(file)
        ) from error
    finally:
        writer.close()
    return Path(file)


def _names(headers: Mapping[str, TensorInfo], architecture: str, spec: DecoderSpec) -> dict[str, str | None]:
    """llama.cpp's name of every tensor; None for those that this does not know."""
    known = {**_ENDS}
    for block in range(spec.num_blocks):
        layers = _ARCHITECTURES.get(architecture, {}).items()
        known |= {f"model.layers.{block}.{theirs}": f"blk.{block}.{name}" for theirs, name in layers}
    found: dict[str, str | None] = {}
    for tensor in headers:
        layer, _, kind = tensor.rpartition(".")
        if layer == "lm_head" and spec.tie_word_embeddings:
            continue
        is_known = layer in known and kind in ("weight", "bias") and (kind, architecture) != ("bias", "qwen3")
        found[tensor] = f"{known[layer]}.{kind}" if is_known else None
    return found


def _unknown(names: Mapping[str, str | None], headers: Mapping[str, TensorInfo]) -> list[Problem]:
    wide = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
    narrow = [tensor for tensor, name in names.items() if name is not None and headers[tensor].dtype not in wide]
    if narrow:  # whose scales are unknown as well
        more = f" and {len(narrow) - 1} more are" if narrow[1:] else " is"
        return [
            Problem(
                subject=f"tensor {narrow[0]}",
                message=f"{more.strip()} in low precision",
                expected="16 or 32 bits",
                found=str(headers[narrow[0]].dtype),
                remedy=f"convert the checkpoint to bf16 first (`bombus convert`), or {_REMEDY}",
            )
        ]
    unknown = [tensor for tensor, name in names.items() if name is None]
    return [
        Problem(subject=f"tensor {tensor}", message="is not one that a GGUF file is made of here", remedy=_REMEDY)
        for tensor in unknown[:8]
    ]


def _beyond(architecture: str, spec: DecoderSpec) -> list[Problem]:
    """What the sizes in the file would not say."""
    facts = {
        f"the architecture {architecture}": architecture not in _ARCHITECTURES,
        "rotary scaling": spec.rotary is None or spec.rotary.scaling is not None or spec.rotary.fraction != 1,
        f"the activation {spec.activation}": spec.activation != "silu",
        "sliding windows": any(spec.window_of(index) is not None for index in range(spec.num_blocks)),
    }
    return [
        Problem(subject=what, message="is not written to a GGUF file here", remedy=_REMEDY)
        for what, is_so in facts.items()
        if is_so
    ]


def _sizes(spec: DecoderSpec) -> dict[str, int | float]:
    assert spec.rotary is not None
    return {
        "vocab_size": spec.vocab_size,
        "context_length": spec.max_positions,
        "embedding_length": spec.hidden_size,
        "block_count": spec.num_blocks,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": float(spec.norm_epsilon),
        "rope.dimension_count": spec.head_dim,
        "rope.freq_base": float(spec.rotary.theta),
    }


def _neighbours(tensor: str, values: np.ndarray, spec: DecoderSpec) -> np.ndarray:
    """Rows of queries and keys with i and i + half of every head beside each other; all else as it is."""
    heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(tensor.split(".")[-2])
    if heads is None:
        return values
    halves = values.reshape(heads, 2, spec.head_dim // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _bytes(values: np.ndarray, type: Any, quantize: Callable[[np.ndarray, Any], np.ndarray]) -> np.ndarray:
    if type.name == "Q8_0":
        return quantize(values.astype(np.float32), type)
    wanted = np.dtype(np.float32) if type.name == "F32" else np.dtype(ml_dtypes.bfloat16)
    return np.ascontiguousarray(values.astype(wanted, copy=False)).view(np.uint8)

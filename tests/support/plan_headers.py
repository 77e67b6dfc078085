"""Headers of a small Llama, made by hand, the plan that is made of them, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bombus.loader.plan import LoadPlan, make_plan
from bombus.loader.tensors import TensorInfo
from bombus.models.llama import LlamaSpec
from bombus.models.model import flat
from bombus.policies import as_precision
from bombus.policies.errors import PlanError

BF16 = np.dtype(ml_dtypes.bfloat16)
F8 = np.dtype(ml_dtypes.float8_e4m3fn)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
E5M2 = np.dtype(ml_dtypes.float8_e5m2)
F16, F32, F64, I8, I32, I64, U8 = (
    np.dtype(name) for name in ("float16", "float32", "float64", "int8", "int32", "int64", "uint8")
)
# One block; every kernel has several tiles of 128, partial ones among them.
SIZES = {
    "vocab_size": 320,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_blocks": 1,
    "num_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 48,
}
LAYER = "model.layers.0."
# (outputs, inputs) and the grid of scales, ceil(outputs / 128) x ceil(inputs / 128), of transformers' layers.
KERNELS = {
    "self_attn.q_proj": ((288, 192), (3, 2)),
    "self_attn.k_proj": ((96, 192), (1, 2)),
    "self_attn.v_proj": ((96, 192), (1, 2)),
    "self_attn.o_proj": ((192, 288), (2, 3)),
    "mlp.gate_proj": ((320, 192), (3, 2)),
    "mlp.up_proj": ((320, 192), (3, 2)),
    "mlp.down_proj": ((192, 320), (2, 3)),
}
OTHERS = {
    "model.embed_tokens.weight": (320, 192),
    "model.norm.weight": (192,),
    "model.layers.0.input_layernorm.weight": (192,),
    "model.layers.0.post_attention_layernorm.weight": (192,),
}
OUR_KERNELS = {
    "self_attn.q_proj": "decoder.blocks.0.self_attention.query.kernel",
    "self_attn.k_proj": "decoder.blocks.0.self_attention.key.kernel",
    "self_attn.v_proj": "decoder.blocks.0.self_attention.value.kernel",
    "self_attn.o_proj": "decoder.blocks.0.self_attention.output.kernel",
    "mlp.gate_proj": "decoder.blocks.0.ffn.gate.kernel",
    "mlp.up_proj": "decoder.blocks.0.ffn.intermediate.kernel",
    "mlp.down_proj": "decoder.blocks.0.ffn.output.kernel",
}
GATE = OUR_KERNELS["mlp.gate_proj"]
EMBEDDING, NORM = "embedder.token_embedding.embedding", "output_norm.scale"
UP, DOWN, QUERY, OUTPUT = (
    f"{LAYER}{name}.weight" for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj")
)
HEAD = "language_modeling_head.output.kernel"
FP8 = "f8_e4m3fn"
KEEP, CAST, DEQUANTIZE, QUANTIZE, REQUANTIZE = "keep", "cast", "dequantize", "quantize", "requantize"


def tensor(shape: tuple[int, ...], dtype: np.dtype = BF16, file: str = "/does/not/exist.safetensors") -> TensorInfo:
    # No such file: a plan that opened it would fail.
    size = int(np.prod(shape)) * dtype.itemsize
    return TensorInfo(dtype=dtype, shape=shape, file=Path(file), start=0, stop=size)


def headers(kernels: np.dtype = BF16, *, others: np.dtype = BF16, scales: np.dtype = F32) -> dict[str, TensorInfo]:
    """A Llama of one block with a tied head."""
    result = {name: tensor(shape, others) for name, shape in OTHERS.items()}
    for name, (shape, grid) in KERNELS.items():
        result[f"{LAYER}{name}.weight"] = tensor(shape, kernels)
        if kernels == F8:
            result[f"{LAYER}{name}.weight_scale_inv"] = tensor(grid, scales)
    return result


def llama(**changes: Any) -> LlamaSpec:
    return LlamaSpec(**{**SIZES, "tie_word_embeddings": True, **changes})


def plan(found: Mapping[str, TensorInfo], policy: Any = None, *, spec: Any = None, **options: Any) -> LoadPlan:
    return make_plan(llama() if spec is None else spec, found, as_precision(policy), **options)


def refusal(found: Mapping[str, TensorInfo], policy: Any = None, **options: Any) -> list[str]:
    """The problems of a plan that cannot be made, one text each."""
    with pytest.raises(PlanError) as caught:
        plan(found, policy, **options)
    return [str(problem) for problem in caught.value.problems]


def stored(made: LoadPlan) -> dict[str, tuple[str, str]]:
    """What every parameter is stored as, in the words of the registry, and what is done for that."""
    return {entry.path: (str(entry.format), entry.action) for entry in made.entries}


def sources(made: LoadPlan) -> dict[str, str | None]:
    return {entry.path: entry.source.tensor if entry.source else None for entry in made.entries}


def arrays(made: LoadPlan, path: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """What the model holds for the weight at `path`: name -> (shape, type) of its codes and of each of its parts."""
    params = flat(made.model.abstract_params)
    layer, _, name = path.rpartition(".")
    found = {part: params.get(f"{layer}.{part}") for part in (name, "scale_inv", "zero_point", "global_scale")}
    return {part: (leaf.shape, leaf.dtype) for part, leaf in found.items() if leaf is not None}

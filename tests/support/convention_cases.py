"""The conventions that are tested, by name: how weights are made, and the configuration that goes with them."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from conventions import E5M2, E8M0, KERNELS, Convention, fp4, fp8, in_order, integers

BF16, F16 = ml_dtypes.bfloat16, np.float16
# In the last of each no size is a whole number of tiles of 128, of the others none of 16, 24 or 32; groups of 16 and
# words of eight codes are whole or not, as their formats have them.
SIZES = {
    "odd": {"hidden_size": 35, "intermediate_size": 34, "num_heads": 1, "num_kv_heads": 1, "head_dim": 34},
    "eights": {"hidden_size": 48, "intermediate_size": 40, "num_heads": 2, "num_kv_heads": 1, "head_dim": 24},
    "blocks": {"hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32},
    "tiles": {"hidden_size": 192, "intermediate_size": 320, "num_heads": 6, "num_kv_heads": 2, "head_dim": 48},
}
LAYER = "model.layers.0."
EMBEDDING = r"model\.embed_tokens"
ATTENTION, FEED_FORWARD = (rf"model\.layers\.\d+\.{part}\..*_proj" for part in ("self_attn", "mlp"))
TENSOR, CHANNEL = (0, 0), (1, 0)


def hugging_face(block: list[int] | None = None, method: str = "fp8", **changes: Any) -> dict[str, Any]:
    section = {"quant_method": method, "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": block}
    return {key: value for key, value in (section | changes).items() if value != "absent"}


def compressed(groups: list[tuple[list[str], dict[str, Any] | None]], format: str, **more: Any) -> dict[str, Any]:
    activations = more.pop("input_activations", None)
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {
            f"group_{index}": {"targets": targets, "weights": weights, "input_activations": activations}
            for index, (targets, weights) in enumerate(groups)
        },
    } | more


def modelopt(algorithm: str, **more: Any) -> dict[str, Any]:
    ignore = {"ignore": ["lm_head"], "producer": {"name": "modelopt"}}
    return {"quant_method": "modelopt", "quant_algo": algorithm, **ignore, **more}


def beside(algorithm: str, **more: Any) -> dict[str, Any]:
    """hf_quant_config.json."""
    inner = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"], **more}
    return {"hf_quant_config.json": {"producer": {"name": "modelopt", "version": "0.33"}, "quantization": inner}}


def gptq(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, **more}


def scales(*names: str, shape: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    return {f"{LAYER}{name}": np.full(shape, 0.5 + index, np.float32) for index, name in enumerate(names)}


INT = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 5, "dynamic": False}
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
OF_ITS_OWN = ["model.layers.0.self_attn.q_proj", "re:.*mlp.gate_proj$"]
WIDE_INPUTS = r"model\.layers\.\d+\..*(?<!down)(?<!\.o)_proj"  # 35 inputs
SCALAR = "f8_e4m3fn(tile=tensor)"
bytes_of_e8m0 = partial(fp8, scale="U8")
one_number = {"shape": lambda grid: grid.reshape(())}
one_in_a_row = {"shape": lambda grid: grid.reshape(1)}
four_dimensions = {"shape": lambda grid: grid[:, None, :, None]}

CASES = {
    # Hugging Face's block FP8, and its aliases.
    "fp8": Convention(
        makers=fp8("f8_e4m3fn", (128, 128)),
        section=hugging_face([128, 128], modules_to_not_convert=None),
        base="tiles",
    ),
    "fp8, odd blocks, bf16": Convention(
        makers=fp8("f8_e4m3fn(tile=16x24, scale=bf16)", (16, 24), scale=BF16), section=hugging_face([16, 24])
    ),
    "fp8, weight_scale, f16": Convention(
        makers=fp8("f8_e4m3fn(tile=24x16, scale=f16)", (24, 16), scale=F16, word="weight_scale"),
        section=hugging_face([24, 16]),
    ),
    "fp8, scale, e8m0": Convention(
        makers=fp8("f8_e4m3fn(scale=e8m0)", (128, 128), scale=E8M0, word="scale"),
        section=hugging_face([128, 128], scale_fmt="ue8m0", fmt="float8_e4m3fn"),
        base="tiles",
    ),
    "fp8, bytes of e8m0": Convention(
        makers=bytes_of_e8m0("f8_e4m3fn(tile=16x24, scale=e8m0)", (16, 24)), section=hugging_face([16, 24])
    ),
    "fp8, Mistral": Convention(
        makers=fp8(SCALAR, TENSOR, word="qscale_weight", **one_number),
        section=hugging_face(None, activation_scheme="static"),
        beside=(".qscale_act",),
    ),
    "fp8, static": Convention(
        makers=fp8("f8_e4m3fn(tile=tensor, scale=bf16)", TENSOR, scale=BF16, **one_in_a_row),
        section=hugging_face(None, activation_scheme="static"),
        beside=(".activation_scale",),
        beside_shape=(1,),
    ),
    "fp8, blocks, static": Convention(
        makers=fp8("f8_e4m3fn(tile=32x8)", (32, 8)),
        section=hugging_face([32, 8], activation_scheme="static"),
        beside=(".input_scale",),
    ),
    "fp8, AutoFP8": Convention(
        makers=fp8(SCALAR, TENSOR, word="weight_scale", **one_number),
        section=hugging_face("absent", activation_scheme="static", fmt="absent", ignored_layers=["lm_head"]),
        beside=(".input_scale",),
        also=scales("self_attn.kv_scale"),
    ),
    "fp8, e5m2": Convention(
        makers=fp8("f8_e5m2(tile=16x24)", (16, 24), element=E5M2), section=hugging_face([16, 24], fmt="e5m2")
    ),
    # The lists of modules are not believed: FP8 is where FP8 tensors are.
    "fp8, ignored_layers": Convention(
        makers={FEED_FORWARD: fp8("f8_e4m3fn(tile=16x24)", (16, 24))},
        section=hugging_face([16, 24], ignored_layers=["model.layers.0.mlp.gate_proj", "lm_head"]),
    ),
    "fp8, modules_to_not_convert": Convention(
        makers={ATTENTION: fp8("f8_e4m3fn(tile=16x24)", (16, 24))},
        section=hugging_face([16, 24], modules_to_not_convert=["model.layers.0.self_attn"]),
    ),
    "fp8, an embedding": Convention(
        makers={
            EMBEDDING: fp8(SCALAR, TENSOR, word="weight_scale", **one_in_a_row),
            KERNELS: fp8("f8_e4m3fn(tile=16x24)", (16, 24)),
        },
        section=hugging_face([16, 24], modules_to_convert=["embed_tokens"]),
    ),
    "mxfp8, bytes": Convention(makers=bytes_of_e8m0("mxfp8", (1, 32)), section=hugging_face([1, 32], "mxfp8")),
    "mxfp8, e8m0": Convention(
        makers=fp8("mxfp8", (1, 32), scale=E8M0, word="weight_scale"), section=hugging_face("absent", "mxfp8")
    ),
    "mxfp8, e5m2": Convention(
        makers=bytes_of_e8m0("mxfp8(element=f8_e5m2)", (1, 32), element=E5M2), section=hugging_face([1, 32], "mxfp8")
    ),
    # No configuration: the scale that stands beside the codes says it.
    "alone, blocks": Convention(makers=fp8("f8_e4m3fn", (128, 128)), section=None, base="tiles", shards=3),
    "alone, weight_scale, bf16": Convention(
        makers=fp8("f8_e4m3fn(scale=bf16)", (128, 128), scale=BF16, word="weight_scale"), section=None, base="tiles"
    ),
    "alone, channels": Convention(makers=fp8("f8_e4m3fn(tile=channel)", CHANNEL), section=None),
    "alone, a tensor, e5m2": Convention(
        makers=fp8("f8_e5m2(tile=tensor, scale=f16)", TENSOR, element=E5M2, scale=F16, **one_number), section=None
    ),
    "alone, bytes of e8m0": Convention(makers=bytes_of_e8m0("mxfp8", (1, 32), word="weight_scale"), section=None),
    "fp8, shards": Convention(
        makers=fp8("f8_e4m3fn(tile=16x24)", (16, 24), word="scale"), section=hugging_face([16, 24]), shards=2
    ),
    # compressed-tensors.
    "compressed, static": Convention(
        makers=fp8("f8_e4m3fn(tile=tensor, scale=bf16)", TENSOR, scale=BF16, word="weight_scale", **one_in_a_row),
        section=compressed([(["Linear"], FLOAT)], "float-quantized", input_activations=FLOAT),
        beside=(".input_scale",),
        beside_shape=(1,),
    ),
    "compressed, cache": Convention(
        makers=fp8("f8_e4m3fn(tile=channel)", CHANNEL, word="weight_scale"),
        section=compressed([(["Linear"], FLOAT | {"strategy": "channel"})], "float-quantized", kv_cache_scheme=CACHE),
        also=scales("self_attn.k_scale", "self_attn.v_scale", shape=(1,)),
    ),
    "compressed, cache of projections": Convention(
        makers={WIDE_INPUTS: integers("int4(group=5, scale=f16)", 5, style="packed", zeros=False)},
        section=compressed([([f"re:{WIDE_INPUTS}"], INT)], "pack-quantized", kv_cache_scheme=CACHE),
        also=scales("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    ),
    "compressed, mixed": Convention(
        makers={
            ATTENTION: fp8("f8_e4m3fn(tile=channel, scale=bf16)", CHANNEL, scale=BF16, word="weight_scale"),
            FEED_FORWARD: integers("int4(group=32)", 32, style="packed", zeros=False, scale=BF16),
        },
        section=compressed(
            [
                (["re:.*self_attn.*", "re:.*q_proj"], FLOAT | {"strategy": "channel"}),
                (["re:.*mlp.*"], INT | {"group_size": 32}),
            ],
            "mixed-precision",
        ),
        base="blocks",
    ),
    "compressed, actorder": Convention(
        makers={WIDE_INPUTS: integers("int4(group=5, zero_points, scale=f32)", 5, style="packed", scale=np.float32)},
        section=compressed(
            [([f"re:{WIDE_INPUTS}"], INT | {"symmetric": False, "actorder": "static"})], "pack-quantized"
        ),
    ),
    "compressed, g_idx in order": Convention(
        makers={WIDE_INPUTS: integers("int4(group=7, scale=f16)", 7, style="packed", zeros=False, g_idx=in_order)},
        section=compressed([([f"re:{WIDE_INPUTS}"], INT | {"group_size": 7, "actorder": "weight"})], "pack-quantized"),
    ),
    "compressed, g_idx not set": Convention(
        makers=integers(
            "int8(scale=bf16)",
            0,
            style="packed",
            bits=8,
            zeros=False,
            scale=BF16,
            g_idx=lambda k, _: np.full(k.shape, -1),
        ),
        section=compressed([(["Linear"], INT | {"num_bits": 8, "strategy": "channel"})], "pack-quantized"),
    ),
    "compressed, attention": Convention(
        makers={FEED_FORWARD: integers("int4(group=32)", 32, style="packed", zeros=False, scale=BF16)},
        section=compressed(
            [(["re:.*mlp.*"], INT | {"group_size": 32}), (["Qwen3Attention"], None)],
            "pack-quantized",
            input_activations=CACHE,
        ),
        base="blocks",
        also=scales("self_attn.q_scale", "self_attn.k_scale", "self_attn.v_scale", shape=(2, 1, 1))
        | scales("self_attn.q_zero_point", "self_attn.k_zero_point", "self_attn.v_zero_point"),
    ),
    # Meta's.
    "fbgemm_fp8": Convention(
        makers=fp8("f8_e4m3fn(tile=channel)", CHANNEL, word="weight_scale"),
        section={"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
    ),
    # NVIDIA's modelopt, in config.json or beside it.
    "modelopt, FP8": Convention(
        makers=fp8(SCALAR, TENSOR, word="weight_scale", **one_number),
        section=modelopt("FP8", kv_cache_scheme={"type": "float", "num_bits": 8, "dynamic": False}),
        beside=(".input_scale",),
        also=scales("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    ),
    "modelopt's file, fp8": Convention(
        makers=fp8(SCALAR, TENSOR, word="weight_scale", **one_number),
        section=None,
        files=beside("fp8"),
        beside=(".input_scale", ".output_scale"),
    ),
    "modelopt, channels": Convention(
        makers=fp8("f8_e4m3fn(tile=channel)", CHANNEL, word="weight_scale", shape=lambda grid: grid.reshape(-1)),
        section=modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
    ),
    "modelopt, FP8_PB_WO": Convention(
        makers=fp8("f8_e4m3fn", (128, 128), word="weight_scale", **four_dimensions),
        section=modelopt("FP8_PB_WO"),
        base="tiles",
    ),
    "modelopt's file, fp8_pb_wo": Convention(
        makers=fp8("f8_e4m3fn(scale=bf16)", (128, 128), word="weight_scale", scale=BF16, **four_dimensions),
        section=None,
        files=beside("fp8_pb_wo"),
        base="tiles",
    ),
    "modelopt, MXFP8": Convention(
        makers=bytes_of_e8m0("mxfp8", (1, 32), word="weight_scale"), section=modelopt("MXFP8")
    ),
    "modelopt, NVFP4": Convention(
        makers=fp4("nvfp4", style="modelopt"), section=modelopt("NVFP4", group_size=16), beside=(".input_scale",)
    ),
    "modelopt's file, nvfp4": Convention(
        makers={FEED_FORWARD: fp4("nvfp4", style="modelopt")}, section=None, files=beside("nvfp4", group_size=16)
    ),
    "modelopt, W4A16_NVFP4": Convention(
        makers=fp4("nvfp4", style="modelopt"), section=modelopt("w4a16_nvfp4"), base="blocks"
    ),
    "modelopt, mixed": Convention(
        makers={
            ATTENTION: fp8(SCALAR, TENSOR, word="weight_scale", **one_number),
            FEED_FORWARD: fp4("nvfp4", style="modelopt"),
        },
        section=modelopt("MIXED_PRECISION", quantized_layers={f"{LAYER}mlp.up_proj": {"quant_algo": "NVFP4"}}),
        beside=(".input_scale",),
    ),
    # OpenAI's gpt-oss.
    "mxfp4": Convention(
        makers=fp4("mxfp4", style="blocks", block=32),
        section={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        base="blocks",
    ),
    "mxfp4, alone, partial blocks": Convention(makers=fp4("mxfp4", style="blocks", block=32), section=None),
    # GPTQ and AWQ, which are stored inputs first.
    "gptq": Convention(
        makers=integers("int4(group=16, zero_points, scale=f16)", 16, style="gptq", g_idx=in_order),
        section=gptq(4, 16, sym=False, checkpoint_format="gptq"),
        base="eights",
    ),
    "gptq, symmetric": Convention(
        makers=integers("int4(group=channel, zero_points, scale=f16)", 0, style="gptq", zeros=False, g_idx=in_order),
        section=gptq(4, -1, sym=True),
        base="eights",
    ),
    "gptq_v2": Convention(
        makers=integers("int4(group=8, zero_points)", 8, style="gptq_v2", scale=BF16, g_idx=in_order),
        section=gptq(4, 8, sym=False, checkpoint_format="gptq_v2"),
        base="eights",
    ),
    "gptq_v2, format": Convention(
        makers=integers("int4(group=channel, zero_points, scale=f16)", 0, style="gptq_v2"),
        section=gptq(4, -1, sym=False, format="gptq_v2"),
        base="eights",
    ),
    "gptq, 8 bits": Convention(
        makers=integers("int8(group=16, scale=f16)", 16, style="gptq", bits=8, zeros=False, g_idx=in_order),
        section=gptq(8, 16, sym=True),
        base="eights",
    ),
    "gptq_v2, 8 bits": Convention(
        makers=integers("int8", 0, style="gptq_v2", bits=8, zeros=False, scale=np.float32),
        section=gptq(8, -1, checkpoint_format="gptq_v2"),
        base="eights",
    ),
    "awq": Convention(
        makers=integers("int4(group=16, zero_points, scale=f16)", 16, style="awq"),
        section={"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "GEMM"},
        base="eights",
    ),
    "awq, older names": Convention(
        makers={FEED_FORWARD: integers("int4(group=channel, zero_points, scale=f16)", 0, style="awq")},
        section={"quant_method": "awq", "w_bit": 4, "q_group_size": -1, "modules_to_not_convert": ["self_attn"]},
        base="eights",
    ),
}

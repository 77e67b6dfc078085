"""The plan, a pure function: what is read as what, and every problem at once, from plain dicts of headers."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bombus.loader.compressed import Group
from bombus.loader.plan import make_plan
from bombus.loader.quantization import CompressedScheme, Scheme
from bombus.loader.report import LoadReport
from bombus.loader.tensors import TensorInfo
from bombus.models.llama import LlamaSpec
from bombus.models.model import flat
from bombus.models.qwen3 import Qwen3Spec
from bombus.policies import Policy, as_precision
from bombus.policies.errors import PlanError
from bombus.policies.formats import find_format, type_name

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


def tensor(shape, dtype=BF16, file="/does/not/exist.safetensors"):
    # No such file: a plan that opened it would fail.
    size = int(np.prod(shape)) * dtype.itemsize
    return TensorInfo(dtype=dtype, shape=shape, file=Path(file), start=0, stop=size)


def headers(kernels=BF16, *, others=BF16, scales=F32):
    """A Llama of one block with a tied head."""
    result = {name: tensor(shape, others) for name, shape in OTHERS.items()}
    for name, (shape, grid) in KERNELS.items():
        result[f"{LAYER}{name}.weight"] = tensor(shape, kernels)
        if kernels == F8:
            result[f"{LAYER}{name}.weight_scale_inv"] = tensor(grid, scales)
    return result


def llama(**changes):
    return LlamaSpec(**{**SIZES, "tie_word_embeddings": True, **changes})


def plan(found, policy=None, *, spec=None, **options):
    return make_plan(llama() if spec is None else spec, found, as_precision(policy), **options)


def refusal(found, policy=None, **options):
    """The problems of a plan that cannot be made, one text each."""
    with pytest.raises(PlanError) as caught:
        plan(found, policy, **options)
    return [str(problem) for problem in caught.value.problems]


def stored(made):
    """What every parameter is stored as, in the words of the registry, and what is done for that."""
    return {entry.path: (str(entry.format), entry.action) for entry in made.entries}


def sources(made):
    return {entry.path: entry.source.tensor if entry.source else None for entry in made.entries}


def arrays(made, path):
    """What the model holds for the weight at `path`: name -> (shape, type) of its codes and of each of its parts."""
    params = flat(made.model.abstract_params)
    layer, _, name = path.rpartition(".")
    found = {part: params.get(f"{layer}.{part}") for part in (name, "scale_inv", "zero_point", "global_scale")}
    return {part: (leaf.shape, leaf.dtype) for part, leaf in found.items() if leaf is not None}


def scaled(scales):
    """A block-FP8 format with scales of this type, as it is written."""
    return "f8_e4m3fn" if scales == F32 else f"f8_e4m3fn(scale={type_name(scales)})"


def test_every_parameter_is_read_from_its_tensor():
    assert sources(plan(headers())) == {
        **{ours: f"{LAYER}{theirs}.weight" for theirs, ours in OUR_KERNELS.items()},
        EMBEDDING: "model.embed_tokens.weight",
        NORM: "model.norm.weight",
        "decoder.blocks.0.self_attention_norm.scale": "model.layers.0.input_layernorm.weight",
        "decoder.blocks.0.output_norm.scale": "model.layers.0.post_attention_layernorm.weight",
    }


def test_everything_that_is_wrong_is_listed_in_one_error():
    found = headers(F8)
    del found["model.norm.weight"]
    found["model.layers.0.mlp.router.weight"] = tensor((8, 192))
    found["model.layers.0.input_layernorm.weight"] = tensor((191,))
    del found[f"{QUERY}_scale_inv"]
    found[OUTPUT] = tensor((192, 288), BF16)
    found[f"{DOWN}_scale_inv"] = tensor((3, 2), F32)
    with pytest.raises(PlanError) as caught:
        plan(found, {"*.ffn.gte.*": "bf16", "default": "f32"}, where="some/checkpoint")
    assert str(caught.value).startswith("some/checkpoint: 7 problems\n  - ")
    starts = {
        "tensor model.norm.weight: is missing; parameter output_norm.scale needs it (expected shape (192,)). "
        "Check that config.json belongs to these weights, or pass strict=False to initialise it",
        "tensor model.layers.0.mlp.router.weight: is unexpected: no parameter reads it (found bf16[8, 192]). "
        "Check the architecture in config.json, or pass strict=False to leave it out",
        "tensor model.layers.0.input_layernorm.weight: does not fit parameter decoder.blocks.0.self_attention_norm."
        "scale (expected shape (192,), found (191,)). Check that config.json belongs to these weights",
        f"weight {QUERY}: is in float8_e4m3fn and has no scale (expected a tensor {QUERY}_scale_inv). "
        "Download the checkpoint again; without its scales the values are lost",
        f"tensor {OUTPUT}_scale_inv: is a scale, but {OUTPUT} is bf16 (expected float8_e4m3fn codes)",
        f"weight {DOWN}: has scales that do not fit its shape (192, 320) in tiles of (128, 128) (expected (2, 3) of ",
        "policy rule '*.ffn.gte.*': matches no parameter. The closest are ",
    }
    problems = [str(problem) for problem in caught.value.problems]
    assert {start for start in starts if any(problem.startswith(start) for problem in problems)} == starts
    (grid,) = (problem for problem in problems if problem.startswith(f"weight {DOWN}"))
    assert grid.endswith(", found (3, 2) of f32). Check quantization_config in config.json")


@pytest.mark.parametrize("scale", [tensor((3, 2), F32), tensor((2, 3), I8), tensor((6,), F32)])
def test_scales_of_the_wrong_grid_or_type_are_one_problem(scale):
    """They are not, besides, a tensor that nothing reads: that remedy would lose them."""
    problems = refusal(headers(F8) | {f"{DOWN}_scale_inv": scale})
    assert [problem.partition(":")[0] for problem in problems] == [f"weight {DOWN}"]


def test_a_weight_of_the_wrong_shape_does_not_make_its_scales_unexpected():
    problems = refusal(headers(F8) | {UP: tensor((321, 192), F8)})
    assert [problem.partition(":")[0] for problem in problems] == [f"tensor {UP}"]


TILES_64x96 = Scheme(block_shape=(64, 96))


def with_tiles_of_64x96(scales=F32):
    """(headers of an FP8 file with these tiles, the grid of each kernel's scales)."""
    grids = {name: (-(-shape[0] // 64), -(-shape[1] // 96)) for name, (shape, _) in KERNELS.items()}
    found = {f"{LAYER}{name}.weight_scale_inv": tensor(grid, scales) for name, grid in grids.items()}
    return headers(F8) | found, grids


def test_tiles_are_as_large_as_the_configuration_says():
    found, grids = with_tiles_of_64x96()
    made = plan(found, preserve_source_types=True, scheme=TILES_64x96)
    for theirs, ours in OUR_KERNELS.items():
        assert arrays(made, ours) == {"kernel": (KERNELS[theirs][0], F8), "scale_inv": (grids[theirs], F32)}
        assert stored(made)[ours] == ("f8_e4m3fn(tile=64x96)", KEEP)
    problems = refusal(found)
    assert len(problems) == len(KERNELS)
    assert all("in tiles of (128, 128)" in problem for problem in problems)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {UP: tensor((320, 192), I8)},
            f"weight {UP}: is stored as int8, which parameter decoder.blocks.0.ffn.intermediate.kernel cannot be read",
        ),
        # Only weights have tiles: codes of anything else would be cast bare.
        (
            {"model.norm.weight": tensor((192,), F8)},
            "weight model.norm.weight: is stored as f8_e4m3fn, which parameter output_norm.scale cannot be read",
        ),
        (
            {"model.norm.weight": tensor((192,), E5M2)},
            "weight model.norm.weight: is stored as f8_e5m2, which parameter output_norm.scale cannot be read",
        ),
        (
            {"model.embed_tokens.weight": tensor((320, 192), F8)},
            "weight model.embed_tokens.weight: is in float8_e4m3fn and has no scale (expected a tensor "
            "model.embed_tokens.weight_scale_inv)",
        ),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_type_that_a_parameter_cannot_be_read_from_is_refused(changes, text, strict):
    (problem,) = refusal(headers() | changes, strict=strict)
    assert problem.startswith(text)


def test_strict_false_leaves_out_the_unexpected_and_initialises_the_missing():
    found = headers()
    del found["model.norm.weight"]
    found[UP] = tensor((321, 192))
    found["model.layers.0.mlp.router.weight"] = tensor((8, 192))
    made = plan(found, strict=False)
    assert made.unused == ("model.layers.0.mlp.router.weight",)
    initialised = {entry.path for entry in made.entries if entry.action == "initialise"}
    assert initialised == {NORM, OUR_KERNELS["mlp.up_proj"]}
    assert all((entry.source is None) == (entry.action == "initialise") for entry in made.entries)
    assert set(LoadReport(made, "here").initialised) == initialised


def test_strict_false_never_replaces_a_damaged_weight_and_never_drops_a_rule():
    found = headers(F8) | {f"{DOWN}_scale_inv": tensor((3, 2), F32)}
    del found[f"{QUERY}_scale_inv"]
    subjects = [problem.partition(":")[0] for problem in refusal(found, {"nothing": "bf16"}, strict=False)]
    assert sorted(subjects) == sorted([f"weight {QUERY}", f"weight {DOWN}", "policy rule 'nothing'"])


KEEP, CAST, DEQUANTIZE, QUANTIZE, REQUANTIZE = "keep", "cast", "dequantize", "quantize", "requantize"
FP8 = "f8_e4m3fn"
# policy, preserve_source_types, then (stored, action) of one kernel that rules name, of another, of the embedding.
# The file: FP8 kernels, the rest bf16. DESIGN section 4.
STORAGE = [
    ("nothing said", None, False, ("bf16", DEQUANTIZE), ("bf16", DEQUANTIZE), ("bf16", KEEP)),
    ("preserved", None, True, (FP8, KEEP), (FP8, KEEP), ("bf16", KEEP)),
    ("type", "f32", False, ("f32", DEQUANTIZE), ("f32", DEQUANTIZE), ("f32", CAST)),
    ("type, preserved", "f32", True, (FP8, KEEP), (FP8, KEEP), ("bf16", KEEP)),
    ("default rule, preserved", {"default": "f32"}, True, (FP8, KEEP), (FP8, KEEP), ("bf16", KEEP)),
    ("rule", {GATE: "f16"}, False, ("f16", DEQUANTIZE), ("bf16", DEQUANTIZE), ("bf16", KEEP)),
    ("rule, preserved", {GATE: "f16"}, True, ("f16", DEQUANTIZE), (FP8, KEEP), ("bf16", KEEP)),
    (
        "rule and default, preserved",
        {"*.gate.*": "f16", "default": "f32"},
        True,
        ("f16", DEQUANTIZE),
        (FP8, KEEP),
        ("bf16", KEEP),
    ),
    (
        "rule by tensor name, preserved",
        {f"{LAYER}mlp.gate_proj.weight": "f16"},
        True,
        ("f16", DEQUANTIZE),
        (FP8, KEEP),
        ("bf16", KEEP),
    ),
    (
        "map",
        Policy(params={"kernel": "f32", "default": "f16"}),
        False,
        ("f32", DEQUANTIZE),
        ("f32", DEQUANTIZE),
        ("f16", CAST),
    ),
    # The map names kernels; its default is no more than a default.
    (
        "map, preserved",
        Policy(params={"kernel": "f32", "default": "f16"}),
        True,
        ("f32", DEQUANTIZE),
        ("f32", DEQUANTIZE),
        ("bf16", KEEP),
    ),
    # None is "leave it: not cast at load".
    (
        "None in a map",
        Policy(params={"kernel": None, "default": "f32"}),
        False,
        (FP8, KEEP),
        (FP8, KEEP),
        ("f32", CAST),
    ),
    ("map without default", Policy(params={"embedding": "f32"}), False, (FP8, KEEP), (FP8, KEEP), ("f32", CAST)),
    ("compute only", Policy(compute="f32"), False, (FP8, KEEP), (FP8, KEEP), ("bf16", KEEP)),
    ("rule with None", {GATE: None}, False, (FP8, KEEP), ("bf16", DEQUANTIZE), ("bf16", KEEP)),
    ("rule with None, preserved", {GATE: None}, True, (FP8, KEEP), (FP8, KEEP), ("bf16", KEEP)),
    (
        "codes asked for",
        Policy(params={"kernel": "f8_e4m3fn", "default": "bf16"}),
        False,
        (FP8, KEEP),
        (FP8, KEEP),
        ("bf16", KEEP),
    ),
]


@pytest.mark.parametrize(
    ("policy", "preserve", "named", "other", "embedding"), [row[1:] for row in STORAGE], ids=[row[0] for row in STORAGE]
)
def test_what_parameters_of_an_fp8_file_are_stored_as(policy, preserve, named, other, embedding):
    made = plan(headers(F8), policy, preserve_source_types=preserve)
    found = stored(made)
    assert (found[GATE], found[OUR_KERNELS["mlp.down_proj"]], found[EMBEDDING]) == (named, other, embedding)
    # There are scales exactly where there are codes.
    kept = {path for path, (format, _) in found.items() if format == FP8}
    scales = {path for path in made.model.stored if path.endswith("scale_inv")}
    assert scales == {path.replace("kernel", "scale_inv") for path in kept}


@pytest.mark.parametrize(
    ("policy", "preserve", "kernel", "embedding"),
    [
        (None, False, ("bf16", KEEP), ("bf16", KEEP)),
        (None, True, ("bf16", KEEP), ("bf16", KEEP)),
        ("f16", False, ("f16", CAST), ("f16", CAST)),
        ("f16", True, ("bf16", KEEP), ("bf16", KEEP)),
        (Policy(params={"kernel": "f8_e4m3fn"}), False, (FP8, QUANTIZE), ("bf16", KEEP)),
        ({"*.kernel": "f8_e4m3fn"}, True, (FP8, QUANTIZE), ("bf16", KEEP)),
    ],
)
def test_what_parameters_of_a_bf16_file_are_stored_as(policy, preserve, kernel, embedding):
    found = stored(plan(headers(BF16), policy, preserve_source_types=preserve))
    assert (found[GATE], found[EMBEDDING]) == (kernel, embedding)


@pytest.mark.parametrize("others", [F16, BF16, F32])
def test_fp8_becomes_the_wide_type_that_most_of_the_file_has(others):
    found = headers(F8, others=others)
    # A few values of another type do not change it.
    found["model.norm.weight"] = tensor((192,), F32 if others == F16 else F16)
    assert stored(plan(found))[GATE] == (type_name(others), DEQUANTIZE)


def test_float64_is_read_as_float32():
    """JAX has no float64 unless it is switched on for everything."""
    for preserve in (False, True):
        found = stored(plan(headers(F64), preserve_source_types=preserve))
        assert found[GATE] == ("f32", CAST)


@pytest.mark.parametrize("scales", [F32, BF16, F16, E8M0])
def test_scales_stay_as_the_file_has_them(scales):
    made = plan(headers(F8, scales=scales), "bf16", preserve_source_types=True)
    assert stored(made)[GATE] == (scaled(scales), KEEP)
    assert arrays(made, GATE) == {"kernel": ((320, 192), F8), "scale_inv": ((3, 2), scales)}


@pytest.mark.parametrize(
    ("policy", "preserve"),
    [
        ({"*.scale_inv": "bf16"}, True),
        ({GATE.replace("kernel", "scale_inv"): "bf16"}, True),
        (Policy(params={"kernel": "f8_e4m3fn", "scale_inv": "bf16"}), True),
        (Policy(params={"kernel": "f8_e4m3fn", "scale_inv": "bf16"}), False),
        ({"*.gate.*": {"params": {"kernel": "f8_e4m3fn", "scale_inv": "bf16"}}}, False),
        ({GATE: "f8_e4m3fn(scale=bf16)"}, False),
    ],
)
def test_scales_are_cast_where_they_are_named(policy, preserve):
    """And the codes are not touched: a parameter whose scales alone are cast is not quantized again."""
    made = plan(headers(F8), policy, preserve_source_types=preserve)
    assert stored(made)[GATE] == ("f8_e4m3fn(scale=bf16)", CAST)
    assert arrays(made, GATE) == {"kernel": ((320, 192), F8), "scale_inv": ((3, 2), BF16)}


def test_scales_of_a_type_that_a_format_cannot_have_are_refused():
    """Every weight that the rule reaches is listed, in one error with everything else."""
    problems = refusal(headers() | {"extra": tensor((1,))}, {"*.ffn.*.scale_inv": "bf16", "*.ffn.*.kernel": "mxfp8"})
    assert problems == [
        "tensor extra: is unexpected: no parameter reads it (found bf16[1]). "
        "Check the architecture in config.json, or pass strict=False to leave it out",
        *(
            f"parameter decoder.blocks.0.ffn.{name}.scale_inv: cannot be stored as bf16, which rule "
            "'*.ffn.*.scale_inv' asks for: the scales of mxfp8 have a type of their own"
            for name in ("gate", "intermediate", "output")
        ),
    ]


def test_a_type_for_everything_does_not_cast_scales():
    policy = Policy(params={"kernel": "f8_e4m3fn", "default": "bf16"})
    made = plan(headers(F8), policy)
    assert stored(made)[GATE] == (FP8, KEEP)
    assert arrays(made, GATE)["scale_inv"] == ((3, 2), F32)


@pytest.mark.parametrize("rule", ["*.scale", "norm"])
def test_codes_for_what_has_no_tiles_are_refused(rule):
    assert refusal(headers(), {rule: "f8_e4m3fn"}) == [
        f"policy rule {rule!r}: stores nothing as f8_e4m3fn, which is for weights (expected a parameter that ends in "
        "kernel or embedding, found decoder.blocks.0.output_norm.scale, decoder.blocks.0.self_attention_norm.scale, "
        "output_norm.scale). Give it f32, bf16 or f16, or a pattern that matches weights"
    ]


@pytest.mark.parametrize("kernels", [BF16, F8])
@pytest.mark.parametrize("policy", ["f8_e4m3fn", {"default": "f8_e4m3fn"}, {"*": "f8_e4m3fn"}])
def test_codes_for_everything_are_for_weights(kernels, policy):
    """Norms stay as the file has them."""
    found = stored(plan(headers(kernels), policy))
    kernel = (FP8, QUANTIZE if kernels == BF16 else KEEP)
    norms = {path for path in found if path.endswith(".scale")}
    assert found == {
        **dict.fromkeys(OUR_KERNELS.values(), kernel),
        EMBEDDING: (FP8, QUANTIZE),
        **dict.fromkeys(norms, ("bf16", KEEP)),
    }
    assert len(norms) == 3


def test_another_format_than_the_files_is_quantized_anew():
    made = plan(headers(F8), "int4")
    found = stored(made)
    assert {found[path] for path in OUR_KERNELS.values()} == {("int4", REQUANTIZE)}
    assert (found[EMBEDDING], found[NORM]) == (("int4", QUANTIZE), ("bf16", KEEP))
    # Two codes a byte, a scale for 128 inputs of one output.
    assert arrays(made, GATE) == {"kernel": ((320, 96), U8), "scale_inv": ((320, 2), BF16)}
    (gate,) = (entry for entry in made.entries if entry.path == GATE)
    assert (gate.shape, gate.nbytes) == ((320, 192), 320 * 96 + 2 * 320 * 2)
    assert gate.source.parts.keys() == {"scale_inv"}
    # Everything that it is read from is still what the file has.
    assert [info.dtype for info in gate.source.infos] == [F8, F32]


def test_an_embedding_is_a_weight_too():
    made = plan(headers(), {"embedding": "int8"})
    found = stored(made)
    assert found[EMBEDDING] == ("int8", QUANTIZE)
    assert {format for path, format in found.items() if path != EMBEDDING} == {("bf16", KEEP)}
    # One scale for a token.
    assert arrays(made, EMBEDDING) == {"embedding": ((320, 192), I8), "scale_inv": ((320, 1), F32)}


@pytest.mark.parametrize(
    ("policy", "preserve", "embedding"),
    [
        (None, False, ("bf16", DEQUANTIZE)),
        (None, True, (FP8, KEEP)),
        ("f32", False, ("f32", DEQUANTIZE)),
        ({"default": "bf16", EMBEDDING: None}, False, (FP8, KEEP)),
        ({EMBEDDING: "int8(group=64)"}, True, ("int8(group=64)", REQUANTIZE)),
    ],
)
def test_an_fp8_embedding_is_read_with_its_scales(policy, preserve, embedding):
    found = headers(F8) | {
        "model.embed_tokens.weight": tensor((320, 192), F8),
        "model.embed_tokens.weight_scale_inv": tensor((3, 2), F32),
    }
    made = plan(found, policy, preserve_source_types=preserve)
    assert stored(made)[EMBEDDING] == embedding
    (entry,) = (entry for entry in made.entries if entry.path == EMBEDDING)
    scale = "model.embed_tokens.weight_scale_inv"
    assert entry.source.parts == {"scale_inv": (scale, found[scale])}


@pytest.mark.parametrize(
    ("asked", "action", "format", "codes", "scales"),
    [
        ("f8_e4m3fn", KEEP, "f8_e4m3fn(tile=64x96, scale=bf16)", F8, ((5, 2), BF16)),
        ("f8_e4m3fn(tile=64x96)", KEEP, "f8_e4m3fn(tile=64x96, scale=bf16)", F8, ((5, 2), BF16)),
        ("f8_e4m3fn(scale=bf16)", KEEP, "f8_e4m3fn(tile=64x96, scale=bf16)", F8, ((5, 2), BF16)),
        ("f8_e4m3fn(tile=64x96, scale=f32)", CAST, "f8_e4m3fn(tile=64x96, scale=f32)", F8, ((5, 2), F32)),
        # What does not accept them is made as it was asked for, with the defaults of the rest.
        ("f8_e4m3fn(tile=128x128)", REQUANTIZE, "f8_e4m3fn(tile=128x128)", F8, ((3, 2), F32)),
        ("f8_e4m3fn(tile=channel)", REQUANTIZE, "f8_e4m3fn(tile=channel)", F8, ((320, 1), F32)),
        ("f8_e5m2", REQUANTIZE, "f8_e5m2", E5M2, ((3, 2), F32)),
    ],
)
def test_a_format_that_is_asked_for_takes_the_files_options_where_it_has_none(asked, action, format, codes, scales):
    found, _ = with_tiles_of_64x96(scales=BF16)
    made = plan(found, {"*.kernel": asked}, scheme=TILES_64x96)
    assert stored(made)[GATE] == (format, action)
    assert arrays(made, GATE) == {"kernel": ((320, 192), codes), "scale_inv": scales}


def test_scales_that_would_be_rounded_to_powers_of_two_are_not_cast():
    """That would change the values by up to a third: the codes have to follow."""
    made = plan(headers(F8), {GATE: "f8_e4m3fn(scale=e8m0)"})
    assert stored(made)[GATE] == ("f8_e4m3fn(scale=e8m0)", REQUANTIZE)
    # The other way round nothing is lost.
    made = plan(headers(F8, scales=E8M0), {GATE: "f8_e4m3fn(scale=f32)"})
    assert stored(made)[GATE] == ("f8_e4m3fn(scale=f32)", CAST)


@pytest.mark.parametrize(
    ("policy", "computed"),
    [
        (None, {GATE: BF16, EMBEDDING: BF16, NORM: F32}),
        ("f16", {GATE: F16, EMBEDDING: F16, NORM: F32}),
        (Policy(params="bf16", compute="f32"), {GATE: F32, EMBEDDING: F32, NORM: F32}),
        # A layer without a compute type takes the type of the stream, which is what the embedding returns.
        ({EMBEDDING: {"output": "f32"}}, {GATE: F32, EMBEDDING: F32, NORM: F32}),
        ({"*.gate.*": {"compute": "f16"}}, {GATE: F16, EMBEDDING: BF16, NORM: F32}),
    ],
)
def test_the_plan_says_what_is_computed_in_what(policy, computed):
    found = {entry.path: entry.computed for entry in plan(headers(), policy).entries}
    assert {path: found[path] for path in computed} == computed


def test_the_plan_names_the_rule_of_every_parameter():
    rules = {entry.path: entry.rule for entry in plan(headers(), {"*.gate.*": "f16", "model.norm.*": "f32"}).entries}
    assert {path: rule for path, rule in rules.items() if rule} == {GATE: "*.gate.*", NORM: "model.norm.*"}


HEAD = "language_modeling_head.output.kernel"


def test_a_tied_model_is_read_from_the_embedding_alone():
    made = plan(headers())
    assert HEAD not in sources(made)
    assert sources(made)[EMBEDDING] == "model.embed_tokens.weight"


def test_a_tied_model_is_read_from_lm_head_alone():
    found = headers()
    found["lm_head.weight"] = found.pop("model.embed_tokens.weight")
    made = plan(found)
    assert sources(made)[EMBEDDING] == "lm_head.weight"
    assert HEAD not in sources(made)
    assert made.unused == ()


def test_a_tied_model_with_both_tensors_compares_them():
    found = headers() | {"lm_head.weight": tensor((320, 192))}
    made = plan(found)
    (embedding,) = (entry for entry in made.entries if entry.path == EMBEDDING)
    assert embedding.source.tensor == "model.embed_tokens.weight"
    assert embedding.source.copies == {"lm_head.weight": (found["lm_head.weight"], found["model.embed_tokens.weight"])}
    assert made.unused == ()


def test_a_tied_model_compares_the_scales_of_both_tensors_too():
    names = ("model.embed_tokens.weight", "lm_head.weight")
    found = headers() | {name: tensor((320, 192), F8) for name in names}
    found |= {f"{name}_scale_inv": tensor((3, 2), F32) for name in names}
    made = plan(found, preserve_source_types=True)
    (embedding,) = (entry for entry in made.entries if entry.path == EMBEDDING)
    ours, theirs = ([found[name], found[f"{name}_scale_inv"]] for name in names)
    assert embedding.source.infos == ours
    assert embedding.source.copies == {
        "lm_head.weight": (theirs[0], ours[0]),
        "lm_head.weight_scale_inv": (theirs[1], ours[1]),
    }
    assert made.unused == ()


def test_a_tied_tensor_in_another_format_is_refused():
    """One problem: its scales belong to it."""
    found = headers() | {"lm_head.weight": tensor((320, 192), F8), "lm_head.weight_scale_inv": tensor((3, 2), F32)}
    assert refusal(found) == [
        "tensor lm_head.weight: cannot be a copy of model.embed_tokens.weight, to which config.json says it is tied "
        "(expected bf16[320, 192], found f8_e4m3fn[320, 192]). Load with spec=load_spec(repo, "
        "tie_word_embeddings=False) if they are two tensors"
    ]


def test_a_tied_tensor_that_is_packed_is_refused():
    packed = Group(targets=("Linear",), format=find_format("int4(group=64)"))
    found = headers() | {
        "lm_head.weight_packed": tensor((320, 24), I32),
        "lm_head.weight_scale": tensor((320, 3), BF16),
        "lm_head.weight_shape": tensor((2,), I64),
    }
    problems = refusal(found, scheme=CompressedScheme(groups=(packed,)))
    assert problems == [
        "tensor lm_head.weight_packed: cannot be a copy of model.embed_tokens.weight, to which config.json says it is "
        "tied (expected bf16[320, 192], found int32[320, 24]). Load with spec=load_spec(repo, "
        "tie_word_embeddings=False) if they are two tensors"
    ]


def test_an_untied_model_reads_both_tensors():
    made = plan(headers() | {"lm_head.weight": tensor((320, 192))}, spec=llama(tie_word_embeddings=False))
    assert sources(made)[HEAD] == "lm_head.weight"
    assert all(not entry.source.copies for entry in made.entries)


def test_an_untied_model_without_lm_head_is_refused():
    (problem,) = refusal(headers(), spec=llama(tie_word_embeddings=False))
    assert problem.startswith(f"tensor lm_head.weight: is missing; parameter {HEAD} needs it")


@pytest.mark.parametrize("head", ["base", "causal_lm"])
def test_a_checkpoint_of_the_bare_backbone_is_without_the_prefix(head):
    found = {name.removeprefix("model."): info for name, info in headers(F8).items()}
    made = plan(found, {"layers.0.mlp.gate_proj.weight": "f32"}, spec=llama(head=head))
    assert sources(made)[NORM] == "norm.weight"
    # Rules name the tensors as this checkpoint spells them.
    assert stored(made)[GATE] == ("f32", DEQUANTIZE)


def test_base_leaves_out_the_head_of_a_checkpoint():
    made = plan(headers() | {"lm_head.weight": tensor((320, 192))}, spec=llama(head="base", tie_word_embeddings=False))
    assert made.unused == ("lm_head.weight",)
    assert HEAD not in sources(made)


def test_old_buffers_are_ignored_by_a_written_list():
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    found = headers() | {name: tensor((24,), F32)}
    assert plan(found).unused == (name,)
    # Qwen3 never saved it, so there it is a mistake.
    norms = {f"{LAYER}self_attn.{part}_norm.weight": tensor((48,)) for part in "qk"}
    (problem,) = refusal(found | norms, spec=Qwen3Spec(**SIZES, tie_word_embeddings=True))
    assert problem.startswith(f"tensor {name}: is unexpected: no parameter reads it (found f32[24])")


@pytest.mark.parametrize(
    ("name", "shape", "tied"),
    [
        ("lm_head.bias", (320,), False),
        ("lm_head.bias", (320,), True),
        ("model.norm.bias", (192,), True),
        ("model.embed_tokens.bias", (192,), True),
        ("lm_head.weight_scale_inv", (3, 2), False),
    ],
)
def test_a_tensor_beside_one_that_is_read_is_not_dropped(name, shape, tied):
    """Dropping the bias of a layer that this model has would change its numbers without a word."""
    found = headers() | {name: tensor(shape)}
    if not tied:
        found["lm_head.weight"] = tensor((320, 192))
    (problem,) = refusal(found, spec=llama(tie_word_embeddings=tied))
    assert problem.startswith(f"tensor {name}: ")


def test_blocks_that_the_file_does_not_have_are_missing():
    problems = refusal(headers(), spec=llama(num_blocks=3))
    # Seven kernels and two norms in each of blocks 1 and 2.
    assert len(problems) == 18
    assert all(problem.startswith(("tensor model.layers.1.", "tensor model.layers.2.")) for problem in problems)
    assert all(": is missing; parameter decoder.blocks." in problem for problem in problems)


def test_blocks_that_the_configuration_does_not_have_are_unexpected():
    second = {name.replace("layers.0", "layers.1"): info for name, info in headers().items() if "layers" in name}
    problems = refusal(headers() | second)
    assert len(problems) == 9
    assert all("model.layers.1." in problem and "is unexpected" in problem for problem in problems)


def test_more_blocks_than_tensors_are_refused_before_a_model_is_built():
    # A model of 10^12 blocks would never be finished.
    (problem,) = refusal(headers(), spec=llama(num_blocks=10**12))
    assert problem == ("checkpoint: holds 11 tensors, which cannot be the 1000000000000 blocks that config.json says")


def test_sizes_of_10_to_the_12_are_compared_and_not_allocated():
    problems = refusal(headers(), spec=llama(hidden_size=10**6, vocab_size=10**6))
    assert (
        f"tensor model.embed_tokens.weight: does not fit parameter {EMBEDDING} "
        "(expected shape (1000000, 1000000), found (320, 192)). Check that config.json belongs to these weights"
    ) in problems
    assert len(problems) == 11


def test_the_report_counts_every_tensor_that_is_read():
    """In shards tensors begin at equal offsets; each counts all the same."""
    found = {
        name: tensor(info.shape, info.dtype, f"/does/not/exist/{index}.safetensors")
        for index, (name, info) in enumerate(headers(F8).items())
    }
    values = {name: int(np.prod(info.shape)) for name, info in found.items()}
    kernels = sum(int(np.prod(shape)) for shape, _ in KERNELS.values())
    scales = sum(int(np.prod(grid)) for _, grid in KERNELS.values())
    wide = sum(values[name] for name in OTHERS)
    kept = LoadReport(plan(found, preserve_source_types=True), "here")
    assert (kept.nbytes, kept.file_nbytes) == (kernels + 4 * scales + 2 * wide,) * 2
    dequantized = LoadReport(plan(found), "here")
    assert (dequantized.nbytes, dequantized.file_nbytes) == (2 * kernels + 2 * wide, kernels + 4 * scales + 2 * wide)

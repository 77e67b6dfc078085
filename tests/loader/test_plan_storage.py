"""What the plan stores parameters as: what the file has, what the policy says, and which of them decides."""

from __future__ import annotations

import pytest
from plan_headers import (
    BF16,
    CAST,
    DEQUANTIZE,
    EMBEDDING,
    F8,
    F16,
    F32,
    F64,
    FP8,
    GATE,
    I8,
    KEEP,
    LAYER,
    NORM,
    OUR_KERNELS,
    QUANTIZE,
    REQUANTIZE,
    U8,
    arrays,
    headers,
    plan,
    refusal,
    stored,
    tensor,
)

from bombus.policies import Policy
from bombus.policies.formats import type_name

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

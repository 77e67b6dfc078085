"""The plan, a pure function: what is read from where, and every problem at once, from plain dicts of headers."""

from __future__ import annotations

import numpy as np
import pytest
from plan_headers import (
    BF16,
    DOWN,
    E5M2,
    EMBEDDING,
    F8,
    F16,
    F32,
    GATE,
    I8,
    KERNELS,
    LAYER,
    NORM,
    OTHERS,
    OUR_KERNELS,
    OUTPUT,
    QUERY,
    UP,
    headers,
    llama,
    plan,
    refusal,
    sources,
    tensor,
)

from bombus.loader.report import LoadReport
from bombus.policies import Policy
from bombus.policies.errors import PlanError


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


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {UP: tensor((320, 192), I8)},
            f"weight {UP}: is in int8 and has no scale (expected a tensor {UP}_scale)",
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

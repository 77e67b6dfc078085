"""quantize a model in memory: what loading would give, pure, nothing else touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy_formats
import pytest
from converted import (
    DOWN,
    EMBEDDING,
    FP8,
    GATE,
    MIXED,
    NORM,
    QUERY,
    SIZES,
    UP,
    as_bytes,
    formats,
    shared,
    stored_weight,
    values64,
)
from numpy_decoder import read_tensors
from safetensors.numpy import save_file

import bombus
from bombus.loader.convert import dequantize, quantize
from bombus.models.model import flat, nested

Load = Callable[..., bombus.LoadedModel]


@pytest.fixture(scope="module")
def load(tiny: Callable[..., Path]) -> Load:
    """`load(weights, **options)`: a tiny Qwen3 of this type, loaded."""
    return lambda weights, **options: bombus.load_model(tiny("qwen3", weights, **SIZES), **options)


WITH_SCALES = {"params": {"kernel": "f8_e4m3fn", "scale_inv": "bf16", "default": "f16"}, "compute": "f32"}


@pytest.mark.parametrize(
    ("weights", "policy"),
    [
        ("f32", "int8"),
        ("bf16", MIXED),
        ("bf16", {"default": WITH_SCALES, "*.gate.*": "bfp8(scale_rule=search)"}),
        ("f32", {"*.ffn.*": "mxfp4", "model.layers.0.mlp.down_proj.weight": None, "*.scale": {"output": "bf16"}}),
    ],
)
def test_quantize_is_what_loading_with_the_policy_gives(weights: str, policy: Any, load: Load) -> None:
    """Array for array, decision for decision, row for row of the report."""
    found, expected = quantize(load(weights), policy), load(weights, policy=policy)
    assert as_bytes(found.params) == as_bytes(expected.params)
    assert found.model.formats == expected.model.formats
    assert found.model.decisions == expected.model.decisions
    assert found.model.main_type == expected.model.main_type
    assert found.report.to_json()["parameters"] == expected.report.to_json()["parameters"]
    types = {path: value.dtype for path, value in flat(found.params).items()}
    assert types == found.model.stored


def test_quantize_leaves_what_it_is_given_as_it_is(load: Load) -> None:
    """The old model keeps its arrays, and the new one shares those that did not change."""
    loaded = load("bf16")
    before, old_formats, old_report = as_bytes(loaded.params), formats(loaded), str(loaded.report)
    found = quantize(loaded, {"feed_forward": "int8"})
    assert (as_bytes(loaded.params), formats(loaded), str(loaded.report)) == (before, old_formats, old_report)
    assert shared(found, loaded) == set(before) - {GATE, UP, DOWN}
    assert {path for path in formats(found) if formats(found)[path] == "int8"} == {GATE, UP, DOWN}
    assert (found.spec, found.generation_config) == (loaded.spec, loaded.generation_config)


def test_a_policy_that_asks_for_what_there_is_changes_no_array(load: Load) -> None:
    """Nor does one that only says what is computed in what."""
    loaded = load("f8_e4m3fn", preserve_source_types=True)
    found = quantize(loaded, {"*.kernel": "f8_e4m3fn", "default": {"compute": "f32"}})
    assert shared(found, loaded) == set(flat(loaded.params))
    assert {entry.computed.name for entry in found.report.plan.entries} == {"float32"}


def test_quantize_keeps_the_types_that_were_preserved(load: Load) -> None:
    """With preserve_source_types a default did not decide what kernels are stored as, and does not now."""
    loaded = load("f8_e4m3fn", preserve_source_types=True, policy="bf16")
    found = quantize(loaded, {"embedding": "int8"}, on_conflict="replace")
    assert formats(found) == {**formats(loaded), EMBEDDING: "int8"}
    assert shared(found, loaded) == set(flat(loaded.params)) - {EMBEDDING}


def test_replace_also_decides_what_was_preserved(load: Load) -> None:
    """The same policy once more, which at load was not let decide what kernels are stored as."""
    loaded = load("f8_e4m3fn", preserve_source_types=True, policy="bf16")
    assert formats(loaded)[GATE] == FP8
    assert set(formats(quantize(loaded, "bf16", on_conflict="replace")).values()) == {"bf16"}


def conflict(load: Load) -> bombus.LoadedModel:
    """A model in which an earlier policy decided one of the three kernels that a later one is for."""
    return load("bf16", policy={"*.gate.kernel": "int8"})


def test_by_default_an_earlier_policy_counts(load: Load) -> None:
    loaded = conflict(load)
    found = quantize(loaded, {"feed_forward": "int4(group=16)"})
    changed = {path: format for path, format in formats(found).items() if format != formats(loaded)[path]}
    assert changed == dict.fromkeys((UP, DOWN), "int4(group=16)")
    assert GATE in shared(found, loaded)
    assert formats(found) == formats(quantize(loaded, {"feed_forward": "int4(group=16)"}, on_conflict="keep"))


def test_a_later_policy_can_replace_an_earlier_one(load: Load) -> None:
    """What is int8 already is quantized from its values."""
    loaded = conflict(load)
    found = quantize(loaded, {"feed_forward": "int4(group=16)"}, on_conflict="replace")
    assert {formats(found)[path] for path in (GATE, UP, DOWN)} == {"int4(group=16)"}
    expected = quantize(dequantize(loaded, "f32"), {GATE: "int4(group=16)"}, on_conflict="replace")
    assert stored_weight(found, GATE)[0].tolist() == stored_weight(expected, GATE)[0].tolist()
    assert found.model.decisions[GATE].rule == "feed_forward"


def test_conflicts_can_be_errors(load: Load) -> None:
    with pytest.raises(bombus.PolicyError) as caught:
        quantize(conflict(load), {"feed_forward": "int4(group=16)"}, on_conflict="error")
    assert str(caught.value) == (
        "policy: policy rule 'feed_forward': gives Policy(params=int4(group=16), compute=None, output=None) to "
        f"{GATE}, to which rule '*.gate.kernel' of an earlier policy gives Policy(params=int8, compute=None, "
        'output=None). Give on_conflict="keep" for the earlier one, "replace" for this one'
    )


@pytest.mark.parametrize(
    ("policy", "options", "text"),
    [
        (
            {GATE: "int4"},
            {},
            "policy: on_conflict 'keep': leaves nothing to change: an earlier policy decided every parameter that "
            "this one decides, by rule '*.gate.kernel'. Give on_conflict=\"replace\" to decide them again",
        ),
        ({"*": "int4"}, {"on_conflict": "merge"}, "on_conflict: cannot be 'merge' (expected keep, replace, error)"),
        (
            {"norm": "int4"},
            {"only": "*.gate.kernel"},
            "policy: policy rule 'norm': stores nothing as int4, which is for weights (expected a parameter that ends "
            "in kernel or embedding, found decoder.blocks.0.output_norm.scale, "
            "decoder.blocks.0.self_attention.key_norm.scale, decoder.blocks.0.self_attention.query_norm.scale and 2 "
            "more). Give it f32, bf16 or f16, or a pattern that matches weights",
        ),
        (
            {"default": "int4"},
            {"only": ["*.gte.kernel"], "exclude": "head"},
            "policy: 2 problems\n"
            "  - policy rule '*.gte.kernel': matches no parameter. The closest are 'decoder.blocks.0.ffn.gate.kernel'\n"
            "  - policy rule 'head': matches no parameter. The groups of this model are norm, embedding, attention, "
            "feed_forward",
        ),
        (
            {"*.ffn.output.kernel": "mxfp8", "*.scale_inv": "bf16"},
            {},
            "policy: parameter decoder.blocks.0.ffn.output.scale_inv: cannot be stored as bf16, which rule "
            "'*.scale_inv' asks for: the scales of mxfp8 have a type of their own",
        ),
    ],
)
def test_a_policy_that_cannot_be_applied_is_refused(policy: Any, options: dict, text: str, load: Load) -> None:
    with pytest.raises(bombus.PolicyError) as caught:
        quantize(conflict(load), policy, **options)
    assert str(caught.value) == text


def test_only_and_exclude_limit_the_parameters(load: Load) -> None:
    loaded = load("bf16")
    found = quantize(loaded, "int8", only=["feed_forward", "model.embed_tokens.weight"], exclude="*.gate.*")
    assert {path for path, format in formats(found).items() if format == "int8"} == {UP, DOWN, EMBEDDING}
    assert {found.model.decisions[path].rule for path in (GATE, QUERY, NORM)} == {None}


def test_fp8_becomes_int4_by_way_of_its_values(load: Load) -> None:
    """Codes and scales of NumPy for the float32 values; within half a step of the float64 values."""
    loaded = load("f8_e4m3fn", preserve_source_types=True)
    found = quantize(loaded, {"*.kernel": "int4(group=16)"})
    assert formats(loaded)[DOWN] == FP8
    for path in (QUERY, GATE, DOWN):
        codes, parts, options = stored_weight(found, path)
        exact = values64(loaded, path)
        expected = numpy_formats.make_parts(exact.astype(np.float32), **options)
        np.testing.assert_array_equal(parts["scale_inv"], expected["scale_inv"])
        decoded = numpy_formats.decode(codes, parts, **options)
        largest = np.abs(np.pad(exact, ((0, 0), (0, -exact.shape[1] % 16))).reshape(len(exact), -1, 16)).max(axis=2)
        # Half a step of a seventh; a scale that bfloat16 rounded down cuts off 2^-8 at most.
        bound = largest.repeat(16, axis=1)[:, : exact.shape[1]] * (1 / 14 + 2**-8)
        assert (np.abs(decoded - exact) <= bound).all()
        assert np.abs(decoded - exact).max() > 0.5 * bound.min()
    direct = load("f8_e4m3fn", preserve_source_types=True, policy={"*.kernel": "int4(group=16)"})
    assert as_bytes(found.params) == as_bytes(direct.params)


@pytest.mark.parametrize("policy", ["int8(group=5)", MIXED, {"*.kernel": "int8"}])
def test_what_was_quantized_in_memory_is_saved_and_loaded_again(policy: Any, load: Load, tmp_path: Path) -> None:
    found = quantize(load("bf16"), policy)
    bombus.save_model(found, tmp_path)
    again = bombus.load_model(tmp_path, preserve_source_types=True)
    assert as_bytes(again.params) == as_bytes(found.params)
    assert formats(again) == formats(found)
    plain = dequantize(found)
    bombus.save_model(plain, tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    assert as_bytes(bombus.load_model(tmp_path, preserve_source_types=True).params) == as_bytes(plain.params)


def test_the_report_is_that_of_the_new_model(load: Load) -> None:
    """Formats, bytes of the arrays, what is done with what the checkpoint has, and the rules."""
    loaded = load("f8_e4m3fn", preserve_source_types=True, policy={"norm": "f32"})
    found = quantize(loaded, {"embedding": "int4(group=16)", "*.gate.kernel": "int8", DOWN: "bf16", "norm": "f32"})
    rows = {row["parameter"]: row for row in found.report.to_json()["parameters"]}
    assert {path: (row["stored"], row["action"], row["rule"]) for path, row in rows.items()}.items() >= {
        EMBEDDING: ("int4(group=16)[34, 35]", "quantize", "embedding"),
        GATE: ("int8[34, 35]", "requantize", "*.gate.kernel"),
        DOWN: ("bf16[35, 34]", "dequantize", DOWN),
        UP: (f"{FP8}[34, 35]", "keep", ""),
        NORM: ("f32[35]", "cast", "norm"),
    }.items()
    assert found.report.nbytes == sum(value.nbytes for value in flat(found.params).values())
    assert found.report.file_nbytes == loaded.report.file_nbytes
    assert rows[EMBEDDING]["bytes"] == 34 * 18 + 2 * 34 * 3
    assert found.report.explain(GATE) == (
        f"{GATE}: Policy(params=int8, compute=None, output=None) from '*.gate.kernel'. Stored as int8, computed in bf16"
    )
    undecided = found.report.explain(UP)
    assert undecided.startswith(f"{UP}: no ")
    assert undecided.endswith(f". Stored as {FP8}, computed in bf16")


def test_rules_by_the_names_of_a_bare_backbones_tensors_count_here_too(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """As loading reads them: such a checkpoint has no prefix "model."."""
    folder = tiny("qwen3", "bf16", **SIZES)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = {name.removeprefix("model."): tensor for name, tensor in read_tensors(folder).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    rules = {"layers.0.mlp.up_proj.weight": "int8", "layers.*.mlp.gate_proj.*": "f16"}
    expected, loaded = bombus.load_model(tmp_path, policy=rules), bombus.load_model(tmp_path)
    found = quantize(loaded, rules)
    assert formats(found) == formats(expected)
    assert as_bytes(found.params) == as_bytes(expected.params)
    assert bombus.apply_policy(loaded.model, rules).decisions[UP] == expected.model.decisions[UP]


def test_values_that_are_not_finite_are_not_quantized(load: Load) -> None:
    """As at load, and whatever was given stays as it is."""
    loaded = load("bf16")
    values = flat(loaded.params)
    spoiled = replace(loaded, params=nested({**values, UP: values[UP].at[3, 4].set(np.nan)}))
    for format in ("int4", "mxfp8", "f8_e4m3fn"):
        with pytest.raises(bombus.PolicyError) as caught:
            quantize(spoiled, {"*.kernel": format})
        assert str(caught.value).startswith(
            f"quantize: parameter {UP}: cannot be stored as {format}: it has values that are not finite"
        )

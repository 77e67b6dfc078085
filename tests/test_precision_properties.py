"""Properties of any policy: it means the same wherever it is given, and what it stores survives a save, bit for bit."""

from __future__ import annotations

import re
import tempfile
from ast import literal_eval
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import bombus
from bombus.models.abstract import abstract_shapes
from bombus.models.model import flat
from bombus.models.storage import nameable
from bombus.policies.errors import BombusError

# Every kernel is 34 x 35 or 35 x 34: partial tiles and groups, an odd byte at the end, and two shapes to compile for.
SIZES = {
    "preset": "original",
    "num_blocks": 2,
    "vocab_size": 34,
    "hidden_size": 35,
    "intermediate_size": 34,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 34,
    "tie_word_embeddings": False,
}


def examples(count: int) -> settings:
    """The same examples in every run; the first of them compiles."""
    # Not shrunk: an example takes a second, and is small already.
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, phases=phases)


GATE, EMBEDDING = "decoder.blocks.0.ffn.gate.kernel", "embedder.token_embedding.embedding"
PATTERNS = [
    *(GATE, "model.layers.0.mlp.gate_proj.weight", EMBEDDING, "model.norm.weight", "lm_head.weight"),
    *("*", "*.kernel", "model.layers.1.*", "decoder.blocks.?.self_attention.[qk]*", "*.bias", "*.scale_inv"),
    *("decoder.blocks.{0..1}.ffn.{gate,output}.kernel", "decoder.blocks.{1,31}.*", "{attention,embedding}"),
    *(r"re:.*\.(gate|output)\.kernel", r"re:model\.layers\.0\..*weight(_scale_inv)?"),
    *("attention", "feed_forward", "embedding", "head", "norm", "default"),
    GATE.replace("kernel", "scale_inv"),
]
USELESS = ["experts", "*.gte.*", "decoder.blocks.7.*", "lm_heads.weight", "re:layers.*"]
FORMATS = [
    *("f32", "bf16", "f16", "f8_e4m3fn", "f8_e4m3fn(tile=channel, scale=bf16)", "f8_e5m2(tile=16x24, scale=e8m0)"),
    *("int8", "int8(group=16, scale=f16)", "int4", "int4(group=8, zero_points)", "bfp8(scale_rule=search)"),
    *("bfp4(axis=out)", "mxfp8(element=f8_e5m2)", "mxfp4(scale_rule=even)", "nvfp4"),
]
POLICIES = [
    *FORMATS,
    None,
    {"compute": "bf16", "output": "f32"},
    {"params": "int8", "compute": {"kernel": "f32", "default": "bf16"}},
    {"params": {"kernel": "int4", "default": "bf16"}, "compute": "bf16"},
    {"params": {"kernel": None, "embedding": "mxfp4"}},
    {"params": {"kernel": "f8_e4m3fn", "scale_inv": "bf16", "scale": "f32"}, "output": "bf16"},
]


def rule_sets(patterns: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(patterns), st.sampled_from(POLICIES), max_size=5)


@pytest.fixture(scope="module")
def checkpoint(tiny: Callable[..., Path]) -> Path:
    """A Qwen3 of two blocks, untied, with biases, in float32."""
    return tiny("qwen3", "f32", **SIZES, attention_bias=True)


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> bombus.models.DecoderSpec:
    return bombus.load_spec(checkpoint)


@pytest.fixture(scope="module")
def undecided(spec: bombus.models.DecoderSpec) -> bombus.Model:
    return bombus.build_model(spec)


def refusal(make: Callable[[], Any]) -> tuple[Any, list[str]]:
    """(what is made, or None; the problems, if it is refused)."""
    try:
        return make(), []
    except BombusError as error:
        return None, [str(problem) for problem in error.problems]


def named_rule(sentence: str) -> str | None:
    """The rule that an explanation says decided."""
    if ": no rule matches and there is no default" in sentence:
        return None
    rule = re.search(r"\) from ('.*?'|the default), because", sentence)
    assert rule, sentence
    return "default" if rule[1] == "the default" else literal_eval(rule[1])


def types(params: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {path: (leaf.shape, leaf.dtype) for path, leaf in flat(params).items()}


@examples(30)
@given(rules=rule_sets(PATTERNS))
@example(rules={"*": "bf16", GATE: "f32", "model.layers.0.mlp.gate_proj.weight": "int8"})
def test_a_rule_set_means_the_same_in_init_load_apply_and_explain(
    rules: dict[str, Any], checkpoint: Path, spec: bombus.models.DecoderSpec, undecided: bombus.Model
) -> None:
    """Stored types, policies and the rules that are named agree, parameter by parameter."""
    made, problems = refusal(lambda: bombus.build_model(spec, rules))
    report, at_load = refusal(lambda: bombus.load_plan(checkpoint, policy=rules))
    assert problems == at_load
    if made is None:
        return
    loaded, precision = report.plan.model, bombus.MixedPrecision.from_json(rules)
    assert made.formats == loaded.formats
    assert made.decisions == loaded.decisions
    initialised = jax.eval_shape(made.init, jax.random.key(0))
    assert types(initialised) == types(made.abstract_params) == types(loaded.abstract_params)
    applied = bombus.apply_policy(undecided, rules).decisions
    assert applied == {path: made.decisions[path] for path in applied}
    tensors = made.tensor_names()
    for entry in report.plan.entries:
        sentence = precision.explain(entry.path, tensors[entry.path])
        assert named_rule(sentence) == entry.rule == made.decisions[entry.path].rule
        assert report.explain(entry.path).startswith(f"{sentence}. Stored as {made.formats[entry.path]}, computed in ")


@examples(12)
@given(rules=rule_sets(PATTERNS), useless=st.dictionaries(st.sampled_from(USELESS), st.sampled_from(POLICIES)))
@example(rules={"*.ffn.*.kernel": "mxfp8", "*.scale_inv": "bf16"}, useless={"experts": "bf16"})
def test_a_rule_set_of_no_use_is_refused_alike_everywhere(
    rules: dict[str, Any],
    useless: dict[str, Any],
    checkpoint: Path,
    spec: bombus.models.DecoderSpec,
    undecided: bombus.Model,
) -> None:
    """The same problems, all of them at once; apply_policy, which stores nothing, has those of the rules."""
    rules = {**rules, **useless}
    made, problems = refusal(lambda: bombus.build_model(spec, rules))
    _, at_load = refusal(lambda: bombus.load_plan(checkpoint, policy=rules))
    assert problems == at_load
    assert (made is None) >= bool(useless)
    _, applied = refusal(lambda: bombus.apply_policy(undecided, rules))
    names = {path: undecided.architecture.mapping.tensor(path) for path in nameable(abstract_shapes(spec))}
    assert applied == [str(problem) for problem in bombus.MixedPrecision.from_json(rules).problems(names)]
    assert applied == problems[: len(applied)]


KERNELS = [
    *(f"decoder.blocks.0.self_attention.{name}.kernel" for name in ("query", "key", "value", "output")),
    *(f"decoder.blocks.0.ffn.{name}.kernel" for name in ("gate", "intermediate", "output")),
    "language_modeling_head.output.kernel",
]
# What compressed-tensors can say of weights with 34 or 35 inputs.
COMPRESSED = ["f8_e4m3fn(tile=16x24)", "f8_e4m3fn(tile=tensor)", "int8", "int4(group=channel, zero_points)", "bf16"]
ASSIGNMENTS = st.one_of(
    st.fixed_dictionaries({path: st.sampled_from(FORMATS) for path in (*KERNELS, EMBEDDING)}),
    st.fixed_dictionaries({path: st.sampled_from(COMPRESSED) for path in KERNELS}),
    st.sampled_from(FORMATS).map(lambda format: dict.fromkeys(KERNELS, format)),
)


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """The same tree, types and bytes."""
    assert types(before) == types(after)
    for path, value in flat(before).items():
        assert np.asarray(value).tobytes() == np.asarray(flat(after)[path]).tobytes(), path


@examples(20)
@given(formats=ASSIGNMENTS, norms=st.sampled_from(["f32", "bf16"]))
@example(formats=dict.fromkeys((*KERNELS, EMBEDDING), "int8"), norms="bf16")
def test_what_is_saved_is_loaded_with_the_same_bytes(
    formats: dict[str, str], norms: str, tiny: Callable[..., Path]
) -> None:
    """Every weight in a format of its own; and saved once more it gives the same files."""
    folder = tiny("qwen3", "f32", **{**SIZES, "num_blocks": 1})
    loaded = bombus.load_model(folder, policy={**formats, "norm": norms})
    with tempfile.TemporaryDirectory() as temporary:
        first, second = Path(temporary) / "first", Path(temporary) / "second"
        bombus.save_model(loaded, first)
        again = bombus.load_model(first, preserve_source_types=True)
        assert_same(loaded.params, again.params)
        assert {path: format.canonical for path, format in loaded.model.formats.items()} == again.model.formats
        assert again.spec == loaded.spec
        bombus.save_model(again, second)
        assert written(first) == written(second)

"""Policy files: what is written is read again, what is wrong is named, and which preset a model gets."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombus.policies import MixedPrecision, Policy, as_policy, as_precision, load_preset, resolve_format
from bombus.policies.errors import PolicyError
from bombus.policies.files import PRESETS
from bombus.policies.formats import FORMATS, find_format
from bombus.policies.patterns import GROUPS, group_of
from bombus.policies.spelling import plain

RULES = {"default": "bf16", "*.kernel": {"params": "f8_e4m3fn", "compute": "bf16"}}


@pytest.mark.parametrize("data", [RULES, {"bombus_policy": 1, "comment": "why", "rules": RULES}])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_json_file_holds_rules(tmp_path, kind, data):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert as_precision(kind(path)) == MixedPrecision(RULES)


def test_what_is_written_is_short_and_has_a_version():
    precision = MixedPrecision(
        {
            "attention": "int4(zero_points, group=64)",
            "*.bias": None,
            "norm": Policy(params="f32"),
            "head": Policy(params={"kernel": "int8", "default": None}, compute="bf16", output="f32"),
        },
        default="bf16",
    )
    assert precision.to_json() == {
        "bombus_policy": 1,
        "rules": {
            "attention": "int4(group=64, zero_points)",
            "*.bias": None,
            "norm": {"params": "f32"},
            "head": {"params": {"kernel": "int8", "default": None}, "compute": "bf16", "output": "f32"},
            "default": "bf16",
        },
    }


def test_no_default_is_not_a_default_that_leaves_everything():
    none, leave = MixedPrecision({}), MixedPrecision({}, Policy())
    assert none.to_json()["rules"] == {}
    assert leave.to_json()["rules"] == {"default": None}
    assert MixedPrecision.from_json(none.to_json()) == none != MixedPrecision.from_json(leave.to_json()) == leave


_LOW = [
    *("int8", "int8(group=128)", "int4(group=32, zero_points, scale=f16)", "int4(zero_points=False)", "bfp8(axis=out)"),
    *("f8_e4m3fn(tile=channel)", "f8_e5m2(tile=64x32, scale=e8m0)", "bfp4", "mxfp8(element=f8_e5m2)", "nvfp4"),
    *("mxfp4(scale_rule=ceil)", "bfp4(scale_rule=search)", "f8_e4m3fn(tile=tensor, scale=bf16)", "int8(group=channel)"),
]
_WIDE = st.sampled_from(["f32", "bf16", "f16"])
_WIDE_MAPS = st.dictionaries(st.sampled_from(["kernel", "bias", "scale_inv", "default"]), st.none() | _WIDE)
_LOW_MAPS = st.dictionaries(st.sampled_from(["kernel", "embedding", "default"]), st.sampled_from(_LOW))
_POLICIES = st.builds(
    Policy,
    params=st.one_of(st.none(), _WIDE, st.sampled_from(_LOW), _WIDE_MAPS, _LOW_MAPS),
    compute=st.one_of(st.none(), _WIDE, _WIDE_MAPS),
    output=st.none() | _WIDE,
)
_PATTERNS = st.one_of(st.sampled_from([*GROUPS, "a.{0,2..4}.*"]), st.text(alphabet="ab.*?\u00e9\"'\\", min_size=1))


def test_the_formats_above_are_of_every_kind():
    assert {find_format(text).name for text in [*_LOW, "f32", "bf16", "f16"]} == set(FORMATS)


@given(policy=_POLICIES)
def test_a_policy_is_the_one_that_its_plain_data_says(policy):
    assert as_policy(json.loads(json.dumps(plain(policy)))) == policy


@given(rules=st.dictionaries(_PATTERNS, _POLICIES, max_size=4), default=st.none() | _POLICIES)
def test_every_policy_survives_a_file(rules, default):
    precision = MixedPrecision(rules, default)
    data = precision.to_json()
    for source in (data, json.dumps(data)):
        found = MixedPrecision.from_json(source)
        assert found == precision
        # Their order is a part of what rules say.
        assert list(found.rules) == list(rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "policy: is not valid JSON: "),
        ("[" * 100_000, "policy: is not valid JSON: "),
        (
            '{"*": "bf16", "*": "f32"}',
            "policy: is not valid JSON: '*' stands twice in one object. Give an object of rules",
        ),
        ('["bf16"]', "policy: is not a map (expected a JSON object of pattern: policy)"),
        ('"bf16"', "policy: is not a map (expected a JSON object of pattern: policy)"),
        (
            '{"*": "bf61", "b": 7}',
            "2 problems\n"
            "  - policy rule '*', type 'bf61': is not a storage format. The closest are 'bf16', 'f16', 'bfp8'\n"
            "  - policy rule 'b', type '7': is not a storage format. Known: f32, bf16, f16, f8_e4m3fn, f8_e5m2, int8, "
            "int4, bfp8, bfp4, mxfp8, mxfp4, nvfp4",
        ),
        (
            '{"bombus_policy": 2, "future": 1}',
            "field 'bombus_policy': is newer than this version of Bombus reads (expected at most 1, found 2). "
            "Upgrade bombus",
        ),
        (
            '{"bombus_policy": "1", "rules": {}}',
            "field 'bombus_policy': is not a version (expected 1, found '1'). Write 1",
        ),
        (
            '{"bombus_policy": true, "rules": {}}',
            "field 'bombus_policy': is not a version (expected 1, found True). Write 1",
        ),
        ('{"bombus_policy": 0, "rules": {}}', "field 'bombus_policy': is not a version (expected 1, found 0). Write 1"),
        (
            '{"bombus_policy": 1}',
            'field \'rules\': is missing (expected an object of pattern: policy). Write {"rules": {"default": "bf16"}}',
        ),
        (
            '{"bombus_policy": 1, "rule": {}, "rules": ["bf16"], "extends": "fast", "comment": 3}',
            "4 problems\n"
            "  - field 'rule': is not known. The closest are 'rules'\n"
            "  - field 'rules': is not a map (expected an object of pattern: policy, found ['bf16']). "
            'Write {"rules": {"default": "bf16"}}\n'
            "  - field 'extends': 'fast' is not a preset. Known: accuracy, performance\n"
            "  - field 'comment': is not a text (found 3)",
        ),
        (
            '{"bombus_policy": 1, "extends": null, "rules": {}}',
            "field 'extends': None is not a preset. Known: accuracy, performance",
        ),
        (
            '{"bombus_policy": 1, "rules": {"*": {"params": "f32", "computes": "f32"}}}',
            "policy rule '*', policy: has no field 'computes'. The closest are 'compute', 'output'",
        ),
        (
            '{"bombus_policy": 1, "rules": {"re:[": "f32"}}',
            "policy rule 're:[': is not a regular expression: unterminated character set at position 0",
        ),
        (
            '{"default": "bfp_bf8", "lm_head.weight": "bf16"}',
            "policy rule 'default': has 'bfp_bf8', a type of tt-xla, whose rules are ordered otherwise. "
            "Import it with `bombus policy import {path} --from tt-xla`",
        ),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, message):
    path = tmp_path / "rules.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        as_precision(path)
    expected = f"{path}: {message.replace('{path}', str(path))}"
    found = str(caught.value)
    assert found.startswith(expected) if message.endswith(": ") else found == expected


def test_a_dict_with_tt_xlas_names_is_refused_without_a_file():
    with pytest.raises(PolicyError) as caught:
        as_precision({"*": "bfp_bf4"})
    assert str(caught.value).endswith("Import it with `bombus policy import FILE --from tt-xla`")


def test_a_missing_policy_file_is_named(tmp_path):
    path = tmp_path / "absent.json"
    with pytest.raises(PolicyError) as caught:
        as_precision(str(path))
    assert str(caught.value).startswith(f"{path}: policy file: cannot be read: ")
    assert str(caught.value).endswith("Check the path")


def test_a_text_says_where_it_is_from():
    with pytest.raises(PolicyError) as caught:
        MixedPrecision.from_json('{"*": "f61"}', where="--policy")
    assert str(caught.value).startswith("--policy: policy rule '*', type 'f61': ")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["bf16", "int8", "int8(group=0)", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["bombus_policy", "rules", "extends", "params", "compute", "output", "*", "default"]), inner
        )
    ),
    max_leaves=12,
)


@given(data=_JSON)
def test_whatever_json_says_is_a_policy_or_a_policy_error(data):
    try:
        found = MixedPrecision.from_json(json.dumps(data))
    except PolicyError:
        return
    assert MixedPrecision.from_json(found.to_json()) == found


# What a small decoder with its own head has.
PARAMETERS = dict.fromkeys(
    (
        "embedder.token_embedding.embedding",
        *(f"decoder.blocks.0.self_attention.{name}.kernel" for name in ("query", "key", "value", "output")),
        "decoder.blocks.0.self_attention.query.bias",
        "decoder.blocks.0.self_attention_norm.scale",
        *(f"decoder.blocks.{number}.ffn.{name}.kernel" for number in (0, 31) for name in ("gate", "intermediate")),
        *(f"decoder.blocks.{number}.ffn.output.kernel" for number in (0, 31)),
        "output_norm.scale",
        "language_modeling_head.output.kernel",
    )
)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("accuracy", dict.fromkeys(("attention", "feed_forward"), "int8(group=64, scale=bf16)")),
        (
            "performance",
            dict.fromkeys(("attention", "embedding", "head"), "int8") | {"feed_forward": "int4(group=32)"},
        ),
    ],
)
def test_a_preset_stores_the_weights_of_its_groups(name, groups):
    precision, where = load_preset(name)
    assert where == f"preset {name}"
    assert precision == as_precision(name)
    for path, decision in precision.resolve(PARAMETERS).items():
        leaf = path.rpartition(".")[2]
        expected = groups.get(group_of(path)) if leaf in ("kernel", "embedding") else None
        assert resolve_format(decision.policy, leaf) == (expected and find_format(expected)), path


def test_presets_serve_a_model_with_tied_embeddings():
    without_head = dict.fromkeys(path for path in PARAMETERS if group_of(path) != "head")
    assert len(without_head) == len(PARAMETERS) - 1
    for name in PRESETS:
        as_precision(name).resolve(without_head)


@pytest.mark.parametrize(
    ("models", "where"),
    [
        ((), "preset performance"),
        (("Llama-3.1-8B", "llama"), "preset performance"),
        (("Llama-3.1-8B-Instruct", "llama"), "preset performance for llama-3.1-8b-instruct"),
        (("my-finetune", "LLAMA-3.1-8B-INSTRUCT"), "preset performance for llama-3.1-8b-instruct"),
        (("../presets/performance",), "preset performance"),
    ],
)
def test_a_model_gets_the_first_override_that_the_preset_has_for_it(models, where):
    assert load_preset("performance", models=models)[1] == where


def test_an_override_comes_after_the_preset_that_it_extends():
    base = load_preset("performance")[0]
    found, _ = load_preset("performance", models=["Llama-3.1-8B-Instruct"])
    gate = "decoder.blocks.{}.ffn.gate.kernel"
    assert str(found.decide(gate.format(31)).policy.params) == "int8"
    assert str(found.decide(gate.format(30)).policy.params) == "int4(group=32)"
    assert str(found.decide("decoder.blocks.31.ffn.output.kernel").policy.params) == "int4(group=32)"
    assert list(found.rules)[: len(base.rules)] == list(base.rules)
    found.resolve(PARAMETERS)


def test_a_file_extends_a_preset_and_its_rules_come_later():
    found = MixedPrecision.from_json(
        {"bombus_policy": 1, "extends": "accuracy", "rules": {"feed_forward": "int4", "default": "bf16"}}
    )
    assert [(pattern, str(policy.params)) for pattern, policy in found.rules.items()] == [
        ("attention", "int8(group=64, scale=bf16)"),
        ("feed_forward", "int4"),
    ]
    assert found.default == as_policy("bf16")


def test_an_unknown_preset_is_refused():
    with pytest.raises(PolicyError) as caught:
        load_preset("acuracy")
    assert str(caught.value) == "policy: 'acuracy' is not a preset. The closest are 'accuracy'"


def test_every_file_that_ships_is_a_preset_or_an_override_of_one():
    shipped = {file.name for file in files("bombus.policies").joinpath("presets").iterdir()}
    assert shipped >= {f"{name}.json" for name in PRESETS}
    for file in shipped:
        name, _, model = file.removesuffix(".json").partition(".")
        assert load_preset(name, models=[model])[1] == f"preset {name}" + (f" for {model}" if model else "")

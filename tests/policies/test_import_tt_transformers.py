"""from_tt_transformers: the same types for the same weights as in TT-Transformers, or an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombus.policies import as_policy, from_tt_transformers
from bombus.policies.errors import PolicyError

BFP8, BFP4 = "bfp8(axis=out)", "bfp4(axis=out)"
FFN = "decoder.blocks.{}.ffn.{{gate,intermediate}}.kernel"
DOWN = "decoder.blocks.{}.ffn.output.kernel"
QKV = "decoder.blocks.{}.self_attention.{{query,key,value}}.kernel"
OUT = "decoder.blocks.{}.self_attention.output.kernel"
OPTIONS = (
    "precision_cfg = {ff1_3: bfp4, ff2: bfp8, wqkv: bf16, wo: bfp8, kv_cache: bfp8, activation: mixed}, "
    "fidelity_cfg = {li_ff1_3: hifi2, li_ff2: lofi}"
)


def rules(precision):
    return {pattern: str(policy.params) for pattern, policy in precision.rules.items()}


def decoders(**settings):
    """The JSON form, from `_31={"FF2": "BFP8"}` per decoder."""
    return {"decoders": {name[1:]: {"precision_cfg": components} for name, components in settings.items()}}


def test_the_options_of_tt_transformers_are_for_every_block():
    found = from_tt_transformers(OPTIONS, ignore=("kv_cache", "fidelity_cfg"))
    blocks = {FFN.format("*"): BFP4, DOWN.format("*"): BFP8, QKV.format("*"): "bf16", OUT.format("*"): BFP8}
    assert rules(found) == blocks
    assert found.default is None
    names = ("ffn.gate", "ffn.intermediate", "ffn.output", "self_attention.key", "self_attention.output", "a.output")
    decided = {name: found.decide(f"decoder.blocks.7.{name}.kernel").policy for name in names}
    assert {name: policy and str(policy.params) for name, policy in decided.items()} == {
        "ffn.gate": BFP4,
        "ffn.intermediate": BFP4,
        "ffn.output": BFP8,
        "self_attention.key": "bf16",
        "self_attention.output": BFP8,
        "a.output": None,
    }


def test_a_decoder_of_tt_transformers_is_one_block():
    # What TT-Transformers ships for Llama-3.1-8B-Instruct.
    shipped = {"decoders": {"31": {"precision_cfg": {"FF1_FF3": "BFP8"}, "fidelity_cfg": {"LI_FF1_FF3": "LOFI"}}}}
    found = from_tt_transformers(shipped, num_blocks=32, ignore="fidelity_cfg")
    assert rules(found) == {FFN.format(31): BFP8}
    assert found.rules[FFN.format(31)] == as_policy(BFP8)


@pytest.mark.parametrize("name", ["FF1_FF3", "ff1_3", "Ff1_3"])
@pytest.mark.parametrize("value", ["BFP4", "bfp4"])
def test_both_spellings_of_names_and_values_are_read(name, value):
    assert rules(from_tt_transformers(decoders(_0={name: value}))) == {FFN.format(0): BFP4}


def test_the_text_of_the_json_file_is_read_too():
    text = ' {"decoders": {"0": {"precision_cfg": {"WO": "BF16", "ACTIVATION": "MIXED"}}}}'
    assert rules(from_tt_transformers(text)) == {OUT.format(0): "bf16"}


def test_decoders_with_the_same_setting_are_one_rule():
    data = decoders(**{f"_{number}": {"FF2": "BFP8" if number == 4 else "BFP4"} for number in (0, 1, 2, 4, 10, 3, 7)})
    found = from_tt_transformers(data, num_blocks=11)
    assert rules(found) == {DOWN.format("{0..3,7,10}"): BFP4, DOWN.format(4): BFP8}


@given(settings=st.dictionaries(st.integers(0, 40), st.sampled_from(["BFP4", "BFP8", "BF16"]), min_size=1))
def test_every_block_gets_its_own_setting_and_no_other(settings):
    data = {"decoders": {str(number): {"precision_cfg": {"WO": value}} for number, value in settings.items()}}
    found = from_tt_transformers(data)
    theirs = {"BFP4": BFP4, "BFP8": BFP8, "BF16": "bf16"}
    for number in range(42):
        policy = found.decide(OUT.format(number)).policy
        assert (policy and str(policy.params)) == theirs.get(settings.get(number))


def test_what_a_decoder_does_not_name_is_the_parents():
    parent = {"decoder.blocks.3.ffn.gate.kernel": "f16", "*.ffn.*": "int8", "default": "bf16", "a.b": "f32"}
    found = from_tt_transformers(decoders(_3={"FF1_FF3": "BFP8"}, _4={"FF2": "BFP4"}), parent=parent)
    assert list(found.rules) == ["*.ffn.*", "a.b", FFN.format(3), DOWN.format(4)]
    decided = {
        (block, name): str(found.decide(f"decoder.blocks.{block}.{name}.kernel").policy.params)
        for block in (3, 4)
        for name in ("ffn.gate", "ffn.output", "self_attention.query")
    }
    assert decided == {
        # Although the parent names it exactly.
        (3, "ffn.gate"): BFP8,
        (3, "ffn.output"): "int8",
        (3, "self_attention.query"): "bf16",
        (4, "ffn.gate"): "int8",
        (4, "ffn.output"): BFP4,
        (4, "self_attention.query"): "bf16",
    }


def test_an_exact_name_of_the_parent_still_beats_the_parents_own_patterns():
    parent = {"decoder.blocks.5.ffn.gate.kernel": "f16", "*": "int8"}
    found = from_tt_transformers(decoders(_3={"FF1_FF3": "BFP8"}), parent=parent)
    assert str(found.decide("decoder.blocks.5.ffn.gate.kernel").policy.params) == "f16"


def test_a_parent_may_be_a_preset_and_a_decoder_may_name_nothing():
    found = from_tt_transformers({"decoders": {"0": {}, "1": {"fidelity_cfg": {}}}}, parent="performance")
    assert found == from_tt_transformers({"decoders": {}}, parent="performance")
    assert rules(found)["feed_forward"] == "int4(group=32)"


def test_what_has_no_counterpart_here_is_refused_with_the_field():
    data = decoders(
        _0={"KV_CACHE": "BFP8"},
        _1={"KV_CACHE": "BFP8", "ACTIVATION": "BFP8"},
        _2={"KV_CACHE": "BF16", "ACTIVATION": "BF16"},
    )
    data["decoders"]["2"]["fidelity_cfg"] = {"LI_FF2": "LOFI"}
    with pytest.raises(PolicyError) as caught:
        from_tt_transformers(data)
    remedy = "Leave it out with ignore=('kv_cache', 'activation', 'fidelity_cfg')"
    assert str(caught.value) == (
        "TT-Transformers: 5 problems\n"
        f"  - kv_cache of decoder {{0..1}}: has no counterpart here. {remedy}\n"
        f"  - activation of decoder 1: has no counterpart here. {remedy}\n"
        f"  - kv_cache of decoder 2: has no counterpart here. {remedy}\n"
        f"  - activation of decoder 2: has no counterpart here. {remedy}\n"
        f"  - fidelity_cfg of decoder 2: has no counterpart here. {remedy}"
    )
    with pytest.raises(PolicyError) as caught:
        from_tt_transformers(OPTIONS, ignore=["fidelity_cfg"])
    assert str(caught.value) == (
        "TT-Transformers: kv_cache of decoder *: has no counterpart here. Leave it out with ignore=('kv_cache',)"
    )


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        (
            decoders(_32={"FF2": "BFP8"}, _x={"FF2": "BFP8"}, _07={"FF2": "BFP8"}),
            {"num_blocks": 32},
            "3 problems\n"
            "  - decoder '32': is not in the model (expected a number below 32)\n"
            "  - decoder 'x': is not in the model (expected a number below 32)\n"
            "  - decoder '07': is not in the model (expected a number below 32)",
        ),
        (decoders(**{"_-1": {}}), {}, "decoder '-1': is not in the model (expected a number)"),
        (
            decoders(_0={"FF3": "BFP8", "WO": "INT8", "wo": "BFP8"}),
            {"ignore": ("kv_caches",)},
            "4 problems\n"
            "  - ignore: cannot hold 'kv_caches'. The closest are 'kv_cache'\n"
            "  - wo of decoder 0: is named twice\n"
            "  - ff3 of decoder 0: is not a component. The closest are 'ff1_3', 'ff2'\n"
            "  - wo of decoder 0: cannot be int8 (expected bf16, bfp8, bfp4)",
        ),
        (
            {"decoders": {"0": {"precision": {}}, "1": ["BFP8"], "2": {"precision_cfg": "BFP8"}}},
            {},
            "3 problems\n"
            "  - precision of decoder 0: is not known. The closest are 'precision_cfg'\n"
            "  - decoder 1: is not a map of maps\n"
            "  - decoder 2: is not a map of maps",
        ),
        *(
            (
                source,
                {},
                "decoder configuration: is malformed "
                '(expected {"decoders": {"31": {"precision_cfg": {"FF2": "BFP8"}}}})',
            )
            for source in ({}, [], {"decoders": {}, "layers": {}}, {"decoders": []}, decoders(**{"_*": {}}), "{}")
        ),
        *(
            (
                source,
                {},
                "optimizations: are malformed (expected precision_cfg = {ff1_3: bfp4, wo: bfp8}, "
                f"fidelity_cfg = {{...}}, found {source})",
            )
            for source in (
                "accuracy",
                "precision_cfg = {ff2: bfp8",
                "precision_cfg = {ff2: bfp8,}",
                "precision_cfg = {ff2}",
                "precision_cfg = {ff2: bfp8, ff2: bfp4}",
            )
        ),
        (
            "precision = {ff2: bfp8}",
            {},
            "precision of decoder *: is not known. The closest are 'precision_cfg'",
        ),
    ],
)
def test_a_malformed_configuration_is_refused(source, options, text):
    with pytest.raises(PolicyError) as caught:
        from_tt_transformers(source, **options)
    assert str(caught.value) == f"TT-Transformers: {text}"

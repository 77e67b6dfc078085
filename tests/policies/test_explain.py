"""MixedPrecision explains itself: which rule decided and why, as a sentence and as tables."""

from __future__ import annotations

import pytest
from policy_rules import QUERY, QUERY_TENSOR

from bombus.policies import MixedPrecision


@pytest.mark.parametrize(
    ("rules", "default", "path", "sentence"),
    [
        (
            {"*": "f32", QUERY: "f16"},
            None,
            QUERY,
            f"{QUERY}: Policy(params=f16, compute=f16, output=None) from {QUERY!r}, "
            "because an exact name beats every pattern",
        ),
        (
            {"*": "f32", "decoder.*": "f16", "re:.*kernel": {"params": "bf16"}},
            None,
            QUERY,
            f"{QUERY}: Policy(params=bf16, compute=None, output=None) from 're:.*kernel', "
            "because it comes later than '*', 'decoder.*'",
        ),
        (
            {"*.scale": "f32", "decoder.*": "f16"},
            None,
            QUERY,
            f"{QUERY}: Policy(params=f16, compute=f16, output=None) from 'decoder.*', because no other rule matches",
        ),
        (
            {"*.scale": "f32"},
            "bf16",
            QUERY,
            f"{QUERY}: Policy(params=bf16, compute=bf16, output=None) from the default, because no rule matches",
        ),
        (
            {"*.scale": "f32"},
            None,
            QUERY,
            f"{QUERY}: no rule matches and there is no default, so it is left as the checkpoint has it",
        ),
        (
            {"*": "f32", "attention": "f16"},
            None,
            QUERY,
            f"{QUERY}: Policy(params=f16, compute=f16, output=None) from 'attention', because it comes later than '*'",
        ),
        (
            {"decoder.blocks.{0..3}.*": "f16", "norm": "f32"},
            None,
            QUERY,
            f"{QUERY}: Policy(params=f16, compute=f16, output=None) from 'decoder.blocks.{{0..3}}.*', "
            "because no other rule matches",
        ),
        # What the rule says is not what becomes of this parameter.
        (
            {},
            "int8",
            "output_norm.scale",
            "output_norm.scale: Policy(params=int8, compute=None, output=None) from the default, "
            "because no rule matches; int8 is only for weights",
        ),
        (
            {"*": {"params": {"default": "int8", "bias": "f32"}}},
            None,
            "output_norm.scale",
            "output_norm.scale: Policy(params={'default': int8, 'bias': f32}, compute=None, output=None) from '*', "
            "because no other rule matches; int8 is only for weights",
        ),
        (
            {"*": {"params": {"default": "int8", "bias": "f32"}}},
            None,
            "a.bias",
            "a.bias: Policy(params={'default': int8, 'bias': f32}, compute=None, output=None) from '*', "
            "because no other rule matches",
        ),
    ],
)
def test_explain_says_which_rule_decided_and_why(rules, default, path, sentence):
    assert MixedPrecision(rules, default).explain(path) == sentence


def test_explain_says_which_of_two_exact_names_came_later():
    sentence = MixedPrecision({"*": "f32", QUERY_TENSOR: "f32", QUERY: "f16"}).explain(QUERY, QUERY_TENSOR)
    assert sentence.endswith(f"from {QUERY!r}, because it comes later than {QUERY_TENSOR!r}")


def test_explain_knows_the_tensor_name():
    precision = MixedPrecision({"model.*": "f16"})
    assert "from 'model.*'" in precision.explain(QUERY, QUERY_TENSOR)
    assert "no rule matches" in precision.explain(QUERY)


def test_the_repr_is_a_table_with_the_default_last():
    precision = MixedPrecision({"default": "bf16", "*.kernel": {"params": "f8_e4m3fn"}, "re:.*norm.*": "f32"})
    assert repr(precision) == (
        "MixedPrecision\n"
        "  *.kernel     Policy(params=f8_e4m3fn, compute=None, output=None)\n"
        "  re:.*norm.*  Policy(params=f32, compute=f32, output=None)\n"
        "  default      Policy(params=bf16, compute=bf16, output=None)"
    )


def test_the_html_table_escapes_patterns():
    precision = MixedPrecision({"re:(?P<n>x)|<script>&": "f32"})
    text = precision._repr_html_()
    assert "<td><code>re:(?P&lt;n&gt;x)|&lt;script&gt;&amp;</code></td>" in text
    assert "<td>Policy(params=f32, compute=f32, output=None)</td>" in text
    assert "<script>" not in text
    assert text.startswith("<table><tr><th>rule</th><th>policy</th></tr><tr>")
    assert text.endswith("<tr><td><code>default</code></td><td>None</td></tr></table>")

"""Patterns: the group of a parameter, what braces stand for, and what is refused."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bombus.policies.errors import PolicyError
from bombus.policies.patterns import GROUPS, check_pattern, expand, group_of, is_exact, matches

BLOCK = "decoder.blocks.0"


@pytest.mark.parametrize(
    ("path", "group"),
    [
        (f"{BLOCK}.self_attention.query.kernel", "attention"),
        (f"{BLOCK}.self_attention.query.bias", "attention"),
        # The parts of a weight are where the weight is.
        (f"{BLOCK}.self_attention.query.scale_inv", "attention"),
        (f"{BLOCK}.self_attention.query.zero_point", "attention"),
        (f"{BLOCK}.cross_attention.key.kernel", "attention"),
        (f"{BLOCK}.self_attention.query_norm.scale", "norm"),
        (f"{BLOCK}.self_attention_norm.scale", "norm"),
        (f"{BLOCK}.self_attention_norm.bias", "norm"),
        (f"{BLOCK}.output_norm.scale", "norm"),
        ("output_norm.scale", "norm"),
        (f"{BLOCK}.ffn.gate.kernel", "feed_forward"),
        (f"{BLOCK}.ffn.output.scale_inv", "feed_forward"),
        (f"{BLOCK}.ffn.experts.gate.kernel", "experts"),
        (f"{BLOCK}.ffn.experts.0.gate.scale_inv", "experts"),
        (f"{BLOCK}.ffn.router.kernel", "feed_forward"),
        ("embedder.token_embedding.embedding", "embedding"),
        ("embedder.token_embedding.scale_inv", "embedding"),
        ("embedder.position_embedding.kernel", "embedding"),
        ("embedder.norm.scale", "norm"),
        ("language_modeling_head.output.kernel", "head"),
        ("language_modeling_head.output.bias", "head"),
        ("pooler.output.kernel", None),
        ("kernel", None),
        # A word is a whole word, and the checkpoint's names have none of ours.
        (f"{BLOCK}.ffn_gate.kernel", None),
        ("model.layers.0.self_attn.q_proj.weight", None),
    ],
)
def test_a_parameter_is_in_the_group_that_its_words_say(path, group):
    assert group_of(path) == group
    assert [name for name in GROUPS if matches(name, path)] == ([group] if group else [])


def test_groups_are_found_from_our_path_and_not_from_the_tensors_name():
    assert matches("norm", "output_norm.scale", "model.norm.weight")
    assert not matches("norm", "a.kernel", "model.norm.weight")


def test_a_group_in_braces_or_in_a_longer_pattern():
    assert matches("{attention,head}", "language_modeling_head.output.kernel")
    assert not matches("{attention,head}", f"{BLOCK}.ffn.gate.kernel")
    # Not the group: a glob of which the word is a part.
    assert not matches("attention*", f"{BLOCK}.self_attention.query.kernel")
    assert not matches("re:attention", f"{BLOCK}.self_attention.query.kernel")


@pytest.mark.parametrize(
    ("pattern", "globs"),
    [
        ("a.*.b", ["a.*.b"]),
        ("decoder.blocks.{0,31}.*", ["decoder.blocks.0.*", "decoder.blocks.31.*"]),
        ("{0..3}", ["0", "1", "2", "3"]),
        ("a{0,4..6,31}", ["a0", "a4", "a5", "a6", "a31"]),
        ("{a,b}.{1..2}", ["a.1", "a.2", "b.1", "b.2"]),
        ("{9..11}", ["9", "10", "11"]),
        # As in a shell, either way round.
        ("{2..1}", ["1", "2"]),
        ("{5..5}", ["5"]),
        ("{gate, up*}", ["gate", "up*"]),
    ],
)
def test_braces_stand_for_alternatives_and_ranges(pattern, globs):
    assert expand(pattern) == globs


@pytest.mark.parametrize(
    ("pattern", "path", "matched"),
    [
        ("decoder.blocks.{0,31}.*", "decoder.blocks.31.ffn.gate.kernel", True),
        ("decoder.blocks.{0,31}.*", "decoder.blocks.3.ffn.gate.kernel", False),
        ("decoder.blocks.{0..27}.*", "decoder.blocks.27.ffn.gate.kernel", True),
        ("decoder.blocks.{0..27}.*", "decoder.blocks.28.ffn.gate.kernel", False),
        # Of numbers, not of texts; and the whole number.
        ("decoder.blocks.{2..10}.*", "decoder.blocks.1.ffn.gate.kernel", False),
        ("decoder.blocks.{1..2}.*", "decoder.blocks.12.ffn.gate.kernel", False),
        ("*.{gate,intermediate}.kernel", "decoder.blocks.1.ffn.intermediate.kernel", True),
        ("*.{gate,intermediate}.kernel", "decoder.blocks.1.ffn.output.kernel", False),
        ("*.{g*,o?tput}.kernel", "decoder.blocks.1.ffn.output.kernel", True),
        # Every character but the braces' own is what it is in a glob.
        ("a.{b,c}", "axb", False),
        ("{a|b,c}", "a", False),
        ("{a|b,c}", "a|b", True),
    ],
)
def test_a_glob_with_braces_matches_what_one_of_its_globs_does(pattern, path, matched):
    assert matches(pattern, path) is matched


def test_an_expressions_braces_are_the_expressions():
    assert matches(r"re:a\.\d{2}", "a.12")
    assert not matches(r"re:a\.\d{2}", "a.1")
    assert matches("re:a{0,2}", "aa")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a.{0,1", "has a brace that is not opened, not closed or inside another"),
        ("a.0}", "has a brace that is not opened, not closed or inside another"),
        ("{a,{b,c}}", "has a brace that is not opened, not closed or inside another"),
        ("}{", "has a brace that is not opened, not closed or inside another"),
        ("{}", "has {}, in which '' is neither a word nor a range of numbers"),
        ("{0,}", "has {0,}, in which '' is neither a word nor a range of numbers"),
        ("{0..}", "has {0..}, in which '0..' is neither a word nor a range of numbers"),
        ("{a..c}", "has {a..c}, in which 'a..c' is neither a word nor a range of numbers"),
        ("{0..1..2}", "has {0..1..2}, in which '0..1..2' is neither a word nor a range of numbers"),
        ("{0..9999999}", "has {0..9999999}, in which '0..9999999' is neither a word nor a range of numbers"),
        ("{0..999}.{0..999}", "has braces that stand for more than 10000 names"),
    ],
)
def test_malformed_braces_are_refused(pattern, message):
    with pytest.raises(PolicyError) as caught:
        check_pattern(pattern)
    assert str(caught.value) == (
        f"policy rule {pattern!r}: {message}. Write alternatives with commas and ranges with two dots, like {{0,4..7}}"
    )


def test_the_largest_range_is_refused_at_once():
    started = time.perf_counter()
    with pytest.raises(PolicyError):
        check_pattern("{0..999999}" * 4)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("pattern", "exact"),
    [
        ("a.b", True),
        ("default", True),
        ("a.*", False),
        ("a.?", False),
        ("a.[b]", False),
        ("a.{0}", False),
        ("re:a", False),
        ("norm", False),
        ("norms", True),
        ("feed_forward", False),
    ],
)
def test_an_exact_name_is_no_pattern(pattern, exact):
    assert is_exact(pattern) is exact


_PIECES = st.one_of(
    st.sampled_from(["a", "b", ".", "*", "?", "1"]).map(lambda text: [text]),
    st.lists(st.sampled_from(["a", "b*", "?", "a.b", "2"]), min_size=1, max_size=3),
    st.tuples(st.integers(0, 12), st.integers(0, 3)).map(
        lambda ends: [str(number) for number in range(ends[0], ends[0] + ends[1] + 1)]
    ),
)


@given(pieces=st.lists(_PIECES, min_size=1, max_size=4), name=st.text(alphabet="ab.012", max_size=6), data=st.data())
def test_braces_agree_with_a_naive_model(pieces, name, data):
    """Each piece is a list of alternatives; a range is one that may be spelled with dots."""

    def spell(piece):
        if len(piece) == 1 and data.draw(st.booleans()):
            return piece[0]
        dots = all(word.isdecimal() for word in piece) and data.draw(st.booleans())
        return f"{{{piece[0]}..{piece[-1]}}}" if dots and piece == span(piece) else f"{{{','.join(piece)}}}"

    def span(piece):
        return [str(number) for number in range(int(piece[0]), int(piece[-1]) + 1)]

    globs = [""]
    for piece in pieces:
        globs = [glob + word for glob in globs for word in piece]
    pattern = "".join(map(spell, pieces))
    assert expand(pattern) == globs
    assert matches(pattern, name) == any(fnmatchcase(name, glob) for glob in globs)

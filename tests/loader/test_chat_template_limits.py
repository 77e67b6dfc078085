"""Chat templates that mean harm: what they are refused for, and that it does not take long or much memory to say so."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

import bombus
from bombus.loader import template_limits
from bombus.loader.chat_template import LIMITS, render_chat_template
from bombus.loader.template_operations import FILTERS

REMEDY = "Use another template, or pass the prompt as text"
BIG = "{% set big = 'a' * 9000000 %}"
NS = "{% set ns = namespace(x=1, s='a', l=[1], t=(1,)) %}"
MANY = "{% for i in range(99999) %}"
END = "{% endfor %}"
TEXT = "makes too long a text (expected at most 10,000,000 characters, found {})"
MEMORY = "makes too many values (expected at most 536,870,912 bytes in all)"
BITS = "makes too large a number (expected at most 63 bits)"
CALLS = "nests its calls too deeply (expected at most 64)"
FORMAT = "formats text in a way that is not allowed (expected only %s, %d and %%)"
DEEP = "is nested too deeply"


def unsafe(name: str, kind: str = "str") -> str:
    return f"failed: access to attribute {name!r} of {kind!r} object is unsafe."


# What a template asks for, and what is said: the limit, what it allows, what was found.
ATTACKS = [
    # One value that is too large.
    ("{{ 'a' * 300000000 }}", TEXT.format("300,000,000")),
    ("{{ 300000000 * 'a' }}", TEXT.format("300,000,000")),
    ("{{ [1] * 300000000 }}", TEXT.format("2,400,000,000")),
    ("{{ (1,) * 300000000 }}", TEXT.format("2,400,000,000")),
    (BIG + "{{ big + big }}", TEXT.format("18,000,000")),
    (BIG + "{{ big ~ big }}", TEXT.format("18,000,000")),
    (BIG + "{{ [big, big] }}", TEXT.format("18,000,010")),
    (BIG + "{{ {1: big, 2: big} }}", TEXT.format("18,000,022")),
    (BIG + "{{ dict(a=big, b=big) }}", TEXT.format("18,000,020")),
    (BIG + "{{ [big] + [big] }}", TEXT.format("18,000,012")),
    (f"{{% macro {'m' * 9000}() %}}{{% endmacro %}}{{{{ [{'m' * 9000}] * 2000 }}}}", TEXT.format("18,268,000")),
    (BIG + "{{ big }}{{ big }}", TEXT.format("18,000,000")),
    (BIG + "{% macro m() %}{{ big }}{{ big }}{% endmacro %}{{ m() }}", TEXT.format("18,000,000")),
    (BIG + "{% set x %}{{ big }}{{ big }}{% endset %}", TEXT.format("18,000,000")),
    (BIG + "{% filter upper %}{{ big }}{{ big }}{% endfilter %}", TEXT.format("18,000,000")),
    (BIG + "{{ big.replace('a', 'bb') }}", TEXT.format("18,000,000")),
    (BIG + "{{ big | replace('a', 'bb') }}", TEXT.format("18,000,000")),
    (BIG + "{{ big.replace('', 'b') }}", TEXT.format("18,000,001")),
    (BIG + "{{ big.join(['', '', '']) }}", TEXT.format("27,000,014")),
    (BIG + "{{ ['', '', ''] | join(big) }}", TEXT.format("27,000,014")),
    (BIG + "{{ 'a\\nb' | indent(big) }}", TEXT.format("36,000,003")),
    ("{{ 'a\\nb' | indent(999999999) }}", TEXT.format("3,999,999,999")),
    (BIG + "{{ '%s%s' % (big, big) }}", TEXT.format("18,000,010")),
    (BIG + "{{ '%s%s' | format(big, big) }}", TEXT.format("18,000,010")),
    ("{{ ('\\u0149' * 9000000).upper() }}", TEXT.format("18,000,000")),
    (BIG + "{{ [[big[1:5000000]]] | tojson ~ big }}", TEXT.format("14,000,005")),
    (
        "{{ [['\\u00e9' * 999999]] * 2 | tojson(true) }}",
        "failed: TypeError: can't multiply sequence by non-int of type 'str'",
    ),
    ("{{ ('\\u00e9' * 1999999) | tojson(true) }}", TEXT.format("11,999,996")),
    ("{{ raise_exception('a' * 300000000) }}", TEXT.format("300,000,000")),
    ("{{ '\\u0000' | string * 9000000 }}{{ ['\\u0000' * 9000000] }}", TEXT.format("36,000,004")),
    # Doubling in a loop.
    (NS + MANY + "{% set ns.s = ns.s ~ ns.s %}" + END, TEXT.format("16,777,216")),
    (NS + MANY + "{% set ns.s = ns.s + ns.s %}" + END, TEXT.format("16,777,216")),
    (NS + MANY + "{% set ns.l = ns.l + ns.l %}" + END, TEXT.format("16,777,216")),
    (NS + MANY + "{% set ns.l = [ns.l, ns.l] %}" + END, TEXT.format("18,874,358")),
    (NS + MANY + "{% set ns.t = (ns.t, ns.t) %}" + END, TEXT.format("18,874,358")),
    (NS + MANY + "{% set ns.l = {1: ns.l, 2: ns.l} %}" + END, TEXT.format("15,728,618")),
    (NS + MANY + "{% set ns.x = ns.x + ns.x %}" + END, BITS),
    (NS + MANY + "{% set ns.l = [ns.l] %}" + END, "nests its lists too deeply (expected at most 100 deep)"),
    # Much in all, each of it allowed.
    (BIG + "".join(f"{{% set x{i} = big ~ {i} %}}" for i in range(60)), MEMORY),
    (BIG + "".join(f"{{% set x{i} = big[1:] %}}" for i in range(60)), MEMORY),
    (BIG + "{{ big.split('a') }}", MEMORY),
    (BIG + "{{ big | list }}", MEMORY),
    ("{{ ('\\n' * 9000000).splitlines() }}", MEMORY),
    (BIG + "{{ big | title }}", "makes too many values (expected at most 536,870,912 bytes in all)"),
    # Numbers.
    ("{{ 10 ** 100000000 }}", BITS),
    ("{{ 2 ** 62 * 2 }}", BITS),
    ("{{ ('9' * 4000) | int }}", BITS),
    ("{{ 1e308 | int }}", BITS),
    ("{{ range(0, 2 ** 61 * 8, 3) }}", BITS),
    ("{{ 1.5 | round(100000000, 'ceil') }}", "rounds to too many places (expected at most 100)"),
    ("{{ range(10 ** 9) }}", "makes too long a range (expected at most 100,000 numbers, found 1,000,000,000)"),
    # Calls within calls.
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", CALLS),
    ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", CALLS),
    (
        "{% macro m() %}{{ caller() }}{% endmacro %}{% macro n() %}"
        "{% call m() %}{{ n() }}{% endcall %}{% endmacro %}{{ n() }}",
        CALLS,
    ),
    # Widths.
    ("{{ '%999999999d' % 1 }}", FORMAT),
    ("{{ '%999999999d' | format(1) }}", FORMAT),
    ("{{ '%*d' % (999999999, 1) }}", FORMAT),
    ("{{ '%(a)s' % {'a': 1} }}", FORMAT),
    ("{{ [1] | tojson(indent=999999999) }}", "indents JSON too far (expected at most 16)"),
    ("{{ [1] | tojson(indent=' ' * 17) }}", "indents JSON too far (expected at most 16)"),
    ("{{ [1] | tojson(false, 17) }}", "indents JSON too far (expected at most 16)"),
    *(
        (f"{{{{ 'a'.{name}(999999999) }}}}", unsafe(name))
        for name in ("center", "ljust", "rjust", "zfill", "expandtabs")
    ),
    ("{{ '{:>999999999}'.format(1) }}", unsafe("format")),
    ("{{ '{0.__class__}'.format('') }}", unsafe("format")),
    ("{{ '{a.__class__}'.format_map({'a': 1}) }}", unsafe("format_map")),
    # The template itself.
    ("a" * 131_073, "is too long (expected at most 131,072 characters, found 131,073)"),
    ("{{1}}" * 20_000, "has too many parts (expected at most 20,000, found 20,001)"),
    (
        "".join(f"{{%set a{i}=1%}}" for i in range(1000)) + "{%if a%}{%endif%}" * 501,
        "has too many parts (expected at most 500,000, found 501,501)",
    ),
    ("{% if true %}" * 500 + "{% endif %}" * 500, DEEP),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", DEEP),
    ("{{ " + "[" * 5000 + "]" * 5000 + " }}", DEEP),
    ("{{ " + "not " * 5000 + "1 }}", DEEP),
    ("{{ 1" + "+1" * 9000 + " }}", DEEP),
    ("{{ a" + ".a" * 9000 + " }}", DEEP),
    ("{{ 'a'" + "|trim" * 9000 + " }}", DEEP),
    # Python below.
    ("{{ ''.__class__.__mro__ }}", unsafe("__class__")),
    ("{{ [].__class__ () }}", unsafe("__class__", "list")),
    ("{{ raise_exception.__globals__.x }}", unsafe("__globals__", "method")),
    ("{{ raise_exception.__func__.x }}", unsafe("__func__", "method")),
    ("{{ range.__self__.x }}", unsafe("__self__", "method")),
    (
        "{{ namespace().__init__.x }}",
        "failed: 'bombus.loader.template_functions.TemplateNamespace object' has no attribute '__init__'",
    ),
    ("{{ self._TemplateReference__context.x }}", unsafe("_TemplateReference__context", "TemplateReference")),
    ("{% for x in [1] %}{{ loop._iterator.x }}{% endfor %}", unsafe("_iterator", "LoopContext")),
    ("{% macro m() %}{% endmacro %}{{ m._func.x }}", unsafe("_func", "Macro")),
    ("{{ ['']|map(attribute='__class__')|map(attribute='x')|list }}", unsafe("__class__")),
    ("{{ {}.pop(1) }}", unsafe("pop", "dict")),
    ("{{ [1].append(2) }}", unsafe("append", "list")),
    ("{{ lipsum(n=100000) }}", "failed: 'lipsum' is undefined"),
    ("{{ cycler('a') }}", "failed: 'cycler' is undefined"),
    ("{{ joiner() }}", "failed: 'joiner' is undefined"),
    *(
        (f"{{% {tag} %}}", f"uses the tag {tag.split()[0]!r} (expected a template that stands alone)")
        for tag in ("include 'x'", "import 'x' as y", "from 'x' import y", "extends 'x'")
    ),
    ("{% block a %}{% endblock %}", "uses the tag 'block' (expected a template that stands alone)"),
    (
        "{% autoescape true %}{% endautoescape %}",
        "uses the tag 'autoescape' (expected a template that stands alone)",
    ),
    ("{{ 1 in [1] in [[1]] }}", "compares in a chain with 'in' (expected one comparison at a time)"),
]
# Steps without an end, or more than it seems.
ENDLESS = [
    MANY * 3 + END * 3,
    MANY + "{% for j in range(99999) if false %}" + END * 2,
    MANY + "{% for j in range(99999) %}{% continue %}" + END * 2,
    MANY + "{% if 'a'.upper() %}{% endif %}" + END,
    MANY + "{% if 'a' | upper %}{% endif %}" + END,
    "{% for a in range(9) %}{% for b in loop %}" + MANY + END * 3,
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 50 }}{% endfor %}",
    BIG + MANY + "{% if 'b' in big %}{% endif %}" + END,
    BIG + MANY + "{% if big is in big %}{% endif %}" + END,
    BIG + MANY + "{% if big is lower %}{% endif %}" + END,
    BIG + "{% set b = big ~ 'b' %}{% set c = big ~ 'c' %}" + MANY + "{% if b == c %}{% endif %}" + END,
    BIG + "{% set b = big ~ 'b' %}{% set c = big ~ 'c' %}" + MANY + "{% if b is eq c %}{% endif %}" + END,
    BIG + "{{ big.rfind('b' ~ big[:4000000]) }}",
    BIG + "{{ big.strip('b' ~ big[:4000000]) }}",
    BIG + "{{ big | trim('b' ~ big[:4000000]) }}",
    "{% set l = range(99999) | list %}" + MANY + "{% set x = l | sort %}" + END,
    "{{ ([1] * 90000) | map(attribute='a.' * 9000) }}",
    "{% set t = (1,) * 900000 %}{% set d = {} %}" + MANY + "{{ d[t] }}" + END,
]
FILTERS_OF_JINJA = (
    *("attr", "batch", "center", "filesizeformat", "forceescape", "groupby", "pprint", "random", "slice", "striptags"),
    *("sum", "truncate", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"),
)


def error_of(source: str, **options: Any) -> str:
    with pytest.raises(bombus.GenerationError) as caught:
        render_chat_template(source, {"messages": []}, **options)
    return str(caught.value)


@pytest.mark.parametrize(("source", "text"), ATTACKS, ids=range(len(ATTACKS)))
def test_an_attack_is_refused(source: str, text: str) -> None:
    suffix = "" if text.startswith("failed: ") else f". {REMEDY}"
    assert error_of(source) == f"chat template: {text}{suffix}"


@pytest.mark.parametrize("source", ENDLESS, ids=range(len(ENDLESS)))
def test_what_takes_too_many_steps(source: str) -> None:
    text = "chat template: takes too many steps (expected at most {}). " + REMEDY
    assert error_of(source, limits=replace(LIMITS, steps=5_000_000)) == text.format("5,000,000")
    if source == ENDLESS[0]:
        assert error_of(source) == text.format("40,000,000")


@pytest.mark.parametrize("name", FILTERS_OF_JINJA)
def test_filters_that_no_template_needs(name: str) -> None:
    expected = ", ".join(sorted(FILTERS))
    text = f"chat template: uses the filter {name!r} (expected one of {expected}). {REMEDY}"
    assert error_of(f"{{{{ 'a' | {name} }}}}") == text
    # Also where it is only named, and where nothing goes.
    assert error_of(f"{{% if false %}}{{{{ 'a' | {name} }}}}{{% endif %}}") == text
    assert error_of(f"{{{{ ['a'] | map({name!r}) | list }}}}") == f"chat template: failed: No filter named {name!r}."


def test_a_limit_may_be_reached() -> None:
    """Not only refused beyond: a value, an output, a range, calls and lists of just the size that is allowed."""
    limits = replace(LIMITS, text=100, numbers=10, calls=3, nesting=3, template=2000)

    def render(source: str) -> str:
        return render_chat_template(source, {}, limits=limits)

    def refused(source: str) -> str:
        return error_of(source, limits=limits).split(" (")[0]

    assert render("{{ 'a' * 100 }}") == "a" * 100
    assert refused("{{ 'a' * 101 }}") == "chat template: makes too long a text"
    assert render("{{ 'a' * 99 }}b") == "a" * 99 + "b"
    assert refused("{{ 'a' * 99 }}bc") == "chat template: makes too long a text"
    assert render("{{ range(10) | length }}") == "10"
    assert refused("{{ range(11) | length }}") == "chat template: makes too long a range"
    macro = "{% macro m(n) %}{{ m(n - 1) if n > 1 else 'x' }}{% endmacro %}"
    assert render(macro + "{{ m(3) }}") == "x"
    assert render(macro + "{{ m(3) }}{{ m(3) }}") == "xx"
    assert refused(macro + "{{ m(4) }}") == "chat template: nests its calls too deeply"
    assert render("{% set x = namespace(y=1).y %}{{ [[[x]]] }}") == "[[[1]]]"
    assert refused("{% set x = namespace(y=1).y %}{{ [[[[x]]]] }}") == "chat template: nests its lists too deeply"
    assert render("a" * 100 + "{#" + "-" * 1896 + "#}") == "a" * 100
    assert refused("a" * 100 + "{#" + "-" * 1897 + "#}") == "chat template: is too long"


def test_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is looked at again and again, not only at the start."""
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(template_limits, "monotonic", lambda: next(clock))
    source = "{% for i in range(90000) %}{% endfor %}"
    assert error_of(source) == f"chat template: takes too long (expected at most 30 seconds). {REMEDY}"
    assert 4 <= next(clock) // 10 <= 8
    assert render_chat_template("{% for i in range(9) %}{% endfor %}", {}) == ""


def test_values_of_the_caller_count() -> None:
    """A list that is given may be joined, but not a hundred times."""
    given = {"messages": ["a" * 1000] * 1000}
    assert len(render_chat_template("{{ messages | join }}", given)) == 1_000_000
    with pytest.raises(bombus.GenerationError, match=r"makes too long a text \(expected .*, found 100,400,200\)"):
        render_chat_template("{{ messages * 100 }}", given)
    with pytest.raises(bombus.GenerationError, match="makes too long a text"):
        render_chat_template("x", {"messages": ["a" * 1000] * 10_000})


def test_namespaces_hide_nothing() -> None:
    """One that holds itself, and one that grows after it was put into a list."""
    assert render_chat_template("{% set n = namespace() %}{% set n.l = [n] %}{{ n }}{{ n.l }}", {}) == (
        "<Namespace>[<Namespace>]"
    )
    source = "{% set n = namespace(x='') %}{% set l = [n] * 9 %}{% set n.x = 'a' * 9000000 %}{{ l | string | length }}"
    assert render_chat_template(source, {}) == "117"


def test_an_attack_takes_little_memory() -> None:
    """Ten values of nine megabytes each, of which none is kept; nothing of a size that is only asked for."""
    tracemalloc.start()
    try:
        error_of("{{ 'a' * 300000000 }}")
        error_of("{{ '%999999999d' % 1 }}")
        error_of("{{ 'a' | indent(999999999) }}")
        error_of("{{ [1] | tojson(indent=999999999) }}")
        error_of("{{ 10 ** 100000000 }}")
        error_of("{{ 'a'.ljust(999999999) }}")
        error_of("{{ range(10 ** 12) | list }}")
        error_of("{{ ('a' * 20000).replace('a', 'b' * 9000) }}")
        error_of("{{ ('a' * 20000) | replace('a', 'b' * 9000) }}")
        error_of("{{ ('a' * 20000).join(['b'] * 9000) }}")
        error_of("{{ (['b'] * 9000) | join('a' * 20000) }}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000

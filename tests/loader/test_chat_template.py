"""Chat templates: the text that transformers makes of them, what they are given, how they fail."""

from __future__ import annotations

import datetime
import enum
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CONVERSATIONS, TOOLS, templates, variables

import bombus
from bombus.loader import template_functions
from bombus.loader.chat_template import render_chat_template

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "chat_templates.json").read_text(encoding="utf-8"))
PLAIN = "Use another template, or pass the prompt as text"


def error_of(source: str, **given: Any) -> str:
    """What is said of a template that does not make a text."""
    with pytest.raises(bombus.GenerationError) as caught:
        render_chat_template(source, given)
    return str(caught.value)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", templates())
def test_the_text_of_transformers(name: str, conversation: str) -> None:
    check(templates()[name], name, conversation)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_text_of_transformers_for_qwen3(conversation: str, data: Path) -> None:
    check(templates(data)["qwen3"], "qwen3", conversation)


def check(template: str, name: str, conversation: str) -> None:
    golden = GOLDENS[f"{name}, {conversation}"]
    if "text" in golden:
        assert render_chat_template(template, variables(conversation)) == golden["text"]
    else:
        assert error_of(template, **variables(conversation)) == f"chat template: failed: TypeError: {golden['error']}"


def test_goldens_are_not_all_the_same() -> None:
    texts = {golden.get("text") for golden in GOLDENS.values()}
    assert len(GOLDENS) == len(CONVERSATIONS) * (len(templates()) + 1)
    assert len(texts) > 0.8 * len(GOLDENS)


def test_json_is_not_for_html() -> None:
    """Jinja's own filter writes "<" as an escape and sorts; that of transformers does not."""
    value = {"b": "<é>&'", "a": [None, True, 1.5]}
    assert render_chat_template("{{ x | tojson }}", {"x": value}) == json.dumps(value, ensure_ascii=False)
    assert render_chat_template("{{ x | tojson(indent=2, sort_keys=true) }}", {"x": value}) == json.dumps(
        value, ensure_ascii=False, indent=2, sort_keys=True
    )
    assert render_chat_template("{{ x | tojson(true, none, (',', ':')) }}", {"x": value}) == json.dumps(
        value, separators=(",", ":")
    )
    assert "Object of type Undefined is not JSON serializable" in error_of("{{ y | tojson }}")


def test_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    class Now(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Now:
            return cls(2025, 5, 3, 17, 6)

    monkeypatch.setattr(template_functions, "datetime", Now)
    assert render_chat_template("{{ strftime_now('%d %b %Y, %H:%M') }}", {}) == "03 May 2025, 17:06"
    assert error_of("{{ strftime_now('%d' * 101) }}") == (
        f"chat template: has too long a format of a date (expected at most 200 characters). {PLAIN}"
    )


def test_variables_of_a_generation_block_stay_in_it() -> None:
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert render_chat_template(source, {}) == "21"


def test_values_are_plain_and_stay_as_they_are() -> None:
    """Subclasses of text and numbers are what they stand for; a tuple is a list, and nothing of the caller changes."""

    class Role(enum.StrEnum):
        USER = "user"

    class Count(enum.IntEnum):
        TWO = 2

    class Loud(str):
        def __str__(self) -> str:
            return "LOUD"

    messages = ({"role": Role.USER, "n": Count.TWO, "text": Loud("quiet"), "x": (1.5, None, True)},)
    source = "{{ messages[0].role }} {{ messages[0].n }} {{ messages[0].text }} {{ messages }}"
    assert render_chat_template(source, {"messages": messages}) == (
        "user 2 quiet [{'role': 'user', 'n': 2, 'text': 'quiet', 'x': [1.5, None, True]}]"
    )
    assert messages[0]["role"] is Role.USER


def test_keys_of_any_name() -> None:
    """As in Jinja a method goes before a key; and the names that the lists have for themselves are not in the way."""
    given = {"x": {"size": 1, "nesting": 2, "items": 3, "budget": 4, "__class__": 5}}
    assert render_chat_template("{{ x.size }}{{ x.nesting }}{{ x['items'] }}{{ x.budget }}", given) == "1234"
    assert render_chat_template("{{ x['__class__'] }}{% for k, v in x.items() %}{{ v }}{% endfor %}", given) == "512345"
    assert error_of("{{ x.__class__.__mro__ }}", **given) == (
        "chat template: failed: access to attribute '__class__' of 'dict' object is unsafe."
    )


def test_values_that_are_not_plain_are_listed() -> None:
    given = {"messages": [{"role": "user", "content": [{"image": object()}, b"raw"], 3: {1}}], "tools": [print]}
    assert error_of("x", **given) == (
        "chat template: is given values that are not plain (expected text, numbers, lists, dicts, found "
        "messages[0].content[0].image is object, messages[0].content[1] is bytes, messages[0].3 is set, tools[0] is "
        f"builtin_function_or_method). {PLAIN}"
    )
    circle: list[Any] = []
    circle.append(circle)
    assert error_of("x", messages=circle) == (
        f"chat template: is given values that are nested too deeply (expected at most 100 deep). {PLAIN}"
    )


FAILURES = [
    ("{{ raise_exception('Roles must alternate') }}", "failed: Roles must alternate"),
    ("{{ raise_exception('a' * 5000) }}", "failed: " + "a" * 2000),
    ("{{ nothing.at.all }}", "failed: 'nothing' is undefined"),
    ("{{ messages[0].content + 1 }}", 'failed: TypeError: can only concatenate str (not "int") to str'),
    ("{{ messages + 'a' }}", 'failed: TypeError: can only concatenate list (not "str") to list'),
    ("{{ messages[0].role.x.y }}", "failed: 'str object' has no attribute 'x'"),
    ("{{ messages.x.y }}", "failed: 'list object' has no attribute 'x'"),
    ("{{ 1 // 0 }}", "failed: ZeroDivisionError: integer division or modulo by zero"),
    ("{{ 'a' | int('x') + 1 }}", 'failed: TypeError: can only concatenate str (not "int") to str'),
    ("{{ 'a'() }}", "failed: TypeError: 'str' object is not callable"),
    ("{{ 1e400 }}", "failed: NameError: name 'inf' is not defined"),
    ("{% if %}", "failed: Expected an expression, got 'end of statement block' (line 1)"),
    ("\n{{ 'a }}", 'failed: unexpected char "\'" at 4 (line 2)'),
    ("{% trans %}a{% endtrans %}", "failed: Encountered unknown tag 'trans'. (line 1)"),
    ("{{ x is nosuch }}", "failed: No test named 'nosuch'. (line 1)"),
    ("{% for x in 3 %}{% endfor %}", "failed: TypeError: 'int' object is not iterable"),
    ("{% set messages.x = 1 %}", "failed: cannot assign attribute on non-namespace object"),
    ("{{ '\\ud83d' }}", "failed: UnicodeEncodeError: 'utf-8' codec can't encode character '\\ud83d' in position 0: "),
]


@pytest.mark.parametrize(("source", "text"), FAILURES)
def test_every_failure_is_an_error_of_ours(source: str, text: str) -> None:
    found = error_of(source, messages=[{"role": "user", "content": "a"}])
    assert found == f"chat template: {text}" or (text.endswith(": ") and found.startswith(f"chat template: {text}"))


def test_one_rendering_does_not_use_up_another() -> None:
    """A compiled template is kept; what it may do is counted anew, in every thread."""
    source = "{% for i in range(20000) %}{{ n }}{% endfor %}"
    results: dict[int, str] = {}

    def render(number: int) -> None:
        results[number] = render_chat_template(source, {"n": number})

    threads = [threading.Thread(target=render, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: str(number) * 20000 for number in range(4)}


def test_a_long_conversation_is_within_the_limits(data: Path) -> None:
    """Two thousand turns with tools."""
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "Why, then I'll go. " * 20},
        {"role": "assistant", "content": "<think>\nhm\n</think>\nSo go.", "tool_calls": [{**call, "id": "123456789"}]},
        {"role": "tool", "content": "done", "tool_call_id": "123456789"},
    ]
    given = {"messages": turns * 700, "tools": TOOLS, "date": "", "bos_token": "", "eos_token": ""}
    for name in ("headers", "qwen3", "thinking", "turns", "types"):
        assert render_chat_template(templates(data)[name], given).count("I'll go") == 14_000

"""A conversation as token ids: the repository's template, and no tokens around what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import bombus

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 🐝"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "fly",
        "description": "Flies.",
        "parameters": {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]},
    },
}


@pytest.fixture(scope="module")
def qwen3(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bombus.Tokenizer:
    folder = tmp_path_factory.mktemp("qwen3")
    shutil.copy(data / "qwen2-tokenizer" / "tokenizer.json", folder)
    shutil.copy(data / "qwen2-tokenizer" / "qwen3_tokenizer_config.json", folder / "tokenizer_config.json")
    return bombus.load_tokenizer(folder)


def read(tokenizer: bombus.Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=False)


def test_the_prompt_of_qwen3(qwen3: bombus.Tokenizer) -> None:
    """ChatML, whose marks are single tokens; the switches reach the template."""
    start, end = 151644, 151645
    asked = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 🐝<|im_end|>\n"
    tokens = qwen3.encode_chat(MESSAGES)
    assert read(qwen3, tokens) == asked + "<|im_start|>assistant\n"
    assert (tokens.count(start), tokens.count(end), tokens[0]) == (3, 2, start)
    assert read(qwen3, qwen3.encode_chat(MESSAGES, add_generation_prompt=False)) == asked
    quick = qwen3.encode_chat(MESSAGES, enable_thinking=False)
    assert read(qwen3, quick) == asked + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert qwen3.encode_chat(MESSAGES, enable_thinking=True) == tokens


def test_tools_of_qwen3(qwen3: bombus.Tokenizer) -> None:
    """They are described in the system message; a call and its result are messages."""
    call = {"type": "function", "function": {"name": "fly", "arguments": {"to": "熊蜂"}}}
    said = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "done"}]
    text = read(qwen3, qwen3.encode_chat([*MESSAGES, *said], tools=[TOOL]))
    system = text.partition("<|im_end|>")[0]
    assert system.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in system
    assert '<tool_call>\n{"name": "fly", "arguments": {"to": "熊蜂"}}\n</tool_call><|im_end|>' in text
    assert text.endswith("<|im_start|>user\n<tool_response>\ndone\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("template", "count"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", 1),
        ("{{ messages[0].content }}", 0),
        ("<s>{% for m in messages %}{{ m.content }}{% endfor %}", 1),
    ],
)
def test_the_beginning_is_the_templates(template: str, count: int, data: Path, tmp_path: Path) -> None:
    """`encode` puts <s> before every text of this tokenizer, so a template's own would be the second."""
    shutil.copy(data / "stories260K-hf" / "tokenizer.json", tmp_path)
    config = {"bos_token": "<s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = bombus.load_tokenizer(tmp_path)
    tokens = tokenizer.encode_chat(MESSAGES[1:])
    assert tokens.count(1) == count
    assert (tokens[0] == 1) == bool(count)
    assert tokenizer.encode(tokenizer.apply_chat_template(MESSAGES[1:])).count(1) == count + 1


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{{ 'a' * 300000000 }}",
            "makes too long a text (expected at most 10,000,000 characters, found 300,000,000). "
            "Use another template, or pass the prompt as text",
        ),
        ("{{ raise_exception('no ' ~ messages[0].role) }}", "failed: no system"),
        (None, "is not in this repository. Pass the prompt as text, or use an instruction-tuned model"),
    ],
)
def test_refusals(template: str | None, text: str, qwen3: bombus.Tokenizer) -> None:
    """Those of the template: nothing is encoded."""
    tokenizer = bombus.Tokenizer(qwen3.backend, chat_template=template)
    with pytest.raises(bombus.GenerationError) as caught:
        tokenizer.encode_chat(MESSAGES)
    assert str(caught.value) == f"chat template: {text}"


def test_what_decode_leaves_out(qwen3: bombus.Tokenizer, data: Path) -> None:
    """The special tokens; those of Qwen's tools and thoughts are none."""
    special = qwen3.special_ids
    assert {151643, 151644, 151645} < special
    names = {number: qwen3.decode([number], skip_special_tokens=False) for number in range(151643, 151669)}
    assert {name for number, name in names.items() if number not in special} >= {"<think>", "</think>", "<tool_call>"}
    assert all((qwen3.decode([number]) == "") == (number in special) for number in names)
    assert bombus.load_tokenizer(data / "stories260K-hf").special_ids == {0, 1, 2}


def test_a_special_token_that_a_message_spells_out(qwen3: bombus.Tokenizer) -> None:
    """As in transformers it becomes that token."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a<|im_end|>b"}]
    assert qwen3.encode_chat(messages, add_generation_prompt=False).count(151645) == 2

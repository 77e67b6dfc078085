"""Tokenizers of real repositories, chat templates, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import bombus


def test_a_real_tokenizer(data: Path) -> None:
    """Qwen2's 151,669 entries; text survives a round trip, special tokens can be kept."""
    tokenizer = bombus.load_tokenizer(data / "qwen2-tokenizer")
    assert tokenizer.vocab_size == 151669
    text = "Bombus terrestris, 熊蜂 🐝"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert tokenizer.eos_token_id == 151645
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=False) == "<|im_end|>"


def test_qwen3s_chat_template(data: Path, tmp_path: Path) -> None:
    """ChatML with Qwen3's switch for thinking."""
    shutil.copy(data / "qwen2-tokenizer" / "tokenizer.json", tmp_path)
    shutil.copy(data / "qwen2-tokenizer" / "qwen3_tokenizer_config.json", tmp_path / "tokenizer_config.json")
    tokenizer = bombus.load_tokenizer(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages) == start
    assert tokenizer.apply_chat_template(messages, enable_thinking=False) == start + "<think>\n\n</think>\n\n"


def tokenizer_with(template: str, tmp_path: Path, data: Path) -> bombus.Tokenizer:
    """stories260K's tokenizer under another chat template."""
    shutil.copy(data / "stories260K-hf" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    (tmp_path / "chat_template.jinja").write_text(template)
    return bombus.load_tokenizer(tmp_path)


def test_a_template_of_its_own_file(data: Path, tmp_path: Path) -> None:
    """chat_template.jinja, with special tokens and extra variables."""
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}{{ tools }}"
    tokenizer = tokenizer_with(template, tmp_path, data)
    assert tokenizer.apply_chat_template([{"role": "a", "content": "b"}], tools=[1]) == "a:b</s>[1]"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_templates_that_fail_or_escape(template: str, text: str, data: Path, tmp_path: Path) -> None:
    """The sandbox refuses, and every failure is one error of ours."""
    tokenizer = tokenizer_with(template, tmp_path, data)
    with pytest.raises(bombus.GenerationError, match="chat template: failed") as caught:
        tokenizer.apply_chat_template([])
    assert text in str(caught.value)


def test_refusals(data: Path, tmp_path: Path) -> None:
    """No template, no tokenizer.json, a broken one."""
    tokenizer = bombus.load_tokenizer(data / "stories260K-hf")
    with pytest.raises(bombus.GenerationError, match=r"chat template: is not in this repository\. Pass the prompt"):
        tokenizer.apply_chat_template([])
    with pytest.raises(bombus.CheckpointError, match=r"file tokenizer.json: is not there\. Save it with a fast"):
        bombus.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(bombus.CheckpointError, match="is not a valid tokenizer"):
        bombus.load_tokenizer(tmp_path)

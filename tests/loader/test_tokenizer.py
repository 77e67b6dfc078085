"""Tokenizers of real repositories, chat templates, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import bombus
from bombus.loader.tokenizer import check_vocabulary


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


def tokenizer_with(tmp_path: Path, data: Path, template: str | None = None, **config: Any) -> bombus.Tokenizer:
    """stories260K's tokenizer with another configuration, and a template in a file of its own."""
    shutil.copy(data / "stories260K-hf" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, **config}))
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    return bombus.load_tokenizer(tmp_path)


def test_a_template_of_its_own_file(data: Path, tmp_path: Path) -> None:
    """chat_template.jinja, with special tokens and extra variables; it goes before the one in the configuration."""
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}{{ tools }}"
    tokenizer = tokenizer_with(tmp_path, data, template, chat_template="of the configuration")
    assert tokenizer.apply_chat_template([{"role": "a", "content": "b"}], tools=[1]) == "a:b</s>[1]"


def test_what_a_template_is_given(data: Path, tmp_path: Path) -> None:
    """As in transformers `tools` and `documents` are None where there are none, and an argument goes first."""
    template = (
        "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} {{ eos_token }} {{ x is defined }}"
    )
    tokenizer = tokenizer_with(tmp_path, data, chat_template=template)
    assert tokenizer.apply_chat_template([]) == "True True True </s> False"
    found = tokenizer.apply_chat_template([], add_generation_prompt=False, eos_token="<e>", tools=[{}], x=1)
    assert found == "False True False <e> True"


def test_a_template_for_tools(data: Path, tmp_path: Path) -> None:
    """A list of named templates in tokenizer_config.json."""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}, {"name": 3}, "x"]
    tokenizer = tokenizer_with(tmp_path, data, chat_template=named)
    assert tokenizer.apply_chat_template([]) == "plain"
    assert tokenizer.apply_chat_template([], tools=[]) == "plain"
    assert tokenizer.apply_chat_template([], tools=[{"a": 1}]) == "tools"
    only = tokenizer_with(tmp_path, data, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(bombus.GenerationError, match="is not in this repository"):
        only.apply_chat_template([])


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            b"{{ '\xff' }}",
            "file: is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 4: invalid start byte. ",
        ),
        (b"a" * (4 * 131_072 + 1), "file: is too long for a chat template, and was not read (expected at most 131072 "),
    ],
)
def test_a_file_that_is_no_template(raw: bytes, text: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(raw)
    with pytest.raises(bombus.CheckpointError) as caught:
        tokenizer_with(tmp_path, data)
    assert str(caught.value).startswith(f"{tmp_path / 'chat_template.jinja'}: {text}")


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
    tokenizer = tokenizer_with(tmp_path, data, template)
    with pytest.raises(bombus.GenerationError, match="chat template: failed") as caught:
        tokenizer.apply_chat_template([])
    assert text in str(caught.value)


def test_refusals(data: Path, tmp_path: Path) -> None:
    """No template, no tokenizer, a broken one."""
    tokenizer = bombus.load_tokenizer(data / "stories260K-hf")
    with pytest.raises(bombus.GenerationError, match=r"chat template: is not in this repository\. Pass the prompt"):
        tokenizer.apply_chat_template([])
    save = "Save it with a fast tokenizer of transformers, which writes tokenizer.json"
    for subfolder, inside in ((None, ""), ("text", " in subfolder 'text'")):
        with pytest.raises(bombus.CheckpointError) as caught:
            bombus.load_tokenizer(tmp_path, subfolder=subfolder)
        assert str(caught.value) == (
            f"{tmp_path}: tokenizer: neither tokenizer.json nor tokenizer.model is there{inside}. {save}"
        )
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(bombus.CheckpointError, match="is not a valid tokenizer"):
        bombus.load_tokenizer(tmp_path)


def test_offline_a_missing_tokenizer_may_be_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(bombus.HubError) as caught:
        bombus.load_tokenizer("someone/something", cache_dir=tmp_path, local_files_only=True)
    assert str(caught.value) == (
        "someone/something: tokenizer: neither tokenizer.json nor tokenizer.model is in the local cache, and the "
        "network is switched off. Unset HF_HUB_OFFLINE and local_files_only, or download the repository first"
    )


def test_a_vocabulary_larger_than_the_embedding() -> None:
    """More rows are usual; fewer only where they are those of tokens that were added to the vocabulary."""
    vocabulary = {"a": 0, "b": 1, "<unk>": 2, "c": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.add_special_tokens(["<image>"])
    tokenizer = bombus.Tokenizer(backend)
    assert tokenizer.encode("<image>") == [4]
    check_vocabulary(tokenizer, 100)
    check_vocabulary(tokenizer, 5)
    check_vocabulary(tokenizer, 4)
    with pytest.raises(bombus.GenerationError) as caught:
        check_vocabulary(tokenizer, 2)
    assert str(caught.value) == (
        "tokenizer: is not the model's: of its tokens 2 have no row in the embedding, first '<unk>' "
        "(expected ids below 2, found up to 3). Load the tokenizer from the model's own repository"
    )
    with pytest.raises(bombus.GenerationError, match="of its tokens 1 have no row in the embedding, first 'c'"):
        check_vocabulary(tokenizer, 3)


def test_real_tokenizers_fit_their_models(data: Path) -> None:
    check_vocabulary(bombus.load_tokenizer(data / "stories260K-hf"), 512)
    qwen = bombus.load_tokenizer(data / "qwen2-tokenizer")
    check_vocabulary(qwen, 151_936)
    with pytest.raises(bombus.GenerationError, match="of its tokens 151131 have no row in the embedding"):
        check_vocabulary(qwen, 512)

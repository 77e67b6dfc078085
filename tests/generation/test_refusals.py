"""Requests that cannot be met: each a typed error that says what is wrong, from every function and from the command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus.cli import main
from bombus.generation.request import make_request

BIAS = "a bias from -1e+30 to 1e+30, or -inf"
INT32 = "2147483647"
FORCED = "must be pairs of a new token's index (from 0, in forced_decoder_ids from 1) and a token id"
PAST = "is out of range (expected ids below the vocabulary of 320, found"
NO_ROOM = "leaves no room for an answer (expected below the model's 512 positions"
TEMPERATURE = "temperature: is out of range (expected a number from 0.0 to 10000.0, found"
SEED = "seed: is out of range (expected a number from 0 to 4294967295, or 1, one per row, found"
MEMORY = "prefill_memory: is out of range (expected a positive number of bytes, found"
IDS = "must be a list of token ids"
LISTS = "prompts: must be lists of token ids (expected at least one, found"
MALICIOUS = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
UNSAFE = "chat template: failed: access to attribute '__class__' of 'list' object is unsafe."
EXPLODING = "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'bee' * 1000 }}{% endfor %}{% endfor %}"
EXPLODES = (
    "chat template: makes too long a text (expected at most 10,000,000 characters, found {}). "
    "Use another template, or pass the prompt as text"
)


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's, with a chat template of its own."""
    folder = shutil.copytree(tiny("qwen3"), tmp_path_factory.mktemp("refusals") / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}", "utf-8")
    return folder


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(bombus.GenerationError) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "text"),
    [
        ([], f"{LISTS} [])"),
        (None, f"{LISTS} None)"),
        (5, f"{LISTS} 5)"),
        (True, f"{LISTS} True)"),
        ("abc", f"{LISTS} 'abc')"),
        (np.array(5), f"{LISTS} array(5))"),
        ([1, 2], f"2 problems\n  - prompt 0: {IDS} (found 1)\n  - prompt 1: {IDS} (found 2)"),
        ([[1], None], f"prompt 1: {IDS} (found None)"),
        ([[1.5]], f"prompt 0: {IDS} (found [1.5])"),
        ([[2.0]], f"prompt 0: {IDS} (found [2.0])"),
        ([np.array([1.0])], f"prompt 0: {IDS} (found array([1.]))"),
        ([[float("nan")]], f"prompt 0: {IDS} (found [nan])"),
        ([[None]], f"prompt 0: {IDS} (found [None])"),
        ([[[1, 2]]], f"prompt 0: {IDS} (found [[1, 2]])"),
        ([[True]], f"prompt 0: {IDS} (found [True])"),
        ([["1"]], f"prompt 0: {IDS} (found ['1'])"),
        (["12"], f"prompt 0: {IDS} (found '12')"),
        ([b"12"], f"prompt 0: {IDS} (found b'12')"),
        ([{1: 2}], f"prompt 0: {IDS} (found {{1: 2}})"),
        ([[1], [320, 5]], "prompt 1: goes past the vocabulary of 320 tokens (found [320])"),
        ([[3, -1]], "prompt 0: goes past the vocabulary of 320 tokens (found [-1])"),
        ([[2**31]], "prompt 0: goes past the vocabulary of 320 tokens (found [2147483648])"),
        ([[1] * 512], f"prompt 0: {NO_ROOM}, found 512 tokens)"),
    ],
)  # fmt: skip
def test_prompts(loaded: bombus.LoadedModel, prompts: Any, text: str) -> None:
    assert refusal(bombus.generate_tokens, loaded, prompts) == f"generate: {text}"


@pytest.mark.parametrize(
    "prompt", [(1, 2), range(1, 3), np.array([1, 2], np.int16), jnp.array([1, 2]), [np.int64(1), 2], iter([1, 2])]
)
def test_integers_of_any_kind_are_tokens(loaded: bombus.LoadedModel, prompt: Any) -> None:
    """The tests above do not refuse what is meant."""
    request = make_request(loaded, [prompt], {"max_new_tokens": 511 - 1}, has_text=False)
    assert request.prompts == [[1, 2]]
    assert {type(token) for token in request.prompts[0]} == {int}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperatur": 1.0}, "temperatur: is not a setting. The closest are 'temperature'"),
        ({"eos_token_id": 3}, "eos_token_id: is the name in a file. Use stop_token_ids"),
        ({"guidance_scale": 2.0}, "guidance_scale: is not implemented"),
        ({"temperature": -1.0}, f"{TEMPERATURE} -1.0)"),
        ({"temperature": float("nan")}, f"{TEMPERATURE} nan)"),
        ({"temperature": "hot"}, f"{TEMPERATURE} 'hot')"),
        ({"top_k": 1.5}, f"top_k: is out of range (expected an integer from 0 to {INT32}, found 1.5)"),
        ({"top_k": -1}, f"top_k: is out of range (expected an integer from 0 to {INT32}, found -1)"),
        ({"top_p": 2.0}, "top_p: is out of range (expected a number from 0.0 to 1.0, found 2.0)"),
        ({"do_sample": "yes"}, "do_sample: is out of range (expected true or false, found 'yes')"),
        ({"max_new_tokens": 0}, "max_new_tokens: is out of range (expected an integer from 1, found 0)"),
        ({"max_new_tokens": 511}, "max_new_tokens: with a prompt of 2 tokens goes past the model's 512 positions "
         "(expected at most 510, found 511)"),
        ({"max_length": 513}, "max_length: with a prompt of 2 tokens goes past the model's 512 positions "
         "(expected at most 512, found 513)"),
        ({"max_length": 2}, "max_length: leaves no room after a prompt of 2 tokens (expected more than 2, found 2). "
         "Pass max_new_tokens"),
        ({"stop_token_ids": [999]}, f"stop_token_ids: {PAST} (999,))"),
        ({"stop_token_ids": [-1]}, "stop_token_ids: must be a token id or a list of them (found [-1])"),
        ({"suppress_tokens": [320]}, f"suppress_tokens: {PAST} (320,))"),
        ({"forced_bos_token_id": 320}, f"forced_bos_token_id: {PAST} 320)"),
        ({"forced_eos_token_id": 320}, f"forced_eos_token_id: {PAST} 320)"),
        ({"forced_tokens": {0: 999}}, f"forced_tokens: {PAST} ((0, 999),))"),
        ({"forced_tokens": {-1: 3}}, f"forced_tokens: {FORCED} (found {{-1: 3}})"),
        ({"forced_eos_token_id": 3, "suppress_tokens": [3]},
         "forced_eos_token_id: is in suppress_tokens too (found [3])"),
        ({"bad_words_ids": [[]]},
         "bad_words_ids: must be a list of lists of token ids, none of them empty (found [[]])"),
        ({"logit_bias": {5: float("nan")}}, f"logit_bias: must be pairs of a token id and {BIAS} (found {{5: nan}})"),
        ({"stop_strings": [""]}, "stop_strings: must be a text or a list of texts, none of them empty (found [''])"),
        ({"stop_strings": ["a"]}, "stop_strings: are looked for in text, and generate_tokens has no tokenizer "
         "(found ['a']). Call generate, or pass stop_strings=()"),
        ({"num_return_sequences": 2}, "num_return_sequences: asks for one greedy text several times "
         "(expected 1, found 2). Set do_sample, or num_beams to as many"),
        ({"num_return_sequences": 10**9, "do_sample": True}, "num_return_sequences: is out of range "
         "(expected at most 4096 texts at a time, of 1 prompts, found 1000000000)"),
        ({"num_beams": 10**9}, "num_beams: is out of range (expected at most 4096 texts at a time, of 1 prompts, "
         "found 1000000000)"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences: is more than num_beams "
         "(expected at most 2, found 3)"),
        ({"num_beams": 2, "penalty_alpha": 0.6}, "num_beams and penalty_alpha: ask for different searches "
         "(expected one of them, found num_beams=2, penalty_alpha=0.6)"),
        ({"penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3}, "penalty_alpha and prompt_lookup_num_tokens: ask for "
         "different searches (expected one of them, found penalty_alpha=0.6, prompt_lookup_num_tokens=3)"),
        *(({"seed": seed}, f"{SEED} {seed!r})")
          for seed in (-1, 2**32, 2**70, 1.5, float("nan"), "1", True, [1, 2], [], [1.5], [None], [-1], [[3]], {3: 1})),
        ({"logprobs": "yes"}, "logprobs: is out of range (expected True or False, found 'yes')"),
        *(({"top_logprobs": top}, f"top_logprobs: is out of range (expected an integer from 0 to 20, found {top!r})")
          for top in (21, -1, True, 1.0)),
        *(({"prefill_chunk": chunk}, f'prefill_chunk: is out of range (expected "auto", None or a positive integer, '
            f"found {chunk!r})") for chunk in (0, -4, "all", True, np.array([1, 2]))),
        *(({"prefill_memory": size}, f"{MEMORY} {size!r})")
          for size in (-1, 0, None, 1e9)),
        ({"cache_format": "int7"}, "keys and values: int7: is not a cache format. The closest are 'int8', 'int4'"),
        ({"cache_format": {"key": "int8"}}, "setting 'key': does not exist. The closest are 'keys'"),
        ({"processors": 3}, "processors: is out of range (expected a list of them, found 3)"),
        ({"processors": [3]}, "processors: must be functions (logits, history) -> logits, or objects with init and "
         "__call__ (found 3)"),
        ({"generation_config": {"top_k": 1}}, "generation_config: is out of range (expected a bombus.GenerationConfig, "
         "found {'top_k': 1})"),
    ],
)  # fmt: skip
def test_settings_and_options(loaded: bombus.LoadedModel, options: dict[str, Any], text: str) -> None:
    assert refusal(bombus.generate_tokens, loaded, [[1, 2]], **options) == f"generate: {text}"


def test_everything_comes_at_once(loaded: bombus.LoadedModel) -> None:
    """The prompts, the settings and the rest, each in a line."""
    more = {"num_return_sequences": 2049, "do_sample": True}
    assert "expected at most 4096 texts at a time, of 2 prompts, found 2049" in refusal(
        bombus.generate_tokens, loaded, [[1], [2]], **more
    )
    text = refusal(bombus.generate_tokens, loaded, [[], [1.5]], temperature=-1, seed=[1], cache_format="int7")
    assert text.startswith("generate: 5 problems\n  - temperature: ")
    for subject in ("prompt 0: has no tokens", "prompt 1: must", "seed: ", "keys and values: int7: "):
        assert f"\n  - {subject}" in text


def test_a_request_that_just_fits_is_met(loaded: bombus.LoadedModel) -> None:
    """The limits refuse nothing below them: one token after 511, the largest seed, 20 log-probabilities."""
    options = {"max_new_tokens": 1, "seed": 2**32 - 1, "top_logprobs": 20}
    request = make_request(loaded, [[319] * 511], options, has_text=False)
    assert (request.limits, request.top_logprobs) == ([1], 20)
    assert make_request(loaded, [[1] * 9], {"max_length": 512}, has_text=False).limits == [503]
    most = make_request(loaded, [[1], [2]], {"num_return_sequences": 2048, "do_sample": True}, has_text=False)
    assert len(most.prompts) == 4096
    two = make_request(loaded, [[1], [2]], {"seed": 2**32 - 1}, has_text=False)
    assert np.asarray(two.call.sampling.seed).tolist() == [2**32 - 1, 0]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "generate": bombus.generate,
    "details": lambda *given, **options: bombus.generate(*given, return_details=True, **options),
    "stream": lambda *given, **options: bombus.generate(*given, stream=True, **options),
    "chat": lambda loaded, tokenizer, text, **options: bombus.chat(
        loaded, replace(tokenizer, chat_template="{{ messages[0].content }}"), [{"content": text}], **options
    ),
}
COMMANDS = [
    ("a", {"temperature": -1.0}, ["--temperature", "-1"],
     f"{TEMPERATURE} -1.0)"),
    ("a", {"temperature": "hot"}, ["--set", "temperature=hot"],
     f"{TEMPERATURE} 'hot')"),
    ("a", {"stop_token_ids": [999]}, ["--set", "stop_token_ids=[999]"], f"stop_token_ids: {PAST} (999,))"),
    ("", {}, [], "prompt 0: has no tokens. Write something, if only a line break, or give token ids"),
    ("a" * 600, {}, [],
     f"prompt 0: {NO_ROOM}, found 600 tokens)"),
    ("a", {"seed": -1}, ["--seed", "-1"],
     f"{SEED} -1)"),
    ("a", {"cache_format": "int7"}, ["--kv-cache", "int7"],
     "keys and values: int7: is not a cache format. The closest are 'int8', 'int4'"),
    ("a", {"stop_strings": [""]}, ["--stop", ""],
     "stop_strings: must be a text or a list of texts, none of them empty (found ('',))"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "prompt", "options", "text"),
    [(name, prompt, options, text) for name in FUNCTIONS for prompt, options, _, text in COMMANDS],
)
def test_texts_and_conversations(
    loaded: bombus.LoadedModel, tokenizer: bombus.Tokenizer, name: str, prompt: str, options: Any, text: str
) -> None:
    """Before anything is computed, for a stream too."""
    found = refusal(FUNCTIONS[name], loaded, tokenizer, prompt, **options)
    assert found.replace("['']", "('',)") == f"generate: {text}"


@pytest.mark.parametrize(("prompt", "_", "arguments", "text"), COMMANDS)
def test_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str], prompt: str, _: Any, arguments: list[str], text: str
) -> None:
    assert main(["generate", str(folder), "--prompt", prompt, *arguments]) == 1
    assert capsys.readouterr() == ("", f"bombus: GenerationError: generate: {text}\n")


@pytest.mark.parametrize(("template", "text"), [(MALICIOUS, UNSAFE), (EXPLODING, EXPLODES)])
def test_templates(
    loaded: bombus.LoadedModel,
    tokenizer: bombus.Tokenizer,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    template: str,
    text: str,
) -> None:
    """One that reaches for Python and one that never ends, through chat, a stream of it, and both commands."""
    messages = [{"role": "user", "content": "a"}]
    hostile = replace(tokenizer, chat_template=template)
    found = refusal(bombus.chat, loaded, hostile, messages)
    assert found == text.format(found.partition("found ")[2].partition(")")[0])
    assert refusal(bombus.chat, loaded, hostile, messages, stream=True) == found
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "chat_template.jinja").write_text(template, "utf-8")
    assert main(["generate", str(copy), "--chat", "--prompt", "a"]) == 1
    assert capsys.readouterr() == ("", f"bombus: GenerationError: {found}\n")


def test_an_eos_outside_the_vocabulary_in_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The repository is at fault, and is refused when it is loaded."""
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "generation_config.json").write_text('{"eos_token_id": [3, 320]}', "utf-8")
    text = f"generation_config.json: field 'eos_token_id': {PAST} [3, 320])"
    with pytest.raises(bombus.SpecError) as caught:
        bombus.load_model(copy)
    assert str(caught.value) == text
    assert main(["generate", str(copy), "--prompt", "a"]) == 1
    assert capsys.readouterr() == ("", f"bombus: SpecError: {text}\n")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (None, f"{LISTS} [])"),
        (5, f"{LISTS} [])"),
        (True, f"{LISTS} [])"),
        ([], "prompt 0: has no tokens. Write something, if only a line break, or give token ids"),
        ([1.5], f"prompt 0: {IDS} (found 1.5)"),
        ([None], f"prompt 0: {IDS} (found None)"),
        ([True], f"prompt 0: {IDS} (found True)"),
        (["a", [1.5]], f"prompt 1: {IDS} (found [1.5])"),
        (np.array([1, 320]), "prompt 0: goes past the vocabulary of 320 tokens (found [320])"),
    ],
)
def test_prompts_that_are_no_texts(
    loaded: bombus.LoadedModel, tokenizer: bombus.Tokenizer, prompt: Any, text: str
) -> None:
    assert refusal(bombus.generate, loaded, tokenizer, prompt) == f"generate: {text}"


def test_a_config_of_another_kind(loaded: bombus.LoadedModel, tokenizer: bombus.Tokenizer) -> None:
    text = refusal(bombus.generate, loaded, tokenizer, "a", generation_config={"top_k": 1})
    assert text.startswith("generate: generation_config: is out of range (expected a bombus.GenerationConfig, found ")


def test_a_stream_is_of_one_text(
    loaded: bombus.LoadedModel, tokenizer: bombus.Tokenizer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refusal(bombus.generate, loaded, tokenizer, ["a", "b"], stream=True)
    assert text == "stream: takes one prompt and gives one text (found 2 of them)"
    assert main(["generate", str(folder), "--prompt", "a", "--prompt", "b", "--stream"]) == 1
    assert capsys.readouterr() == ("", f"bombus: GenerationError: {text}\n")
    text = refusal(bombus.generate, loaded, tokenizer, "a", stream=True, num_beams=2)
    assert text == "generate: stream: is not for beams, which are known at the end only (found num_beams=2)"

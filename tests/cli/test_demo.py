"""`bombus demo`: the shipped model, its types kept, writes a speech."""

from __future__ import annotations

import re

import pytest
from command_line import Run, output

import bombus
from bombus.loader.shipped import SHIPPED


def test_the_demo_writes_what_generate_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its options; one prompt of one size, so that one program serves."""
    (name,) = SHIPPED
    loaded, tokenizer = bombus.load_model(name, preserve_source_types=True), bombus.load_tokenizer(name)
    calls = []

    def load(repo: str, **options: object) -> bombus.LoadedModel:
        calls.append((repo, options))
        return loaded

    monkeypatch.setattr(bombus, "load_model", load)
    first = output(run, "demo", "--max-new-tokens", "12")
    assert calls == [(name, {"preserve_source_types": True})]
    assert first.startswith(f"{name}: ")
    assert "f8_e4m3fn[544, 192]" in first
    prompt = "ROMEO:\n"
    found = re.fullmatch(
        rf"{re.escape(str(loaded.report))}\n\n{prompt}(.+)\n\n(\d+) tokens, the first after \d+\.\d s, of which "
        r"\d+\.\d s of compiling; \d+ tokens per second from there\n",
        first,
        re.DOTALL,
    )
    assert found is not None, first
    details = bombus.generate(
        loaded, tokenizer, prompt, max_new_tokens=12, seed=0, stop_strings=(), return_details=True
    )
    assert (found[1], int(found[2])) == (details.text, len(details.tokens))
    prompt = "JULIET:\n"
    second = output(run, "demo", "--prompt", prompt, "--max-new-tokens", "12", "--seed", "5")
    text = bombus.generate(loaded, tokenizer, prompt, max_new_tokens=12, seed=5)
    assert f"\n\n{prompt}{text}\n\n" in second


def test_a_demo_of_nothing_is_an_error(run: Run) -> None:
    status, out, err = run("demo", "--max-new-tokens", "0")
    assert status == 1
    assert "ROMEO" not in out
    assert err.startswith("bombus: GenerationError: ")
    assert "max_new_tokens" in err

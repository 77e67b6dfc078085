"""The command `generate`: texts that go on from prompts."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from typing import Any

import jax

import bombus
from bombus.arguments import add_command, add_precision, add_repository, add_settings, precision, repository, settings
from bombus.generation import Generated
from bombus.layers import as_cache_format
from bombus.loader.shipped import SHIPPED
from bombus.policies.errors import PolicyError


def add_generate_command(commands: Any) -> None:
    """Add `generate` to the commands."""
    command = add_command(commands, "generate", _generate, "continue a text")
    add_repository(command, default=next(iter(SHIPPED)))
    add_precision(command)
    command.add_argument(
        "--prompt", required=True, action="append", help="the text to continue; - for standard input; may be repeated"
    )
    add_settings(command)
    command.add_argument("--chat", action="store_true", help="put the prompt into the repository's chat template")
    command.add_argument("--stream", action="store_true", help="print the text while it is made")
    command.add_argument(
        "--cache", nargs="?", const="auto", metavar="FOLDER", help="keep the converted parameters for the next time"
    )
    command.add_argument("--json", action="store_true", help="print JSON, a line for each text")


def load(options: argparse.Namespace) -> tuple[bombus.LoadedModel, bombus.Tokenizer]:
    """The model and tokenizer of a command; what it compiles is kept for the next one."""
    bombus.use_compilation_cache()
    tokenizer = bombus.load_tokenizer(options.repo, **repository(options))
    loaded = bombus.load_model(options.repo, **repository(options), **precision(options), cache=options.cache)
    if loaded.report.plan.policy:
        print(f"policy: {loaded.report.plan.policy}", file=sys.stderr)
    if "cache_format" in (given := settings(options)):
        # A format may do less than one thinks: what it takes is said, of as many tokens as the model can hold.
        length = loaded.spec.max_positions
        with suppress(PolicyError):  # which generate says, with all else that is wrong
            format = as_cache_format(given["cache_format"])
            cache = jax.eval_shape(lambda: loaded.model.init_cache(1, length, format=format))
            print(f"cache: {cache.bytes_per_token:,.0f} bytes per token, of {length:,}", file=sys.stderr)
    return loaded, tokenizer


def _generate(options: argparse.Namespace) -> None:
    given = settings(options)
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in options.prompt]
    loaded, tokenizer = load(options)
    prompts: list[Any] = texts
    if options.chat:
        prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in texts]
    if options.stream and not options.json:
        stream = bombus.generate(loaded, tokenizer, prompts[0] if len(prompts) == 1 else prompts, stream=True, **given)
        print("" if options.chat else texts[0], end="", flush=True)
        for piece in stream:
            print(piece, end="", flush=True)
        print()
        return
    found = bombus.generate(loaded, tokenizer, prompts, return_details=True, **given)
    shown = [text for text in texts for _ in range(len(found) // len(texts))]
    for text, result in zip(shown, found, strict=True):
        print(json.dumps(_details(text, result)) if options.json else ("" if options.chat else text) + str(result))


def _details(prompt: str, result: Generated) -> dict[str, Any]:
    timings = result.timings
    assert timings is not None
    return {
        "prompt": prompt,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": len(result.tokens),
        "seconds": round(timings.seconds, 4),
        "time_to_first_token": round(timings.time_to_first_token, 4),
        "tokens_per_second": round(timings.tokens_per_second, 2),
    }

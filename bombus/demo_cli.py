"""`bombus demo`: the model that ships with the package, loaded with its types kept, writes a speech."""

from __future__ import annotations

import argparse
from typing import Any

import bombus
from bombus.arguments import add_command
from bombus.loader.shipped import SHIPPED


def add_demo_command(commands: Any) -> None:
    """Add the command to those of the command line."""
    demo = add_command(commands, "demo", _demo, "load the FP8 model that ships with Bombus, and have it write a speech")
    demo.add_argument("--prompt", default="ROMEO:\n", help="what the speech follows; default: ROMEO: and a new line")
    demo.add_argument("--max-new-tokens", type=int, help="at most this many new tokens; default: the model's own")
    demo.add_argument("--seed", type=int, default=0, help="another seed, another speech")


def _demo(options: argparse.Namespace) -> None:
    name = next(iter(SHIPPED))
    loaded = bombus.load_model(name, preserve_source_types=True)
    tokenizer = bombus.load_tokenizer(name)
    print(loaded.report, end="\n\n")
    given = {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}
    pieces = bombus.generate(loaded, tokenizer, options.prompt, stream=True, seed=options.seed, **given)
    print(options.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    made = pieces.result
    times = made.timings
    assert times is not None  # a text that was made took time
    print(
        f"\n\n{len(made.tokens)} tokens, the first after {times.time_to_first_token:.1f} s, of which "
        f"{times.compile_seconds:.1f} s of compiling; {times.tokens_per_second:.0f} tokens per second from there"
    )

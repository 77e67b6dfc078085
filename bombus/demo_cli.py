"""`bombus demo`: the model that ships with the package, loaded with its types kept, writes a scene."""

from __future__ import annotations

import argparse
from typing import Any

import bombus
from bombus.arguments import add_command
from bombus.loader.shipped import SHIPPED


def add_demo_command(commands: Any) -> None:
    """Add the command to those of the command line."""
    demo = add_command(commands, "demo", _demo, "load the FP8 model that ships with Bombus, and have it write a scene")
    demo.add_argument("--prompt", default="ROMEO:\n", help="what the scene follows; default: ROMEO: and a new line")
    demo.add_argument("--max-new-tokens", type=int, help="at most this many new tokens; default: the model's own")
    demo.add_argument("--seed", type=int, default=0, help="another seed, another scene")


def _demo(options: argparse.Namespace) -> None:
    name = next(iter(SHIPPED))
    bombus.use_compilation_cache()
    loaded = bombus.load_model(name, preserve_source_types=True)
    tokenizer = bombus.load_tokenizer(name)
    print(loaded.report, end="\n\n")
    # A scene, where the model's own settings end with the first speech.
    pieces = bombus.generate(
        loaded,
        tokenizer,
        options.prompt,
        stream=True,
        seed=options.seed,
        stop_strings=(),
        max_new_tokens=options.max_new_tokens,
    )
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

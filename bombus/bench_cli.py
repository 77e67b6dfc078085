"""The commands `bench` and `tune`: how fast a model is on this machine, and how many users at a time suit it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from bombus.arguments import add_command, add_precision, add_repository, precision, repository
from bombus.evaluation import PRESETS, bench, check_plot, plot_bench, plot_tuning, tune_batch


def add_bench_commands(commands: Any) -> None:
    """Add `bench` and `tune` to the commands."""
    command = add_command(commands, "bench", _bench, "speeds and memory of a model, beside others in the same run")
    add_repository(command)
    add_precision(command)
    command.add_argument("--preset", default="latency", metavar="NAME", help=f"{', '.join(PRESETS)}; default: latency")
    command.add_argument("--batch", type=int, metavar="N", help="users at a time")
    command.add_argument("--prompt-tokens", type=_tokens, metavar="N", help="tokens of each prompt")
    command.add_argument("--new-tokens", type=_tokens, metavar="N", help="tokens that are written for each user")
    command.add_argument("--ctx", type=_tokens, metavar="N", help="prompt and new tokens together, such as 16k")
    command.add_argument(
        "--compare", default="", metavar="NAMES", help="transformers, llama.cpp, or both with a comma between them"
    )
    command.add_argument("--gguf", metavar="FILE", help="what llama.cpp reads; default: made from the checkpoint")
    command.add_argument("--rounds", type=int, metavar="N", help="how often each measures; default: 3, of hours 1")
    command.add_argument("--dispatch", action="store_true", help="also what a step costs the host that starts it")
    _add_output(command)

    tune = commands.add_parser("tune", help="settings that suit this machine")
    tunable = tune.add_subparsers(required=True, metavar="SETTING")
    batch = add_command(tunable, "batch", _tune_batch, "the best batch size, and what each of them costs and brings")
    add_repository(batch)
    add_precision(batch)
    batch.add_argument("--max", dest="most", type=int, default=32, metavar="N", help="the largest; default: 32")
    batch.add_argument("--metric", default="throughput", help="throughput (default) or latency")
    batch.add_argument("--prompt-tokens", type=_tokens, default=128, metavar="N", help="of each user; default: 128")
    batch.add_argument("--new-tokens", type=_tokens, default=32, metavar="N", help="for each user; default: 32")
    batch.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each size runs; default: 3")
    _add_output(batch)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=("cpu", "gpu"), help="default: what JAX chooses")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--plot", metavar="FILE", help="write a figure, such as FILE.png; needs matplotlib")


def _bench(options: argparse.Namespace) -> None:
    if options.plot is not None:
        check_plot(options.plot)
    found = bench(
        options.repo,
        preset=options.preset,
        batch=options.batch,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        context=options.ctx,
        compare=[name.strip() for name in options.compare.split(",") if name.strip()],
        gguf=options.gguf,
        rounds=options.rounds,
        device=options.device,
        dispatch=options.dispatch,
        report=_report,
        **repository(options),
        **precision(options),
    )
    print(json.dumps(found.to_json(), indent=2) if options.json else found)
    if options.plot is not None:
        plot_bench(found, options.plot)


def _tune_batch(options: argparse.Namespace) -> None:
    if options.plot is not None:
        check_plot(options.plot)
    found = tune_batch(
        options.repo,
        most=options.most,
        metric=options.metric,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
        device=options.device,
        report=_report,
        **repository(options),
        **precision(options),
    )
    print(json.dumps(found.to_json(), indent=2) if options.json else found)
    if options.plot is not None:
        plot_tuning(found, options.plot)


def _tokens(text: str) -> int:
    """A number of tokens; 16k is 16 times 1024."""
    found = re.fullmatch(r"(\d+)(k?)", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens, such as 200 or 16k")
    return int(found[1]) * (1024 if found[2] else 1)


def _report(line: str) -> None:
    """What happens, for whoever waits at a terminal."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr)

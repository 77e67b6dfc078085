"""The command line: `bombus COMMAND`. Results go to standard output, errors without a traceback to standard error."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import bombus
from bombus.arguments import add_command, add_precision, add_repository, precision, repository
from bombus.bench_cli import add_bench_commands
from bombus.chat_cli import add_chat_command
from bombus.demo_cli import add_demo_command
from bombus.env_cli import add_env_command
from bombus.file_cli import add_file_commands
from bombus.generate_cli import add_generate_command
from bombus.loader.checkpoint import read_headers
from bombus.loader.report import readable_bytes
from bombus.loader.repository import open_repository
from bombus.policies.errors import BombusError
from bombus.policies.formats import type_name
from bombus.policy_cli import add_policy_commands
from bombus.testing import PRESETS, tiny_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 after an error of ours, 2 for a wrong call, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BombusError as error:
        print(f"bombus: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bombus", description=bombus.__doc__)
    parser.add_argument("--version", action="version", version=f"bombus {bombus.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    inspect = add_command(commands, "inspect", _inspect, "what a checkpoint is, from its configuration and headers")
    add_repository(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON")

    plan = add_command(commands, "plan", _plan, "what loading would read, from where, as what; reads no tensor")
    add_repository(plan)
    add_precision(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")

    add_generate_command(commands)
    add_chat_command(commands)
    add_file_commands(commands)
    add_bench_commands(commands)
    add_env_command(commands)

    policy = commands.add_parser("policy", help="templates of policies, and what a policy decides and why")
    add_policy_commands(policy)

    tiny = add_command(commands, "tiny", _tiny, "write a tiny checkpoint of random weights")
    tiny.add_argument("folder")
    tiny.add_argument("--architecture", default="qwen3", help="qwen3 (default), gpt2, ..., or a class of transformers")
    tiny.add_argument("--weights", default="f8_e4m3fn", help="f8_e4m3fn (default), bf16 or f32")
    tiny.add_argument("--scales", default="f32", help="the type of FP8 scales: f32 (default) or bf16")
    tiny.add_argument("--preset", default="tiles", choices=sorted(PRESETS))
    tiny.add_argument("--head", default="causal_lm", help="causal_lm (default), base, ...")
    tiny.add_argument("--not-converted", action="append", default=[], metavar="GLOB", help="layers that stay bf16")
    tiny.add_argument("--shards", type=int, default=1)
    tiny.add_argument("--seed", type=int, default=0)

    add_demo_command(commands)
    return parser


def _inspect(options: argparse.Namespace) -> None:
    spec = bombus.load_spec(options.repo, **repository(options))
    headers = read_headers(open_repository(options.repo, **repository(options)))
    sizes: Counter[str] = Counter()
    for info in headers.values():
        sizes[type_name(info.dtype)] += info.nbytes
    if options.json:
        print(json.dumps({"spec": asdict(spec), "tensors": len(headers), "bytes": dict(sizes)}, indent=2))
        return
    print(type(spec).__name__)
    for name, value in asdict(spec).items():
        print(f"  {name:20} {value}")
    print(f"{len(headers)} tensors: " + ", ".join(f"{name} {readable_bytes(n)}" for name, n in sizes.most_common()))


def _plan(options: argparse.Namespace) -> None:
    report = bombus.load_plan(options.repo, **repository(options), **precision(options))
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
        return
    print(report)
    share = report.nbytes / max(report.file_nbytes, 1)
    before, after = readable_bytes(report.file_nbytes), readable_bytes(report.nbytes)
    print(f"bytes: {before} before, in the checkpoint; {after} after, in memory ({share:.0%})")


def _tiny(options: argparse.Namespace) -> None:
    folder = tiny_checkpoint(
        options.architecture,
        options.folder,
        options.weights,
        options.seed,
        preset=options.preset,
        head=options.head,
        scales=options.scales,
        not_converted=options.not_converted,
        shards=options.shards,
    )
    print(folder)

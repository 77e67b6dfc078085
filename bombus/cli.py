"""The command line: `bombus COMMAND`. Results go to standard output, errors without a traceback to standard error."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import bombus
from bombus.arguments import add_command, add_precision, add_repository, precision, repository
from bombus.file_cli import add_file_commands
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

    generate = add_command(commands, "generate", _generate, "continue a text")
    add_repository(generate)
    add_precision(generate)
    generate.add_argument("--prompt", required=True, help="the text to continue")
    generate.add_argument("--max-new-tokens", type=int, help="at most this many new tokens")
    generate.add_argument("--temperature", type=float, help="0 is greedy; default: the repository's")
    generate.add_argument("--top-k", type=int, help="sample from the k most probable tokens only; 0: all")
    generate.add_argument("--top-p", type=float, help="sample from the most probable tokens of this mass; 1: all")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--chat", action="store_true", help="put the prompt into the repository's chat template")
    generate.add_argument("--stream", action="store_true", help="print the text while it is made")
    generate.add_argument(
        "--cache", nargs="?", const="auto", metavar="FOLDER", help="keep the converted parameters for the next time"
    )
    generate.add_argument("--json", action="store_true", help="print JSON")

    add_file_commands(commands)

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

    demo = add_command(commands, "demo", _demo, "make a tiny FP8 Qwen3, load it with its types kept, generate")
    demo.add_argument("--max-new-tokens", type=int, default=32)
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


def _generate(options: argparse.Namespace) -> None:
    tokenizer = bombus.load_tokenizer(options.repo, **repository(options))
    loaded = bombus.load_model(options.repo, **repository(options), **precision(options), cache=options.cache)
    if loaded.report.plan.policy:
        print(f"policy: {loaded.report.plan.policy}", file=sys.stderr)
    prompt = options.prompt
    if options.chat:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
    shown = "" if options.chat else prompt
    settings = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
    }
    if options.stream and not options.json:
        pieces = bombus.generate(loaded, tokenizer, prompt, stream=True, **settings)
        print(shown, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    text = bombus.generate(loaded, tokenizer, prompt, **settings)
    print(json.dumps({"prompt": prompt, "text": text}) if options.json else shown + text)


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


def _demo(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = tiny_checkpoint("qwen3", Path(temporary) / "tiny-qwen3-fp8")
        loaded = bombus.load_model(folder, preserve_source_types=True)
        tokenizer = bombus.load_tokenizer(folder)
        print(loaded.report)
        prompt = "Bombus "
        text = bombus.generate(loaded, tokenizer, prompt, max_new_tokens=options.max_new_tokens)
        print(f"\n{options.max_new_tokens} tokens of this random model, so noise, after {prompt!r}:\n{text!r}")

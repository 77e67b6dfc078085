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
from typing import Any

import bombus
from bombus.loader.checkpoint import read_headers
from bombus.loader.hub import open_repository
from bombus.loader.report import readable_bytes
from bombus.policies.errors import BombusError
from bombus.policies.formats import type_name
from bombus.policy_cli import add_policy_commands, read_policy
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

    inspect = _command(commands, "inspect", _inspect, "what a checkpoint is, from its configuration and headers")
    _add_repository(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON")

    plan = _command(commands, "plan", _plan, "what loading would read, from where, as what; reads no tensor")
    _add_repository(plan)
    _add_precision(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")

    generate = _command(commands, "generate", _generate, "continue a text")
    _add_repository(generate)
    _add_precision(generate)
    generate.add_argument("--prompt", required=True, help="the text to continue")
    generate.add_argument("--max-new-tokens", type=int, help="at most this many new tokens")
    generate.add_argument("--temperature", type=float, help="0 is greedy; default: the repository's")
    generate.add_argument("--top-k", type=int, help="sample from the k most probable tokens only; 0: all")
    generate.add_argument("--top-p", type=float, help="sample from the most probable tokens of this mass; 1: all")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--chat", action="store_true", help="put the prompt into the repository's chat template")
    generate.add_argument("--stream", action="store_true", help="print the text while it is made")
    generate.add_argument("--json", action="store_true", help="print JSON")

    policy = commands.add_parser("policy", help="templates of policies, and what a policy decides and why")
    add_policy_commands(policy, _command, _add_repository)

    tiny = _command(commands, "tiny", _tiny, "write a tiny checkpoint of random weights")
    tiny.add_argument("folder")
    tiny.add_argument("--architecture", default="qwen3", help="qwen3 (default), llama, or a class of transformers")
    tiny.add_argument("--weights", default="f8_e4m3fn", help="f8_e4m3fn (default), bf16 or f32")
    tiny.add_argument("--scales", default="f32", help="the type of FP8 scales: f32 (default) or bf16")
    tiny.add_argument("--preset", default="tiles", choices=sorted(PRESETS))
    tiny.add_argument("--head", default="causal_lm", help="causal_lm (default), sequence_classification or base")
    tiny.add_argument("--not-converted", action="append", default=[], metavar="GLOB", help="layers that stay bf16")
    tiny.add_argument("--shards", type=int, default=1)
    tiny.add_argument("--seed", type=int, default=0)

    demo = _command(commands, "demo", _demo, "make a tiny FP8 Qwen3, load it with its types kept, generate")
    demo.add_argument("--max-new-tokens", type=int, default=32)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _add_repository(command: argparse.ArgumentParser) -> None:
    command.add_argument("repo", help="a folder, or an id on the Hugging Face hub")
    command.add_argument("--revision", help="branch, tag or commit on the hub")
    command.add_argument("--subfolder", help="folder inside the repository")
    command.add_argument("--token", help="access token for the hub; default: HF_TOKEN or the saved login")
    command.add_argument("--offline", action="store_true", help="use files that are on this machine already")


def _add_precision(command: argparse.ArgumentParser) -> None:
    command.add_argument("--policy", help="a format (bf16, int8), a preset, a JSON file of rules, JSON itself, or auto")
    command.add_argument(
        "--preserve-source-types", action="store_true", help="keep the formats of the file, FP8 included"
    )
    command.add_argument("--architecture", help="a class of transformers, or causal_lm, base, ...")
    command.add_argument("--no-strict", action="store_true", help="ignore unexpected, initialise missing tensors")


def _repository(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "revision": options.revision,
        "subfolder": options.subfolder,
        "token": options.token,
        "local_files_only": options.offline,
    }


def _precision(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "policy": read_policy(options.policy),
        "preserve_source_types": options.preserve_source_types,
        "architecture": options.architecture,
        "strict": not options.no_strict,
    }


def _inspect(options: argparse.Namespace) -> None:
    spec = bombus.load_spec(options.repo, **_repository(options))
    headers = read_headers(open_repository(options.repo, **_repository(options)))
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
    report = bombus.load_plan(options.repo, **_repository(options), **_precision(options))
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
        return
    print(report)
    share = report.nbytes / max(report.file_nbytes, 1)
    before, after = readable_bytes(report.file_nbytes), readable_bytes(report.nbytes)
    print(f"bytes: {before} before, in the checkpoint; {after} after, in memory ({share:.0%})")


def _generate(options: argparse.Namespace) -> None:
    tokenizer = bombus.load_tokenizer(options.repo, **_repository(options))
    loaded = bombus.load_model(options.repo, **_repository(options), **_precision(options))
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

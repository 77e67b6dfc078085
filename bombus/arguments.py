"""Arguments that commands share, and what functions of the package take for them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from bombus.policies.errors import GenerationError, Problem
from bombus.policies.files import parse_json


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """A new command among `commands`, which `run` executes."""
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def add_repository(command: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Let a command take a repository: `repo`, and what `repository` reads. default: what is taken without one."""
    text = "a folder, an id on the Hugging Face hub, or the name of a model that ships with Bombus"
    if default is None:
        command.add_argument("repo", help=text)
    else:
        command.add_argument("repo", nargs="?", default=default, help=f"{text}; default: {default}")
    command.add_argument("--revision", help="branch, tag or commit on the hub")
    command.add_argument("--subfolder", help="folder inside the repository")
    command.add_argument("--token", help="access token for the hub; default: HF_TOKEN or the saved login")
    command.add_argument("--offline", action="store_true", help="use files that are on this machine already")


def repository(options: argparse.Namespace) -> dict[str, Any]:
    """What load_model and the like take to find a repository."""
    return {
        "revision": options.revision,
        "subfolder": options.subfolder,
        "token": options.token,
        "local_files_only": options.offline,
    }


def add_precision(command: argparse.ArgumentParser) -> None:
    """Let a command take what `precision` reads."""
    command.add_argument("--policy", help="a format (bf16, int8), a preset, a JSON file of rules, JSON itself, or auto")
    command.add_argument(
        "--preserve-source-types", action="store_true", help="keep the formats of the file, FP8 included"
    )
    command.add_argument("--architecture", help="a class of transformers, or causal_lm, base, ...")
    command.add_argument("--no-strict", action="store_true", help="ignore unexpected, initialise missing tensors")


def precision(options: argparse.Namespace) -> dict[str, Any]:
    """What load_model takes to decide how parameters are stored."""
    return {
        "policy": read_policy(options.policy),
        "preserve_source_types": options.preserve_source_types,
        "architecture": options.architecture,
        "strict": not options.no_strict,
    }


def read_policy(text: str | None) -> Any:
    """What load_model takes as its policy, from an argument of the command line: JSON is parsed."""
    return parse_json(text, where="--policy") if text is not None and text.lstrip().startswith("{") else text


def add_settings(command: argparse.ArgumentParser) -> None:
    """Let a command take what `settings` reads."""
    command.add_argument("--max-new-tokens", type=int, help="at most this many new tokens")
    command.add_argument("--temperature", type=float, help="0 is greedy; default: the repository's")
    command.add_argument("--top-k", type=int, help="sample from the k most probable tokens only; 0: all")
    command.add_argument("--top-p", type=float, help="sample from the most probable tokens of this mass; 1: all")
    command.add_argument("--min-p", type=float, help="only tokens this many times as probable as the best; 0: all")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    command.add_argument("--no-stop", action="store_true", help="no stop strings, whatever the repository says")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of generation_config.json, such as repetition_penalty=1.1; may be repeated",
    )
    command.add_argument("--kv-cache", metavar="FORMAT", help="int8, int4, f8_e4m3fn, or JSON of a CacheFormat")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What generate takes to find tokens; what was not given is left out.

    Raises GenerationError for a --set without a name.
    """
    named = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
    found = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    if options.stop or options.no_stop:
        found["stop_strings"] = tuple(options.stop or ())
    if options.kv_cache is not None:
        found["cache_format"] = read_policy(options.kv_cache)
    for entry in options.set:
        name, equals, value = entry.partition("=")
        if not equals:
            problem = Problem(subject="--set", message="needs a name and a value", expected="NAME=VALUE", found=entry)
            raise GenerationError(problem)
        found[name.strip().replace("-", "_")] = _value(value)
    return found


def _value(text: str) -> Any:
    """JSON where it is some, else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text

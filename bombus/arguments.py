"""Arguments that commands share, and what functions of the package take for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from bombus.policies.files import parse_json


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """A new command among `commands`, which `run` executes."""
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def add_repository(command: argparse.ArgumentParser) -> None:
    """Let a command take a repository: `repo`, and what `repository` reads."""
    command.add_argument("repo", help="a folder, or an id on the Hugging Face hub")
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

"""`bombus policy`: templates of policies to edit, what a policy decides and why, other projects' files as ours."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import bombus
from bombus.arguments import add_command, add_repository, read_policy, repository
from bombus.policies.errors import PolicyError, Problem
from bombus.policies.files import parse_json


def add_policy_commands(parent: argparse.ArgumentParser) -> None:
    """Put the subcommands of `bombus policy` into its parser."""
    commands = parent.add_subparsers(required=True, metavar="COMMAND")

    template = add_command(commands, "template", _template, "every weight with its format, to edit; reads headers only")
    add_repository(template)
    template.add_argument("--default-format", metavar="F", help="the format of every weight, like int8")
    template.add_argument("-o", "--output", metavar="FILE", help="write to a file, not to standard output")

    explain = add_command(commands, "explain", _explain, "which rule of a policy decides for a parameter, and why")
    add_repository(explain)
    explain.add_argument("policy", help="a format, a preset, a JSON file, JSON itself, or auto")
    explain.add_argument("path", help="our path of a parameter, or the checkpoint's name of its tensor")
    explain.add_argument("--preserve-source-types", action="store_true", help="keep the formats of the file")

    read = add_command(commands, "import", _import, "another project's configuration as a policy")
    read.add_argument("file", help="a JSON file, or the text of TT-Transformers' --optimizations")
    read.add_argument("--from", dest="project", required=True, choices=("tt-xla", "tt-transformers"))
    read.add_argument("--parent", metavar="POLICY", help="what decides the components that are missing")
    read.add_argument("--ignore", default="", metavar="FIELDS", help="fields to leave out: kv_cache,fidelity_cfg,...")
    read.add_argument("-o", "--output", metavar="FILE", help="write to a file, not to standard output")


def _template(options: argparse.Namespace) -> None:
    _write(
        bombus.policy_template(options.repo, default_format=options.default_format, **repository(options)),
        options.output,
    )


def _explain(options: argparse.Namespace) -> None:
    report = bombus.load_plan(
        options.repo,
        policy=read_policy(options.policy),
        preserve_source_types=options.preserve_source_types,
        **repository(options),
    )
    print(report.explain(options.path))
    if options.policy == "auto":
        print(f"policy: {report.plan.policy}", file=sys.stderr)


def _import(options: argparse.Namespace) -> None:
    ignore = [field.strip() for field in options.ignore.split(",") if field.strip()]
    text = options.file
    if Path(text).suffix == ".json":
        text = _read(Path(text))
    if options.project == "tt-transformers":
        policy = bombus.from_tt_transformers(text, parent=read_policy(options.parent), ignore=ignore)
    elif options.parent or ignore:
        raise PolicyError(Problem(subject="--parent and --ignore", message="are for --from tt-transformers"))
    else:
        policy = bombus.from_tt_xla(parse_json(text, where=options.file) if text != options.file else text)
    _write(policy, options.output)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(Problem(subject="file", message=f"cannot be read: {error}"), where=str(path)) from error


def _write(policy: bombus.MixedPrecision, output: str | None) -> None:
    text = json.dumps(policy.to_json(), indent=2)
    if output is None:
        print(text)
        return
    try:
        # What is there may be somebody's work.
        with Path(output).open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError as error:
        remedy = "give another name, or remove it first"
        raise PolicyError(Problem(subject="file", message="exists already", remedy=remedy), where=output) from error
    except OSError as error:
        raise PolicyError(Problem(subject="file", message=f"cannot be written: {error}"), where=output) from error
    print(output)

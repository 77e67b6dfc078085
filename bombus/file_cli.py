"""`bombus convert` and `bombus cache`: checkpoints as other files, and the parameters that loads have kept."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import bombus
from bombus.arguments import add_command, add_precision, add_repository, precision, repository
from bombus.loader.cache import cache_folder, cached_entries, entry_to_json, remove_cached
from bombus.loader.report import readable_bytes


def add_file_commands(commands: Any) -> None:
    """Add the two commands to those of the command line."""
    convert = add_command(
        commands, "convert", _convert, "write a checkpoint as safetensors, in the formats of a policy"
    )
    add_repository(convert)
    add_precision(convert)
    convert.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the folder to write")
    convert.add_argument("--max-shard-bytes", type=int, default=5_000_000_000, help="size of a file (5 GB)")

    cache = commands.add_parser("cache", help="the parameters that loads have kept")
    inside = cache.add_subparsers(required=True, metavar="COMMAND")
    listed = add_command(inside, "ls", _list, "what is kept, from where, and how large it is")
    listed.add_argument("--json", action="store_true", help="print JSON")
    removed = add_command(inside, "rm", _remove, "remove what is kept")
    which = removed.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "keys", nargs="*", default=[], metavar="KEY", help="keys of `bombus cache ls`, or their beginnings"
    )
    which.add_argument("--all", action="store_true", help="remove everything")


def _convert(options: argparse.Namespace) -> None:
    report = bombus.convert_checkpoint(
        options.repo,
        options.output,
        max_shard_bytes=options.max_shard_bytes,
        **precision(options),
        **repository(options),
    )
    if report.plan.policy:
        print(f"policy: {report.plan.policy}", file=sys.stderr)
    before, after = readable_bytes(report.file_nbytes), readable_bytes(report.nbytes)
    print(f"{options.output}: {after}, from {before} in {report.where}")


def _list(options: argparse.Namespace) -> None:
    entries = cached_entries()
    if options.json:
        print(json.dumps([entry_to_json(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        print(f"{entry.key}  {readable_bytes(entry.nbytes):>10}  {entry.repository}  {entry.policy}".rstrip())
    print(f"{len(entries)} in {cache_folder()}, {readable_bytes(sum(entry.nbytes for entry in entries))}")


def _remove(options: argparse.Namespace) -> None:
    removed = remove_cached(None if options.all else options.keys)
    print(f"{len(removed)} removed, {readable_bytes(sum(entry.nbytes for entry in removed))}")

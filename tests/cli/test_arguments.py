"""Arguments that commands share, as what the loader takes."""

from __future__ import annotations

import argparse

from bombus.arguments import add_precision, add_repository, precision, repository


def test_options_become_what_the_loader_takes() -> None:
    """All of them, and what they are where nothing is said."""
    command = argparse.ArgumentParser()
    add_repository(command)
    add_precision(command)
    options = command.parse_args(["a/b", "--no-strict"])
    assert repository(options) == {"revision": None, "subfolder": None, "token": None, "local_files_only": False}
    assert precision(options) == {
        "policy": None,
        "preserve_source_types": False,
        "architecture": None,
        "strict": False,
    }
    said = ["--revision", "r", "--subfolder", "s", "--token", "t", "--offline", "--architecture", "base"]
    options = command.parse_args(["a/b", *said, "--policy", '{"norm": null}', "--preserve-source-types"])
    assert repository(options) == {"revision": "r", "subfolder": "s", "token": "t", "local_files_only": True}
    assert precision(options) == {
        "policy": {"norm": None},
        "preserve_source_types": True,
        "architecture": "base",
        "strict": True,
    }

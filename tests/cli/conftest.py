"""What tests of the command line share: tiny checkpoints, and a way to run a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import SIZES, Run

from bombus.cli import main


@pytest.fixture(scope="module")
def bf16(tiny: Callable[..., Path]) -> Path:
    return tiny("qwen3", "bf16", **SIZES)


@pytest.fixture(scope="module")
def fp8(tiny: Callable[..., Path]) -> Path:
    return tiny("qwen3", "f8_e4m3fn", **SIZES)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments)`: (exit status, standard output, standard error) of a command."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call

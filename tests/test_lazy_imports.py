"""What a start does not need is not imported: Python's imports are half of the time to the first token."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bombus


def imported(code: str, names: list[str]) -> list[str]:
    """Which of these modules a new process has imported after some code."""
    script = f"import sys\n{code}\nprint(*[name for name in {names!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return run.stdout.split()


def test_importing_imports_nothing() -> None:
    """JAX and all else come with the first name that is asked for."""
    names = ["jax", "flax", "numpy", "bombus.loader", "bombus.generation", "bombus.evaluation"]
    assert imported("import bombus; bombus.__version__; dir(bombus)", names) == []
    assert "jax" in imported("import bombus; bombus.load_model", names)


def test_a_folder_needs_no_hub_and_a_text_no_templates() -> None:
    """Neither is a measurement needed to load."""
    names = ["huggingface_hub", "jinja2", "bombus.loader.hub", "bombus.loader.chat_template", "bombus.evaluation"]
    code = "import bombus; bombus.load_tokenizer('bombus/tiny-shakespeare-fp8').encode('ROMEO:'); bombus.load_model"
    assert imported(code, names) == []
    chat = "; ".join(
        [
            "import bombus, dataclasses",
            "tokenizer = bombus.load_tokenizer('bombus/tiny-shakespeare-fp8')",
            "tokenizer = dataclasses.replace(tokenizer, chat_template='{{ messages }}')",
            "tokenizer.apply_chat_template([])",
        ]
    )
    assert imported(chat, names) == ["jinja2", "bombus.loader.chat_template"]


def test_every_name_is_what_a_type_checker_is_told() -> None:
    """The lines that only a type checker reads, and what the names are when they run."""
    assert bombus.__file__ is not None
    tree = ast.parse(Path(bombus.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bombus.")
        for alias in node.names
    }
    assert sorted(told) == list(bombus.__all__)
    for name, module in told.items():
        assert getattr(bombus, name) is getattr(import_module(module), name), name


def test_names_are_listed_and_others_are_not_there() -> None:
    assert set(bombus.__all__) < set(dir(bombus))
    assert {"loader", "policies", "__version__"} < set(dir(bombus))
    assert bombus.policies is import_module("bombus.policies")
    everything: dict[str, object] = {}
    exec("from bombus import *", everything)
    assert set(bombus.__all__) <= set(everything)
    with pytest.raises(AttributeError, match="module 'bombus' has no attribute 'load_modle'"):
        bombus.load_modle  # noqa: B018
    with pytest.raises(ImportError):
        exec("from bombus import jax")

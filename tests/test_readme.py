"""README.md says what is true: its matrix is the generated one, its commands are CI's, its code and commands run."""

from __future__ import annotations

import argparse
import io
import json
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zoo
from zoo_cases import CASES, REAL

from bombus import cli
from bombus.models.registry import HEADS, architectures
from bombus.policies.formats import FORMATS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB_ID = "Qwen/Qwen3-4B-Instruct-2507-FP8"
REMEDY = "run `python benchmarks/support_matrix.py --write`"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def matrix() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "support_matrix.py"))


def test_the_tables_are_the_generated_ones(matrix: dict[str, Any]) -> None:
    assert matrix["written"](README) == README, REMEDY


def test_the_matrix_says_what_was_checked(matrix: dict[str, Any], tmp_path: Path) -> None:
    """Of a head only that which a record names, and nothing where there is no file."""
    heads = sum(len(known.classes) for known in architectures())
    table = matrix["support_matrix"](tmp_path / "none")
    assert table.count("not checked") == heads + len(architectures())
    llama = {"case": "x", "architecture": "llama", "head": "base", "real": False}
    record = {**llama, "differences": {"bf16": 0.5, "f32": 1e-6}}
    (tmp_path / "checked.json").write_text(json.dumps({"versions": {"transformers": "1.2"}, "checked": [record]}))
    table = matrix["support_matrix"](tmp_path / "checked.json")
    (row,) = (line for line in table.splitlines() if line.startswith("| llama |"))
    assert row.count(" not checked |") == len(HEADS) - 1
    assert " f32, bf16 |" in row
    assert row.endswith(f" | all {len(FORMATS)} | transformers 1.2 |  |")


def test_every_case_of_the_zoo_was_checked() -> None:
    """In float32 and bf16 every head, in its formats every causal_lm, and the real checkpoints."""
    content = json.loads((zoo.GOLDENS / "checked.json").read_text(encoding="utf-8"))
    found = {(record["case"], record["head"]): set(record["differences"]) for record in content["checked"]}
    expected = {(name, head): {"f32", "bf16"} for name, case in CASES.items() for head in case.heads}
    for name, case in CASES.items():
        expected[name, "causal_lm"] |= {zoo.KINDS[format] for format in case.formats}
    expected |= {(name, head): {"f32"} for name, (_, head, _) in REAL.items()}
    assert found == expected, "run the parity tests of the zoo with BOMBUS_WRITE_CHECKED=1"


def test_the_matrix_needs_its_markers(matrix: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must hold"):
        matrix["with_table"]("no markers", "formats", "a table")


def test_ci_runs_the_commands_of_the_readme() -> None:
    setup, tests = (block.strip() for block in blocks("bash")[:2])
    assert setup == "pip install -e . && bombus demo"
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"test_command='{tests}'\n" in script
    assert 'inside "$work/first" "$test_command"\n' in script
    assert 'inside "$work/second" "export CC=false; ${test_command/not parity/not parity and not once}"\n' in script


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not the user's own."""
    monkeypatch.setenv("BOMBUS_CACHE", str(tmp_path / "cache"))


def test_the_python_code_runs(tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(blocks("python"))
    assert HUB_ID in code
    names: dict[str, Any] = {}
    exec(code.replace(HUB_ID, str(tiny())), names)
    output = capsys.readouterr().out
    assert "f8_e4m3fn[320, 192]" in output, "the report of the load"
    assert names["logits"].shape == (1, len("Why is the sky blue?"), 320)
    assert "from 'decoder.blocks.{0,27}.*', because it comes later than 'decoder.blocks.*.ffn.*'" in output
    assert "policy rule 'decoder.blocks.*.fnn.*': matches no parameter. The closest are" in output


def test_the_command_line_runs(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [shlex.split(line, comments=True) for line in blocks("bash")[2].splitlines()]
    overrides = tmp_path / "overrides.json"
    overrides.write_text('{"default": "bfp_bf8"}')
    places = {
        "REPO": str(tiny()),
        "FOLDER": str(tmp_path / "folder"),
        "FILE": str(overrides),
        "policy.json": str(tmp_path / "policy.json"),
        "PARAMETER": "decoder.blocks.0.ffn.gate.kernel",
    }
    monkeypatch.setattr("sys.stdin", io.StringIO("Good morrow!\n"))
    for program, *arguments in lines:
        assert program == "bombus"
        assert cli.main([places.get(argument, argument) for argument in arguments]) == 0, arguments
        assert capsys.readouterr().out.strip(), arguments
    actions = cli._parser()._actions
    (commands,) = (action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    assert {line[1] for line in lines} == set(commands), "the commands in README.md, the commands there are"


def test_links_lead_somewhere() -> None:
    for text in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / text).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{text} links to {target}"

"""The notebooks run from top to bottom, on a tiny checkpoint of theirs or of ours, and print what they promise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import nbclient
import nbformat
import pytest

import bombus

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOK = NOTEBOOKS / "load_qwen3_fp8.ipynb"
MIXED = NOTEBOOKS / "mixed_precision.ipynb"
GENERATION = NOTEBOOKS / "generation.ipynb"
SCRIPT = NOTEBOOKS / "jit_inference.py"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a Jupyter kernel that is this interpreter, whatever kernels are installed on the machine."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "test", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return "python3"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every run is under: strict promotion, as in the other tests, and no model that the user has set."""
    monkeypatch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "strict")
    monkeypatch.delenv("BOMBUS_MODEL", raising=False)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id


@pytest.mark.usefixtures("environment")
def test_the_notebook_runs(
    kernel: str, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMBUS_MODEL", str(tiny()))
    shown = execute(kernel, tmp_path)
    assert "<td>f8_e4m3fn[320, 192]</td>" in shown["load"]
    assert "Qwen3Spec(head='causal_lm'" in shown["params"]
    assert "'kernel': ('float8_e4m3fn', (320, 192)), 'scale_inv': ('float32', (3, 2))" in shown["params"]
    assert "<td><code>decoder.blocks.*.ffn.*</code></td>" in shown["policy"]
    assert "from 'decoder.blocks.0.*', because it comes later than 'decoder.blocks.*.ffn.*'" in shown["explain"]
    assert "output_norm.scale: Policy(params=bf16, compute=bf16, output=None) from the default" in shown["explain"]
    assert "<td>dequantize</td>" in shown["plan"]
    greedy, sampled = shown["generate"].split("\n", 1)
    loaded, tokenizer = bombus.load_model(tiny(), preserve_source_types=True), bombus.load_tokenizer(tiny())
    assert greedy == bombus.generate(loaded, tokenizer, "The bumblebee is ", max_new_tokens=32).split("\n")[0]
    assert sampled.strip() != greedy.strip()
    kept, wide = (array_bytes(bombus.load_model(tiny(), preserve_source_types=keep)) for keep in (True, False))
    assert kept < wide
    assert shown["memory"] == (
        f"types kept: {kept:,} bytes\ndequantized: {wide:,} bytes\nkept / dequantized: {kept / wide:.3f}\n"
    )
    largest, difference = map(float, re.findall(r": ([\d.e+-]+)", shown["logits"].replace(",", " ")))
    assert largest > 1
    assert difference < 0.02 * largest


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("own", [True, False], ids=["default", "BOMBUS_MODEL"])
def test_the_script_runs(own: bool, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not own:
        monkeypatch.setenv("BOMBUS_MODEL", str(tiny("llama", "bf16")))
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spec, folder = ("Qwen3Spec", tiny()) if own else ("LlamaSpec", tiny("llama", "bf16"))
    stored = array_bytes(bombus.load_model(folder, preserve_source_types=True))
    assert f"loaded {spec}, {stored:,} bytes of parameters on " in done.stdout
    arguments, temporary = map(
        number, re.findall(r"memory: ([\d,]+) bytes of arguments, ([\d,]+) temp", done.stdout)[0]
    )
    assert stored <= arguments < stored + 4096
    if own:
        widened = number(re.findall(r"would be ([\d,]+) bytes in bf16", done.stdout)[0])
        assert 0 < temporary < widened
    assert "both give the same logits: True" in done.stdout
    assert len(re.findall(r"^(?:jax.jit|ahead of time): [\d.]+ ms for 1 x 32 tokens", done.stdout, re.MULTILINE)) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("environment")
def test_the_notebook_makes_its_own_checkpoint(kernel: str, tmp_path: Path) -> None:
    # The first cells are enough to show that they stand alone.
    assert "<td>f8_e4m3fn[320, 192]</td>" in execute(kernel, tmp_path, until="load")["load"]


@pytest.mark.usefixtures("environment")
def test_the_notebook_of_mixed_precision_runs(
    kernel: str, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMBUS_MODEL", str(tiny("qwen3", "bf16")))
    shown = execute(kernel, tmp_path, path=MIXED)
    assert "<td>int4[320, 192]</td>" in shown["plan"]
    assert "from 'embedding', because no other rule matches. Stored as int4, computed in bf16" in shown["explain"]
    assert "'embedding': ('uint8', (320, 96)),\n  'scale_inv': ('bfloat16', (320, 2))" in shown["load"]
    found = re.findall(r"^(.+?) +([\d,]+) bytes .* ([\d.e+-]+) nats$", shown["compare"], re.MULTILINE)
    sizes = {name: number(size) for name, size, _ in found}
    nats = {name: float(value) for name, _, value in found}
    assert sizes["as in the file"] > sizes["exercise"] > sizes["int8"] > sizes["int4(group=32)"]
    assert 0 <= nats["as in the file"] < nats["int8"] < nats["exercise"] < nats["int4(group=32)"]
    assert "mxfp4" in shown["again"].splitlines()[0]
    assert "mxfp4" not in shown["again"].splitlines()[1]
    assert "'rules': {'attention': 'f16', 'feed_forward': 'int8', 'embedding': 'int4'}" in shown["file"]


def execute(kernel: str, folder: Path, *, path: Path = NOTEBOOK, until: str | None = None) -> dict[str, str]:
    """Run a notebook in `folder`, up to a cell; what each code cell shows, by its id: HTML where there is some."""
    notebook = nbformat.read(path, as_version=4)
    if until is not None:
        last = [cell.id for cell in notebook.cells].index(until)
        notebook.cells = notebook.cells[: last + 1]
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=resources).execute()
    return {
        cell.id: "".join(
            output.text if output.output_type == "stream" else output.data.get("text/html", output.data["text/plain"])
            for output in cell.outputs
            if output.get("name") != "stderr"
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def array_bytes(loaded: bombus.LoadedModel) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(loaded.params))


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.usefixtures("environment")
def test_the_notebook_of_generation_runs(kernel: str, tmp_path: Path) -> None:
    shown = execute(kernel, tmp_path, path=GENERATION)
    assert re.fullmatch(r"\{\(1, 16\): [\d.]+, \(4, 16\): [\d.]+\}", shown["warmup"])
    assert len(set(shown["samples"].splitlines())) == 4
    assert shown["batch"].endswith("the second one alone is the same: True\n")
    assert re.search(r"\|\n(stop|length) at .* after \d+ tokens\n", shown["stream"])
    assert shown["logprobs"].count("   ") >= 8
    assert shown["chat"].startswith("First Citizen:\nWhat news, my lord?\n\nKING RICHARD II:\n")
    assert len(shown["processor"]) > 50
    assert "e" not in shown["processor"].lower()
    plain, quick = map(int, re.findall(r"in (\d+) passes", shown["lookup"]))
    assert quick < plain == 64
    assert "int8 per token with zero points  int4 per token with zero points" in shown["report"]
    rows = re.findall(r"^(\S.*?)  +([\d,]+) +([\d.e+-]+) +[\d.]+%$", shown["compare"], re.MULTILINE)
    sizes = {name: number(size) for name, size, _ in rows}
    nats = {name: float(value) for name, _, value in rows}
    assert sizes["full"] > sizes["int8"] > sizes["keys int8, values int4"] > sizes["int4"]
    assert 0 == nats["full"] < nats["int8"] < nats["keys int8, values int4"] < nats["int4"] < 0.1
    assert shown["figure"].startswith("<Figure")
    assert shown["output"].count("tokens are the same") == 4

"""The zoo live: checkpoints that transformers initialises and saves, against transformers, for every case and head.

float32 to 1e-4, block FP8 on the float64 products to 1e-4, bf16 with an error no larger than transformers' own; what
save_model writes, transformers loads. With BOMBUS_WRITE_CHECKED=1 the largest differences are written to
tests/goldens/zoo/checked.json, from which benchmarks/support_matrix.py makes the table of README.md; run that without
`-n`, with the real checkpoints in place.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file, save_file
from zoo_cases import CASES, REAL, Case

import bombus
from bombus.models.model import flat, nested
from bombus.models.registry import architectures

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

_SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "goldens" / "make_zoo_goldens.py"))
run_theirs, run_row = _SCRIPT["run"], _SCRIPT["run_row"]
ATOL = 1e-4
LARGER = 1.5
SEEDS = 2
# A hundred programs that run once or twice. The rest of this stage has XLA's optimizations.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
IN_FLOAT32 = {"default": {"compute": "f32"}}
torch.set_num_threads(1)  # of tiny products; more of them only wait for each other
REGISTERED = {known.name for known in architectures()}
NAMES = [name for name, case in CASES.items() if case.model_type in REGISTERED]


@pytest.fixture(scope="session")
def checked() -> Iterator[dict[str, dict[str, Any]]]:
    """What was checked, "case head" -> format -> largest difference; see the docstring of this file."""
    records: dict[str, dict[str, Any]] = {}
    yield records
    if os.environ.get("BOMBUS_WRITE_CHECKED"):
        content = {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "checked": [records[key] for key in sorted(records)],
        }
        text = json.dumps(content, indent=1) + "\n"
        (zoo.GOLDENS / "checked.json").write_text(text, encoding="utf-8")


@pytest.fixture
def record(checked: dict[str, dict[str, Any]]) -> Callable[..., None]:
    """`record(a case or real checkpoint, head, what, the largest difference or, of bf16, the ratio of errors)`."""

    def add(name: str, head: str, what: str, difference: float) -> None:
        real = name in REAL
        model_type = REAL[name][0] if real else CASES[name].model_type
        entry = {"case": name, "architecture": model_type, "head": head, "real": real, "differences": {}}
        found = checked.setdefault(f"{name} {head}", entry)["differences"]
        found[what] = float(f"{difference:.2g}")

    return add


@dataclass(frozen=True, kw_only=True)
class Live:
    """A case: the folders that transformers wrote by (seed, head), and our models; one program for all heads."""

    name: str
    case: Case
    folders: dict[str, Path]
    models: dict[str, bombus.LoadedModel]
    programs: dict[str, Callable[..., dict[str, jax.Array]]]


def write(name: str, folder: Path, seed: int) -> dict[str, Path]:
    """The folders of all heads of a case, on one backbone, in float32."""
    case, backbone, folders = CASES[name], None, {}
    for head in case.heads:
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(case.model_type, **case.config, **case.labels(head))
        config.initializer_range = 0.08
        model = getattr(transformers, case.class_name(head))._from_config(config, dtype=torch.float32)
        if backbone is None:
            for parameter in (*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("bias"))):
                if parameter.numel() > 1 and parameter.min() == parameter.max():  # zeros and ones hide what reads them
                    parameter.data += 0.1 * torch.randn_like(parameter)
            backbone = model.base_model.state_dict()
        model.base_model.load_state_dict(backbone)
        model.save_pretrained(folder / head)
        folders[head] = folder / head
    return folders


def compile_heads(models: dict[str, bombus.LoadedModel]) -> Callable[..., dict[str, jax.Array]]:
    """A function of (parameters of the backbone, of each head, tokens, mask): the values of each head.

    XLA merges the backbones of the heads, because their parameters are the same arrays.
    """

    @partial(jax.jit, compiler_options=QUICKLY)
    def apply(backbone: dict[str, Any], beside: dict[str, dict[str, Any]], tokens: Any, mask: Any) -> Any:
        outputs = {
            head: models[head].model.apply(nested({**backbone, **own}), tokens, mask=mask)
            for head, own in beside.items()
        }
        return {head: o.hidden_state if o.logits is None else o.logits for head, o in outputs.items()}

    return apply


def run_ours(
    program: Callable[..., dict[str, jax.Array]], models: dict[str, bombus.LoadedModel], batch: Any
) -> dict[str, list[np.ndarray]]:
    """head -> both rows of a padded batch, without padding."""
    parameters = {head: flat(model.params) for head, model in models.items()}
    shared = set.intersection(*(set(values) for values in parameters.values()))
    first = next(iter(parameters.values()))
    backbone = {path: first[path] for path in shared}
    for values in parameters.values():
        assert all(np.array_equal(np.asarray(values[path]), np.asarray(backbone[path])) for path in shared)
    beside = {head: {p: v for p, v in values.items() if p not in shared} for head, values in parameters.items()}
    found = program(backbone, beside, *batch)
    return {head: unpadded(np.asarray(values).astype(np.float32), batch[1]) for head, values in found.items()}


def unpadded(values: np.ndarray, mask_BT: np.ndarray) -> list[np.ndarray]:
    return list(values) if values.ndim == 2 else [row[mask] for row, mask in zip(values, mask_BT, strict=True)]


def largest(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    assert [row.shape for row in found] == [row.shape for row in expected]
    return max(float(np.abs(row - other).max()) for row, other in zip(found, expected, strict=True))


@pytest.fixture(scope="module", params=NAMES)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    name: str = request.param
    folders = write(name, tmp_path_factory.mktemp(name), seed=0)
    models = {head: bombus.load_model(folder) for head, folder in folders.items()}
    yield Live(name=name, case=CASES[name], folders=folders, models=models, programs={"f32": compile_heads(models)})
    jax.clear_caches()


def test_every_head_equals_transformers_and_is_saved_for_it(
    live: Live, record: Callable[..., None], tmp_path: Path
) -> None:
    """Loaded without any hint. From what save_model writes transformers computes the same bits."""
    ours = run_ours(live.programs["f32"], live.models, zoo.batch("left"))
    for head, folder in live.folders.items():
        theirs = run_theirs(folder)
        assert max(np.abs(row).max() for row in theirs) > 0.1, "values that can differ"
        difference = largest(ours[head], theirs)
        assert difference < ATOL, (head, difference)
        record(live.name, head, "f32", difference)
        bombus.save_model(live.models[head], tmp_path / head)
        assert largest(run_theirs(tmp_path / head), theirs) == 0, head


def test_quantized_weights_equal_dequantized_ones(live: Live, record: Callable[..., None], tmp_path: Path) -> None:
    """Against transformers' float32 model of the float64 products."""
    if not live.case.formats:
        pytest.skip("the files of this variant are like others")
    (quantized,) = live.case.formats
    source = live.folders["causal_lm"]
    wide = load_file(source / "model.safetensors")
    held = zoo.quantized_tensors(wide, quantized)
    config = json.loads((source / "config.json").read_text())
    for folder, tensors in (("quantized", held), ("dense", zoo.dequantized(held))):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    sizes = {name: list(array.shape) for name, array in wide.items()}
    config["quantization_config"] = zoo.quantization_config(sizes, quantized)
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config))
    theirs = run_theirs(tmp_path / "dense")
    kept = bombus.load_model(tmp_path / "quantized", policy=IN_FLOAT32, preserve_source_types=True)
    models = {"causal_lm": kept}
    difference = largest(run_ours(compile_heads(models), models, zoo.batch("right"))["causal_lm"], theirs)
    # Dequantized while loading: the program of float32, with other values.
    dense = flat(bombus.load_model(tmp_path / "quantized", policy="f32").params)
    float32 = {head: flat(model.params) for head, model in live.models.items()}
    shared = set.intersection(*(set(values) for values in float32.values()))
    beside = {head: {path: values[path] for path in set(values) - shared} for head, values in float32.items()}
    beside["causal_lm"] = {path: dense[path] for path in beside["causal_lm"]}
    backbone = {path: dense[path] for path in shared}
    tokens_BT, mask_BT = zoo.batch("left")
    found = live.programs["f32"](backbone, beside, tokens_BT, mask_BT)["causal_lm"]
    difference = max(difference, largest(unpadded(np.asarray(found), mask_BT), theirs))
    assert difference < ATOL, difference
    record(live.name, "causal_lm", zoo.KINDS[quantized], difference)


def test_bf16_error_is_no_larger_than_theirs(live: Live, record: Callable[..., None], tmp_path: Path) -> None:
    """Against float32 on the same bf16 weights, over several checkpoints: the median error.

    Not the mean: where two experts are nearly equal, rounding on either side may choose the other.
    """
    errors: dict[str, dict[str, list[np.ndarray]]] = {head: {"ours": [], "theirs": []} for head in live.case.heads}
    program = None
    for seed in range(1, SEEDS + 1):
        folders = write(live.name, tmp_path / str(seed), seed)
        models = {}
        for head, folder in folders.items():
            to_bf16(folder)
            models[head] = bombus.load_model(folder)
        program = program or compile_heads(models)
        ours = run_ours(program, models, zoo.batch("left"))
        for head, folder in folders.items():
            exact = run_theirs(folder)
            theirs = run_theirs(folder, "bfloat16")
            for index, row in enumerate(exact):
                errors[head]["ours"].append(np.abs(ours[head][index] - row).ravel())
                errors[head]["theirs"].append(np.abs(theirs[index] - row).ravel())
    for head, sides in errors.items():
        medians = {side: float(np.median(np.concatenate(values))) for side, values in sides.items()}
        assert medians["theirs"] > 0
        ratio = medians["ours"] / medians["theirs"]
        # Three labels of a row, whose errors are a matter of luck: 0.7 to 3.7 for two checkpoints, 1.0 for sixteen.
        few = head == "sequence_classification"
        assert ratio <= (4 * LARGER if few else LARGER), (head, medians)
        record(live.name, head, "bf16", ratio)


def to_bf16(folder: Path) -> None:
    """The tensors of a folder in bf16, as save_pretrained writes them of a bf16 model."""
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    path = folder / "model.safetensors"
    save({name: tensor.bfloat16() for name, tensor in load(path).items()}, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))


@pytest.mark.parametrize("name", [name for name, (model_type, *_) in REAL.items() if model_type in REGISTERED])
def test_real_checkpoints_equal_transformers(data: Path, name: str, record: Callable[..., None]) -> None:
    """Trained weights, or those of another project's tests, to 1e-4."""
    _, head, class_name = REAL[name]
    loaded = bombus.load_model(data / name, architecture=head)
    model = getattr(transformers, class_name).from_pretrained(data / name, dtype=torch.float32).eval()
    rows = [row % loaded.spec.vocab_size for row in zoo.rows()]
    output = [loaded.model.apply(loaded.params, row[None]) for row in rows]
    ours = [np.asarray(o.hidden_state if o.logits is None else o.logits)[0] for o in output]
    difference = largest(ours, [run_row(model, row) for row in rows])
    assert difference < ATOL, difference
    record(name, head, "f32", difference)

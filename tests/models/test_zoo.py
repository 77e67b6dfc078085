"""The zoo: every architecture, variant and head against what transformers computed, by one runner over data.

Cases are in tests/support/zoo_cases.py, outputs of transformers in tests/goldens/zoo (make_zoo_goldens.py). A batch has
three rows: 24 tokens, and the same 17 tokens padded on the left and on the right; the goldens know no padding.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file
from zoo_cases import CASES, CLASSES, Case

import bombus
from bombus import LoadedModel, Output
from bombus.models.model import flat, nested
from bombus.models.registry import architectures

# Of the largest output, which is 2 to 31, and at least of 10; see also CACHE_RTOL of test_goldens.py.
ATOL = 1e-5
CACHE_RTOL = 1e-5
IN_FLOAT32 = {"default": {"compute": "f32"}}
REGISTERED = {known.name: known for known in architectures()}
NAMES = [name for name, case in CASES.items() if case.model_type in REGISTERED]


def test_every_architecture_is_in_the_zoo_and_the_zoo_is_whole() -> None:
    """What is registered is tested, and what is to be tested is registered, with all its heads."""
    assert {name: dict(known.classes) for name, known in REGISTERED.items()} == {
        name: {class_name: head for head, class_name in heads.items()} for name, heads in CLASSES.items()
    }
    tested = {(case.model_type, head) for case in CASES.values() for head in case.heads}
    assert tested == {(name, head) for name, heads in CLASSES.items() for head in heads}
    assert {path.stem for path in zoo.GOLDENS.glob("*.npz")} == set(CASES)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A case, its folders and models by head, and one compiled program for all heads and one for a step."""

    name: str
    case: Case
    folders: dict[str, Path]
    models: dict[str, LoadedModel]
    prefill: Callable[..., dict[str, jax.Array]]

    @property
    def causal_lm(self) -> LoadedModel:
        return self.models["causal_lm"]


def value_of(output: Output) -> jax.Array:
    return output.hidden_state if output.logits is None else output.logits


def split(models: dict[str, LoadedModel]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(parameters of the backbone, what each head has beside them), by path; the backbone's are equal bit for bit.

    XLA then sees one backbone under all heads, and compiles it once.
    """
    parameters = {head: flat(loaded.params) for head, loaded in models.items()}
    shared = set.intersection(*(set(values) for values in parameters.values()))
    backbone = {path: value for path, value in parameters["causal_lm"].items() if path in shared}
    for values in parameters.values():
        for path, value in backbone.items():
            assert np.asarray(value).tobytes() == np.asarray(values[path]).tobytes(), path
    beside = {head: {p: v for p, v in values.items() if p not in shared} for head, values in parameters.items()}
    return backbone, beside


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    name: str = request.param
    case = CASES[name]
    base = tmp_path_factory.mktemp(name)
    folders = {head: zoo.write_checkpoint(name, head, base / head) for head in case.heads}
    models = {head: bombus.load_model(folder) for head, folder in folders.items()}

    @jax.jit
    def prefill(
        backbone: dict[str, Any], beside: dict[str, dict[str, Any]], tokens: Any, mask: Any
    ) -> dict[str, jax.Array]:
        return {
            head: value_of(models[head].model.apply(nested({**backbone, **own}), tokens, mask=mask))
            for head, own in beside.items()
        }

    yield Loaded(name=name, case=case, folders=folders, models=models, prefill=prefill)
    jax.clear_caches()


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Tokens (3, T) and mask (3, T)."""
    left, right = zoo.batch("left"), zoo.batch("right")
    return np.concatenate([left[0], right[0][1:]]), np.concatenate([left[1], right[1][1:]])


def assert_equals_golden(name: str, key: str, found: np.ndarray) -> None:
    """All three rows of a batch, at real tokens: two goldens."""
    mask_BT = batch()[1]
    for index, row in enumerate((0, 1, 1)):
        expected = zoo.golden(name)["outputs"][f"{key}.{row}"]
        values = found[index] if found.ndim == 2 else found[index][mask_BT[index]]
        atol = ATOL * max(10.0, np.abs(expected).max())
        np.testing.assert_allclose(zoo.sampled(values), expected, atol=atol, rtol=0, err_msg=f"{key}, row {index}")


def test_every_head_equals_transformers(loaded: Loaded) -> None:
    """Loaded without any hint, in a padded batch: padding changes no row, on either side."""
    for head, model in loaded.models.items():
        assert model.spec.head == head
        assert model.model.architecture.name == loaded.case.model_type
    found = loaded.prefill(*split(loaded.models), *batch())
    for head, values in found.items():
        assert values.dtype == np.float32
        assert_equals_golden(loaded.name, head, np.asarray(values))


def test_decoding_equals_transformers_and_prefill(loaded: Loaded) -> None:
    """Token by token through a cache that has room to spare."""
    if not loaded.case.decodes:
        pytest.skip("the cache of this variant is like others")
    model, (tokens_BT, mask_BT) = loaded.causal_lm.model, batch()
    rows = slice(1 if loaded.case.decodes_within else 0, None)
    tokens_BT, mask_BT = tokens_BT[rows], mask_BT[rows]
    step = jax.jit(lambda params, tokens, mask, cache: model.apply(params, tokens, mask=mask, cache=cache))
    cache, decoded = model.init_cache(tokens_BT.shape[0], tokens_BT.shape[1] + 5), []
    for t in range(tokens_BT.shape[1]):
        output = step(loaded.causal_lm.params, tokens_BT[:, t : t + 1], mask_BT[:, t : t + 1], cache)
        cache = output.cache
        decoded.append(np.asarray(output.logits))
    found = np.concatenate(decoded, axis=1)
    expected = np.asarray(loaded.prefill(*split(loaded.models), *batch())["causal_lm"])[rows]
    bound = CACHE_RTOL * np.abs(expected[mask_BT]).max()
    np.testing.assert_allclose(found[mask_BT], expected[mask_BT], atol=bound, rtol=0)


def test_every_head_is_saved_as_the_file_that_it_came_from(loaded: Loaded, tmp_path: Path) -> None:
    """Names, shapes and bits are transformers' own; what is loaded again is the same model."""
    for head, model in loaded.models.items():
        bombus.save_model(model, tmp_path / head)
        before, after = (load_file(folder / "model.safetensors") for folder in (loaded.folders[head], tmp_path / head))
        if head == "base":  # transformers takes it as part of a model with a head too, which is how it is written
            after = {name.removeprefix(model.model.architecture.mapping.prefix): after[name] for name in after}
        assert set(before) == set(after)
        for name, values in before.items():
            assert values.shape == after[name].shape, name
            assert values.tobytes() == after[name].tobytes(), name
        again = bombus.load_model(tmp_path / head)
        assert again.spec == model.spec
        assert_same_parameters(again, model)


def assert_same_parameters(found: LoadedModel, expected: LoadedModel) -> None:
    values = flat(found.params)
    assert set(values) == set(flat(expected.params))
    for path, value in flat(expected.params).items():
        assert values[path].dtype == value.dtype, path
        assert np.asarray(values[path]).tobytes() == np.asarray(value).tobytes(), path


def test_quantized_weights_equal_dequantized_ones(loaded: Loaded, tmp_path: Path) -> None:
    """Kept in their bits and dequantized while loading, against transformers on the float64 products."""
    if not loaded.case.formats:
        pytest.skip("the files of this variant are like others")
    (quantized,) = loaded.case.formats
    folder = zoo.write_checkpoint(loaded.name, "causal_lm", tmp_path / "quantized", quantized)
    dense = bombus.load_model(folder, policy="f32")
    assert dense.spec == loaded.causal_lm.spec
    models = {**loaded.models, "causal_lm": dense}
    parameters = {head: flat(model.params) for head, model in models.items()}
    shared, beside = split(loaded.models)
    # The program of float32, with other values.
    backbone = {path: parameters["causal_lm"][path] for path in shared}
    own = {"causal_lm": {path: parameters["causal_lm"][path] for path in beside["causal_lm"]}}
    found = loaded.prefill(backbone, {**beside, **own}, *batch())["causal_lm"]
    assert_equals_golden(loaded.name, f"causal_lm.{quantized}", np.asarray(found))

    kept = bombus.load_model(folder, preserve_source_types=True, policy=IN_FLOAT32)
    assert_bits(zoo.tensors(zoo.golden(loaded.name)["names"]["causal_lm"], quantized), kept, loaded.case)
    apply = jax.jit(lambda params, tokens, mask: kept.model.apply(params, tokens, mask=mask).logits)
    assert_equals_golden(loaded.name, f"causal_lm.{quantized}", np.asarray(apply(kept.params, *batch())))

    bombus.save_model(kept, tmp_path / "saved")
    assert_same_parameters(bombus.load_model(tmp_path / "saved", preserve_source_types=True, policy=IN_FLOAT32), kept)
    if not loaded.case.rearranged:
        assert zoo.header(tmp_path / "saved") == zoo.header(folder)


def assert_bits(tensors: dict[str, np.ndarray], kept: LoadedModel, case: Case) -> None:
    """Codes and scales of the file are those of a parameter, or of one expert of a stack."""
    held = set()
    for value in map(np.asarray, flat(kept.params).values()):
        held.add(value.tobytes())
        held.update(part.tobytes() for part in value if value.ndim == 3)
    codes = {name: f"{name}_scale_inv" for name in tensors if f"{name}_scale_inv" in tensors}
    codes = {name: scales for name, scales in codes.items() if not name.endswith(case.rearranged or "-")}
    codes |= {name: f"{name.removesuffix('_blocks')}_scales" for name in tensors if name.endswith("_blocks")}
    assert codes or len(case.rearranged) > 2
    for name in (*codes, *codes.values()):
        values = tensors[name]
        # gpt-oss: gate and intermediate in turn, output by output.
        parts = (values[:, 0::2], values[:, 1::2]) if "gate_up_proj_" in name else (values,)
        assert all(part.tobytes() in held for part in parts), name


REFUSALS = {case.model_type: name for name, case in reversed(CASES.items()) if name in NAMES}


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, dict[str, Any], Path]:
    name = REFUSALS[request.param]
    return CASES[name], dict(zoo.golden(name)["config"]["causal_lm"]), tmp_path / "config.json"


def refusal(config: dict[str, Any], path: Path) -> str:
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(bombus.SpecError) as raised:
        bombus.load_spec(path.parent)
    return str(raised.value)


@pytest.mark.parametrize("config", REFUSALS, indirect=True)
def test_an_unknown_key_of_a_config_is_refused(config: tuple[Case, dict[str, Any], Path]) -> None:
    case, content, path = config
    text = refusal({**content, "made_up_width": 7}, path)
    assert "field 'made_up_width': is 7, and nothing here reads it" in text
    assert text.count("field '") == 1, "everything else in the config is read"
    assert case.model_type in REGISTERED


@pytest.mark.parametrize("config", REFUSALS, indirect=True)
def test_a_missing_key_of_a_config_is_refused(config: tuple[Case, dict[str, Any], Path]) -> None:
    case, content, path = config
    del content[case.required]
    text = refusal(content, path)
    assert f"field '{case.required}': is missing" in text
    assert text.count("field '") == 1


@pytest.mark.parametrize("name", NAMES)
def test_both_spellings_of_a_config_give_one_spec(name: str, tmp_path: Path) -> None:
    """As transformers 4 wrote it: rope_theta and rope_scaling, torch_dtype."""
    content = zoo.golden(name)["config"]["causal_lm"]
    specs = []
    for config in (content, zoo.older(content)):
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        specs.append(bombus.load_spec(tmp_path))
    assert zoo.older(content) != content
    assert specs[0] == specs[1]
    assert replace(specs[0], head="base") != specs[0]

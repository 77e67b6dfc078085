"""What transformers computed, without transformers: tests/goldens/*.npz, made by make_goldens.py there.

Shapes: B batch, T tokens, V what the head returns at a position.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bombus
from bombus import LoadedModel, Output

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
_SCRIPT = runpy.run_path(str(GOLDENS / "make_goldens.py"))
CASES, TRAINED, STRIDE = _SCRIPT["CASES"], _SCRIPT["TRAINED"], _SCRIPT["STRIDE"]
REMEDY = "if that was meant, run tests/goldens/make_goldens.py; if not, what is written to the files is wrong"

# Outputs reach 6 (the trained model's 22); the largest difference seen is 6.1e-6 (1.9e-5).
GOLDEN_ATOL = 1e-4
# Of the largest output; the largest difference seen is 1.6e-6 of it.
CACHE_RTOL = 1e-5


def load_golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        return dict(file)


def value_of(output: Output) -> jax.Array:
    return output.hidden_state if output.logits is None else output.logits


def one_prefill(loaded: LoadedModel, tokens_BT: np.ndarray, mask_BT: np.ndarray) -> jax.Array:
    apply = jax.jit(lambda params, tokens, mask: value_of(loaded.model.apply(params, tokens, mask=mask)))
    return apply(loaded.params, tokens_BT, mask_BT)


def token_by_token(loaded: LoadedModel, tokens_BT: np.ndarray, mask_BT: np.ndarray) -> jax.Array:
    """The same values (B, T, V) as of one prefill, from a cache that grows by one token, with room to spare."""
    step = jax.jit(lambda params, tokens, mask, cache: loaded.model.apply(params, tokens, mask=mask, cache=cache))
    batch, tokens = tokens_BT.shape
    cache = loaded.model.init_cache(batch, tokens + 5)
    values = []
    for t in range(tokens):
        output = step(loaded.params, tokens_BT[:, t : t + 1], mask_BT[:, t : t + 1], cache)
        cache = output.cache
        values.append(value_of(output))
    return jnp.concatenate(values, axis=1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A golden, the tiny checkpoint that it was made from, and what our model makes of it in one prefill."""

    golden: dict[str, np.ndarray]
    folder: Path
    loaded: LoadedModel
    values: np.ndarray


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=CACHE_RTOL * np.abs(expected).max(), rtol=0)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Case:
    architecture, options, _ = CASES[request.param]
    golden, folder = load_golden(request.param), tiny(architecture, "f32", **options)
    loaded = bombus.load_model(folder)
    values = np.asarray(one_prefill(loaded, golden["tokens"], golden["mask"]))
    return Case(golden=golden, folder=folder, loaded=loaded, values=values)


def test_the_checkpoint_is_the_one_the_golden_was_made_from(case: Case) -> None:
    """A wrong name in a mapping or spec would cancel out, written and read alike: here it is seen."""
    config = json.loads((case.folder / "config.json").read_text())
    assert config == json.loads(str(case.golden["config"])), REMEDY
    found, expected = _SCRIPT["fingerprint"](case.folder), json.loads(str(case.golden["fingerprint"]))
    assert list(found) == list(expected), REMEDY
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0.02, err_msg=f"{name}: {REMEDY}")


def test_equals_transformers(case: Case) -> None:
    found, expected, mask_BT = case.values, case.golden["output"], case.golden["mask"]
    assert found.dtype == np.float32
    if found.ndim == 3:  # a value at every position; those at padding mean nothing
        found, expected = found[..., ::STRIDE][mask_BT], expected[mask_BT]
    np.testing.assert_allclose(found, expected, atol=GOLDEN_ATOL, rtol=0, err_msg=str(case.golden["versions"]))


def test_decoding_equals_one_prefill(case: Case) -> None:
    mask_BT = case.golden["mask"]
    if case.values.ndim == 2:
        pytest.skip("a classification has one result and is not decoded")
    found = np.asarray(token_by_token(case.loaded, case.golden["tokens"], mask_BT))
    assert_close(found[mask_BT], case.values[mask_BT])


def test_prefill_in_chunks_equals_one_prefill(tiny: Callable[..., Path]) -> None:
    golden = load_golden("qwen3_left_padding")
    architecture, options, _ = CASES["qwen3_left_padding"]
    loaded, mask_BT = bombus.load_model(tiny(architecture, "f32", **options)), golden["mask"]
    cache, values = loaded.model.init_cache(*mask_BT.shape), []
    chunks = (np.split(golden[key], [9, 10], axis=1) for key in ("tokens", "mask"))
    for tokens, mask in zip(*chunks, strict=True):
        output = jax.jit(loaded.model.apply)(loaded.params, tokens, mask=mask, cache=cache)
        cache = output.cache
        values.append(np.asarray(output.logits))
    expected = np.asarray(one_prefill(loaded, golden["tokens"], mask_BT))
    assert_close(np.concatenate(values, axis=1)[mask_BT], expected[mask_BT])


@pytest.fixture
def trained(data: Path) -> tuple[dict[str, np.ndarray], LoadedModel]:
    """A golden of transformers' greedy text, and the trained model that wrote it."""
    folder = data / TRAINED
    golden = load_golden(TRAINED)
    assert _SCRIPT["fingerprint"](folder) == json.loads(str(golden["fingerprint"])), f"{folder} holds other weights"
    return golden, bombus.load_model(folder)


def test_trained_model_equals_transformers(trained: tuple[dict[str, np.ndarray], LoadedModel]) -> None:
    golden, loaded = trained
    logits = np.asarray(one_prefill(loaded, golden["tokens"], golden["mask"]))
    np.testing.assert_allclose(logits[..., ::STRIDE], golden["output"], atol=GOLDEN_ATOL, rtol=0)
    decoded = np.asarray(token_by_token(loaded, golden["tokens"], golden["mask"]))
    assert_close(decoded, logits)


def test_trained_model_writes_what_transformers_wrote(trained: tuple[dict[str, np.ndarray], LoadedModel]) -> None:
    golden, loaded = trained
    (tokens,) = golden["tokens"].tolist()
    new = _SCRIPT["NEW_TOKENS"]
    (generated,) = bombus.generate_tokens(loaded, [tokens[:-new]], max_new_tokens=new, temperature=0)
    assert generated.tokens == tokens[-new:]


def test_a_pickle_gives_the_values_of_bumblebees_own_test(data: Path) -> None:
    """Saved by transformers with torch, read by our interpreter; the first stage of CI has no torch installed."""
    folder = data / "tiny-llama-bin"
    golden = json.loads((folder / "golden.json").read_text())
    loaded = bombus.load_model(folder)
    hidden = loaded.model.apply(loaded.params, jnp.array(golden["input_ids"])).hidden_state
    assert list(hidden.shape) == golden["hidden_state_shape"]
    expected = np.array(golden["hidden_state[:,1:4,1:4]"])
    np.testing.assert_allclose(hidden[:, 1:4, 1:4], expected, rtol=0, atol=golden["atol"])

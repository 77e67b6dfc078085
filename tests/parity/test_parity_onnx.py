"""A trained GPT-2 against onnxruntime on the model.onnx that was exported from it.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bombus
from bombus import LoadedModel

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.parity

_SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "goldens" / "make_onnx_goldens.py"))
ATOL = 1e-4  # logits reach 10; the largest difference seen is 1.1e-5
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def both(data: Path) -> tuple[LoadedModel, Any]:
    """Our model and onnxruntime's session, of one folder."""
    folder = data / _SCRIPT["NAME"]
    return bombus.load_model(folder), _SCRIPT["open_onnx"](folder)


@pytest.mark.parametrize("side", _SCRIPT["LENGTHS"])
def test_logits_equal_those_of_the_export(side: str, both: tuple[LoadedModel, Any]) -> None:
    loaded, session = both
    tokens_BT, mask_BT = _SCRIPT["make_batch"](side)
    expected, _ = _SCRIPT["run_onnx"](session, tokens_BT, mask_BT)
    found = np.asarray(jax.jit(loaded.model.apply)(loaded.params, tokens_BT, mask=mask_BT).logits)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[mask_BT], expected[mask_BT], atol=ATOL, rtol=0)


def test_decoding_equals_the_exports(both: tuple[LoadedModel, Any]) -> None:
    """A left-padded prompt, then token by token through both caches, each choosing its own next token."""
    loaded, session = both
    tokens_BT, mask_BT = (part[:, -140:] for part in _SCRIPT["make_batch"]("left"))
    theirs, past = _SCRIPT["run_onnx"](session, tokens_BT, mask_BT)
    apply = jax.jit(loaded.model.apply)
    ours = apply(
        loaded.params, tokens_BT, mask=mask_BT, cache=loaded.model.init_cache(2, tokens_BT.shape[1] + NEW_TOKENS)
    )
    for _ in range(NEW_TOKENS):
        found = np.asarray(ours.logits)[:, -1:]
        np.testing.assert_allclose(found, theirs[:, -1:], atol=ATOL, rtol=0)
        next_B1 = found.argmax(-1).astype(np.int32)
        np.testing.assert_array_equal(next_B1, theirs[:, -1:].argmax(-1))
        mask_BT = np.pad(mask_BT, ((0, 0), (0, 1)), constant_values=True)
        theirs, past = _SCRIPT["run_onnx"](session, next_B1, mask_BT, past)
        ours = apply(loaded.params, next_B1, mask=np.ones((2, 1), np.bool_), cache=ours.cache)

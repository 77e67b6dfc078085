"""What onnxruntime computed of a trained GPT-2's own export, without onnxruntime; see make_onnx_goldens.py.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import bombus
from bombus import LoadedModel

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
_SCRIPT = runpy.run_path(str(GOLDENS / "make_onnx_goldens.py"))
# Logits reach 10; the largest difference seen is 1.1e-5.
ATOL = 1e-4


@pytest.fixture(scope="module")
def loaded(data: Path) -> LoadedModel:
    """The trained model, as its config.json and safetensors file are."""
    return bombus.load_model(data / _SCRIPT["NAME"])


@pytest.mark.parametrize("side", _SCRIPT["LENGTHS"])
def test_trained_gpt2_equals_its_onnx_export(side: str, loaded: LoadedModel) -> None:
    """At every position that it has, and in padded batches."""
    tokens_BT, mask_BT = _SCRIPT["make_batch"](side)
    output = jax.jit(loaded.model.apply)(loaded.params, tokens_BT, mask=mask_BT)
    with np.load(GOLDENS / f"{_SCRIPT['NAME']}.npz") as golden:
        expected, versions = golden[side], str(golden["versions"])
    found = np.asarray(output.logits)[..., :: _SCRIPT["STRIDE"]]
    np.testing.assert_allclose(found[mask_BT], expected[mask_BT], atol=ATOL, rtol=0, err_msg=versions)

"""What the comparisons with transformers share. torch and transformers are imported by the tests, which skip."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bombus

_SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "goldens" / "make_goldens.py"))


@cache
def _compiled(model: bombus.Model) -> Callable[..., bombus.Output]:
    # jax.jit would forget a bound method with the call that made it.
    return jax.jit(model.apply)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both sides of a comparison: the same folder or model, the same batch, float32 NumPy values out.

    Values are (B, V) at the positions of real tokens, one row each, or (B, L) of a classification.
    """

    make_batch: Callable[..., tuple[np.ndarray, np.ndarray]]
    read_transformers: Callable[..., Any]

    def ours(self, loaded: bombus.LoadedModel, tokens_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
        """The values of a loaded model, under jit; compiled once per model and shape."""
        output = _compiled(loaded.model)(loaded.params, tokens_BT, mask=mask_BT)
        values = np.asarray(output.hidden_state if output.logits is None else output.logits).astype(np.float32)
        return values if values.ndim == 2 else values[mask_BT]

    def theirs(self, model: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
        """The values of a model of transformers, or of the folder of one, in float32."""
        model = self.read_transformers(model) if isinstance(model, Path) else model
        values = _SCRIPT["run_transformers"](model, tokens_BT, mask_BT)
        return values if values.ndim == 2 else values[mask_BT]


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """Ours and theirs, with the batches of the goldens."""
    return Comparison(make_batch=_SCRIPT["make_batch"], read_transformers=_SCRIPT["read_transformers"])

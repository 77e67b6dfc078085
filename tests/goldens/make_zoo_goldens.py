"""Goldens of the zoo: what transformers computes in float32 of every case and head, in tests/goldens/zoo/*.npz.

`python tests/goldens/make_zoo_goldens.py [NAME ...]` writes them again; it needs the `parity` extra. transformers makes
the model of a tiny config and saves it: its config.json, and the names and shapes of its tensors are stored. Their
values are those of tests/support/zoo.py, which rebuilds the files without torch. Each row runs by itself, without
padding. Beside float32 there is the causal_lm in the formats of the case, dequantized in float64 by NumPy.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import zoo
from zoo_cases import CASES, Case


def save_transformers(case: Case, head: str, folder: Path) -> None:
    """A folder that transformers wrote of a model that it initialised."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(case.model_type, **case.config, **case.labels(head))
    model = getattr(transformers, case.class_name(head))._from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)


def read_transformers(folder: Path, dtype: str = "float32") -> Any:
    """transformers' model of a folder, of the class that config.json names, in torch's `dtype`.

    Raises ValueError for a tensor that it misses or does not use.
    """
    import torch
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, found = getattr(transformers, name).from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", output_loading_info=True
    )
    if any(found.values()):
        raise ValueError(f"transformers does not take {folder} as it is: {found}")
    return model.eval()


def run_row(model: Any, row: np.ndarray) -> np.ndarray:
    """The output of one row: (T, V), (L,) of a classification, (T, D) of a base model, (T, 2) of spans."""
    import torch

    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(row[None]).long(),
            position_ids=torch.arange(row.size)[None],
            use_cache=False,
        )
    if "start_logits" in output:
        value = torch.stack([output.start_logits, output.end_logits], -1)
    else:
        value = output.logits if "logits" in output else output.last_hidden_state
    return value[0].float().numpy()


def run(folder: Path, dtype: str = "float32") -> list[np.ndarray]:
    """The outputs of both rows; the short one first, because dynamic positions remember the longest row."""
    model = read_transformers(folder, dtype)
    return [run_row(model, row) for row in reversed(zoo.rows())][::-1]


def run_on(folder: Path, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of both rows with these tensors in the folder."""
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return run(folder)


def make(name: str) -> None:
    """Write the golden of a case."""
    import torch
    import transformers

    case = CASES[name]
    about: dict[str, Any] = {"names": {}, "config": {}}
    about["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    outputs: dict[str, list[np.ndarray]] = {}
    for head in case.heads:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            save_transformers(case, head, folder)
            about["config"][head] = json.loads((folder / "config.json").read_text())
            about["names"][head] = names = {
                tensor: list(array.shape) for tensor, array in load_file(folder / "model.safetensors").items()
            }
            outputs[head] = run_on(folder, zoo.tensors(names))
            if head == "causal_lm":
                for quantized in case.formats:
                    outputs[f"{head}.{quantized}"] = run_on(folder, zoo.dequantized(zoo.tensors(names, quantized)))
    arrays = {f"{key}.{index}": zoo.sampled(row) for key, rows in outputs.items() for index, row in enumerate(rows)}
    path = zoo.GOLDENS / f"{name}.npz"
    np.savez_compressed(path, about=json.dumps(about), **arrays)
    largest = {key: f"{max(np.abs(row).max() for row in rows):.3g}" for key, rows in outputs.items()}
    spread = {key: f"{rows[0].std():.3g}" for key, rows in outputs.items()}
    print(f"{path.name}: {path.stat().st_size} bytes, values up to {largest}, std {spread}", flush=True)


def main() -> None:
    """Write the goldens that are named on the command line, by default all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases (default: all)")
    warnings.filterwarnings("ignore")
    zoo.GOLDENS.mkdir(exist_ok=True)
    for name in parser.parse_args().names or CASES:
        make(name)


if __name__ == "__main__":
    main()

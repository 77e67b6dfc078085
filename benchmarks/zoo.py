"""The zoo: plans of models at their full size, and a mixture of experts beside transformers.

`python benchmarks/zoo.py --rounds 2 --folder DIR` prints JSON. The plans need no weight: their headers are those of
tests/support/full_size.py. The mixture has random weights in the shape of Qwen3-MoE, once with many experts and once
with only as many as a token uses: a decode step that touches no other expert takes equally long with both.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from qwen3_0_6b import TRANSFORMERS, run

FULL_SIZE = Path(__file__).resolve().parents[1] / "tests" / "support" / "full_size.py"
# 8 blocks are 0.8 billion parameters, of which a token uses an eighth.
MIXTURE = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "num_experts": 64,
    "num_experts_per_token": 8,
    "num_heads": 16,
    "num_kv_heads": 4,
    "head_dim": 64,
    "max_positions": 4096,
}
# llama.cpp is left out: its file is made of dense models only.
CONTENDERS = ("Bombus, bf16", "Bombus, FP8 kept", TRANSFORMERS)


def plans(rounds: int) -> dict[str, Any]:
    """name -> parameters, tensors, and the median seconds from headers to a plan, the model of shapes included."""
    from bombus.loader.plan import make_plan
    from bombus.models import find_architecture
    from bombus.models.abstract import abstract_shapes
    from bombus.policies import as_precision

    found = {}
    for name, case in runpy.run_path(str(FULL_SIZE))["FULL_SIZE"].items():
        architecture, head = find_architecture(case.config)
        spec = architecture.spec.from_hf(case.config, head=head)
        headers = case.headers()
        seconds = []
        for _ in range(rounds):
            abstract_shapes.cache_clear()
            started = time.perf_counter()
            plan = make_plan(spec, headers, as_precision(None), preserve_source_types=True)
            seconds.append(time.perf_counter() - started)
        found[name] = {
            "parameters": sum(entry.size for entry in plan.entries),
            "tensors": len(headers),
            "gigabytes": round(sum(entry.nbytes for entry in plan.entries) / 1e9, 1),
            "seconds": round(statistics.median(seconds), 2),
        }
    return found


def main() -> None:
    """Print the plans and both mixtures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept; default: a temporary folder")
    options = parser.parse_args()
    results: dict[str, Any] = {"plans": plans(options.rounds)}
    with tempfile.TemporaryDirectory() as temporary:
        for experts in (MIXTURE["num_experts"], MIXTURE["num_experts_per_token"]):
            folder = (options.folder or Path(temporary)) / f"{experts}-experts"
            results[f"{experts} experts"] = run(
                options, folder, "qwen3_moe", MIXTURE | {"num_experts": experts}, CONTENDERS
            )
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

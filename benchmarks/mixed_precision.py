"""Memory, speed and accuracy of mixed precision: float16 attention, int8 feed-forward, int4 embedding, and others.

    python benchmarks/mixed_precision.py [--folder DIR] [--layers 28] [--rounds 3] [--policies NAME ...] [--json]

Two models, each in a table: a Qwen3 of the 0.6B shape with random weights (made in DIR unless it is there), for
memory and speed, and the trained stories260K, for accuracy. For every policy: bytes of the arrays, the peak of the
host's memory while loading over them, decoded tokens per second at one row (the policies in turns, medians), and the
Kullback-Leibler divergence of the next token's distribution from the float32 model's, in nats, with the share of
positions at which both choose the same token.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from qwen3_0_6b import SHAPE

import bombus
from bombus.evaluation.machine import peak_memory, reset_peak_memory
from bombus.testing import tiny_checkpoint

DATA = Path(os.environ.get("BOMBUS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
POLICIES: dict[str, Any] = {
    "as in the file": None,
    "exercise: attention f16, feed-forward int8, embedding int4": {
        "attention": "f16",
        "feed_forward": "int8",
        "embedding": "int4",
    },
    "full int8": "int8",
    "preset accuracy": "accuracy",
    "preset performance": "performance",
    "full f8_e4m3fn": "f8_e4m3fn",
    "full bfp8": "bfp8",
    "full int4(group=32)": "int4(group=32)",
    "full nvfp4": "nvfp4",
}
NEW_TOKENS = 16


def main() -> None:
    """Measure both models and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the Qwen3 checkpoint is kept; default: a temporary folder")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "qwen3"
        if not (folder / "config.json").exists():
            tiny_checkpoint("qwen3", folder, "bf16", num_blocks=options.layers, **SHAPE)
        tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (1, 64))
        results = {f"Qwen3, random, {folder.name}": measure(folder, tokens, options)}
    stories = DATA / "stories260K-hf"
    if stories.exists():
        text = (stories / "golden_greedy.txt").read_text()
        tokens = np.asarray([bombus.load_tokenizer(stories).encode(text)[:512]])
        results["stories260K, trained"] = measure(stories, tokens, options)
    print(json.dumps(results, indent=2) if options.json else "\n\n".join(map(table, results, results.values())))


def measure(folder: Path, tokens: np.ndarray, options: argparse.Namespace) -> list[dict]:
    """One record per policy."""
    reference = log_probabilities(bombus.load_model(folder, policy="f32", progress=False), tokens)
    gc.collect()
    rows, models, samples = [], {}, {}
    for name in options.policies:
        before = reset_peak_memory()
        loaded = models[name] = bombus.load_model(folder, policy=POLICIES[name], progress=False)
        peak = peak_memory() - before
        found = log_probabilities(loaded, tokens)
        rows.append(
            {
                "policy": name,
                "megabytes": round(loaded.report.nbytes / 1e6, 3),
                "peak over bytes": round(peak / loaded.report.nbytes, 2),
                "nats": float((np.exp(reference) * (reference - found)).sum(-1).mean()),
                "same token": float((reference.argmax(-1) == found.argmax(-1)).mean()),
            }
        )
        generate(loaded, tokens)  # compiles
        samples[name] = []
    for _ in range(options.rounds):
        for name, loaded in models.items():
            started = time.perf_counter()
            generate(loaded, tokens)
            samples[name].append(NEW_TOKENS / (time.perf_counter() - started))
    first = statistics.median(samples[options.policies[0]])
    for row in rows:
        row["tokens per second"] = round(statistics.median(samples[row["policy"]]), 2)
        row["over the first"] = round(row["tokens per second"] / first, 2)
    return rows


def generate(loaded: bombus.LoadedModel, tokens: np.ndarray) -> None:
    """NEW_TOKENS after the first eight, whatever they are."""
    found = bombus.generate_tokens(loaded, tokens[:, :8].tolist(), max_new_tokens=NEW_TOKENS, stop_token_ids=())
    assert all(len(row.tokens) == NEW_TOKENS for row in found), "stopped early"


def log_probabilities(loaded: bombus.LoadedModel, tokens: np.ndarray) -> np.ndarray:
    """log p of the next token (positions, vocabulary), float64."""
    logits = jax.jit(loaded.model.apply)(loaded.params, jnp.asarray(tokens)).logits[0]
    return np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), np.float64)


def table(title: str, rows: list[dict]) -> str:
    """The records in Markdown."""
    lines = [
        f"{title}:\n",
        "| policy | MB | load peak over MB | tokens/s, 1 row | ratio | KL to float32, nats | same next token |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["policy"],
            row["megabytes"],
            row["peak over bytes"],
            row["tokens per second"],
            row["over the first"],
        )
        lines.append("| " + " | ".join(map(str, cells)) + f" | {row['nats']:.2e} | {row['same token']:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

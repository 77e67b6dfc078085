"""What a quantized KV cache saves and costs: memory, accuracy and speed of its formats, with the model that ships.

    python benchmarks/kv_cache.py ../shared/data/texts/tinyshakespeare.txt [--windows 64] [--rounds 3] [--json]

Prints a Markdown table, or JSON. The text is the tenth that the model was not trained on, in windows of 256 tokens that
are read through a cache of each format; what counts is the second half of each window, as in the model's card. For each
format: bytes per token of the cache's arrays, the Kullback-Leibler divergence of the next token's distribution from the
one with the full cache, in nats, the share of tokens at which both have the same most probable one, the loss in nats
per character, and the speed of decoding (all formats in turns, medians of the ratios to the full cache). Exits with 1
when int8 is 0.001 nats away or more.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from shakespeare_data import split

import bombus
from bombus.models import Model, Params

NAME = "bombus/tiny-shakespeare-fp8"
WINDOW = 256
BATCH = 8
PROMPT = 64  # of decoding, which fills the window
MOST_NATS = 1e-3  # of int8
FULL = "full"


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=64, help="how many of them, spread evenly; 0 for all")
    parser.add_argument("--rounds", type=int, default=3, help="of decoding; 0 to leave it out")
    parser.add_argument("--rows", type=int, default=BATCH, help="that are decoded at a time")
    parser.add_argument("--compute", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.text.read_text(encoding="utf-8"), options)
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    (nats,) = (row["nats"] for row in rows if row["format"] == "int8")
    if not nats < MOST_NATS:
        sys.exit(f"int8 is {nats:.2e} nats from the full cache, under {MOST_NATS} wanted")


def measure(text: str, options: argparse.Namespace) -> list[dict]:
    """One record per format."""
    loaded = bombus.load_model(NAME, policy=bombus.create_policy(compute=options.compute), progress=False)
    tokenizer = bombus.load_tokenizer(NAME)
    trained, held_out = (np.asarray(tokenizer.encode(part), np.int32) for part in split(text))
    formats = cache_formats(loaded, windows(trained, 64)[:, :-1])
    found = accuracy(loaded, tokenizer, formats, windows(held_out, options.windows))
    speeds = decode_speeds(loaded, formats, windows(held_out, options.rows)[:, :PROMPT], options.rounds)
    full = bytes_per_token(loaded.model, None)
    return [
        {
            "format": name,
            "bytes per token": bytes_per_token(loaded.model, format),
            "of the full cache": round(bytes_per_token(loaded.model, format) / full, 3),
            **found[name],
            **({"decode, over the full cache": speeds[name]} if speeds else {}),
        }
        for name, format in formats.items()
    ]


def cache_formats(loaded: bombus.LoadedModel, tokens_BT: np.ndarray) -> Mapping[str, bombus.CacheFormat | None]:
    """The formats by what they are called in the table; scales of heads are calibrated on these tokens."""
    make = bombus.CacheFormat

    def of_heads(name: str) -> bombus.CacheFormat:
        return bombus.calibrate_cache(loaded.model, loaded.params, tokens_BT, format=name)

    return {
        FULL: None,
        "f8_e4m3fn": make(keys="f8_e4m3fn", values="f8_e4m3fn"),
        "int8": make(keys="int8", values="int8"),
        "int8, no zero points": make(keys="int8", values="int8", zero_points=False),
        "int8, scales of heads": of_heads("int8"),
        "keys int8, values int4": make(keys="int8", values="int4"),
        "keys int4, values int8": make(keys="int4", values="int8"),
        "int4": make(keys="int4", values="int4"),
        "int4, no zero points": make(keys="int4", values="int4", zero_points=False),
        "int4, scales of heads": of_heads("int4"),
        "int4, the last 64 full": make(keys="int4", values="int4", recent=64),
        "int4, first and last layer full": make(keys="int4", values="int4", full_layers=(0, -1)),
    }


def windows(tokens: np.ndarray, count: int) -> np.ndarray:
    """Windows of one token more than WINDOW, each half a window after the one before; `count` of them, or all for 0."""
    starts = np.arange(0, len(tokens) - WINDOW, WINDOW // 2)
    if count:
        starts = starts[np.linspace(0, len(starts) - 1, count).astype(int)]
    return tokens[starts[:, None] + np.arange(WINDOW + 1)]


def accuracy(
    loaded: bombus.LoadedModel,
    tokenizer: bombus.Tokenizer,
    formats: Mapping[str, bombus.CacheFormat | None],
    tokens_BT: np.ndarray,
) -> dict[str, dict[str, float]]:
    """For each format the mean divergence, the share of equal choices, and the loss per character."""
    found: dict[str, list] = {name: [] for name in formats}
    half = WINDOW // 2
    for start in range(0, len(tokens_BT), BATCH):
        batch = tokens_BT[start : start + BATCH]
        padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0)))
        exact = log_probabilities(loaded.model, loaded.params, padded[:, :-1], None)
        for name, format in formats.items():
            logs = log_probabilities(loaded.model, loaded.params, padded[:, :-1], format)
            found[name].append(jax.device_get(compare(exact, logs, padded[:, 1:]))[:, : len(batch), half:])
    characters = sum(len(tokenizer.decode(row[half + 1 :].tolist())) for row in tokens_BT)
    result = {}
    for name, pieces in found.items():
        nats, same, lost = np.concatenate(pieces, axis=1).astype(np.float64)
        result[name] = {
            "nats": float(nats.mean()),
            "same token": float(same.mean()),
            "nats per character": float(lost.sum() / characters),
        }
    return result


@partial(jax.jit, static_argnames=("model", "format"))
def log_probabilities(
    model: Model, params: Params, tokens_BT: jax.Array, format: bombus.CacheFormat | None
) -> jax.Array:
    """log p of the next token, (B, T, V) float32. Each token reads those before it, and itself, from the cache."""
    cache = model.init_cache(*tokens_BT.shape, format=format)
    logits_BTV = model.apply(params, tokens_BT, cache=cache).logits
    return jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)


@jax.jit
def compare(exact_BTV: jax.Array, found_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Of every token (3, B, T): the divergence, whether the most probable one is the same, and the target's loss."""
    nats = (jnp.exp(exact_BTV) * (exact_BTV - found_BTV)).sum(axis=-1)
    same = exact_BTV.argmax(axis=-1) == found_BTV.argmax(axis=-1)
    lost = -jnp.take_along_axis(found_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jnp.stack((nats, same.astype(jnp.float32), lost))


def bytes_per_token(model: Model, format: bombus.CacheFormat | None) -> float:
    """Of a window's cache: what it says, which must be what its arrays take."""
    cache = model.init_cache(1, WINDOW, format=format)
    counted = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers)) / WINDOW
    assert cache.bytes_per_token == cache.report.bytes_per_token == counted, (format, counted)
    return counted


def decode_speeds(
    loaded: bombus.LoadedModel,
    formats: Mapping[str, bombus.CacheFormat | None],
    prompts_BT: np.ndarray,
    rounds: int,
) -> dict[str, float]:
    """Tokens per second over those with the full cache."""

    def speed(format: bombus.CacheFormat | None) -> float:
        (first, *_) = bombus.generate_tokens(
            loaded,
            prompts_BT.tolist(),
            cache_format=format,
            max_new_tokens=WINDOW - PROMPT,
            temperature=0,
            stop_token_ids=(),
            stop_strings=(),
        )
        assert first.timings is not None
        return first.timings.tokens_per_second

    if rounds:
        for format in formats.values():
            speed(format)  # compiles
    turns = [{name: speed(format) for name, format in formats.items()} for _ in range(rounds)]
    return {name: round(statistics.median(turn[name] / turn[FULL] for turn in turns), 2) for name in formats if turns}


def table(rows: list[dict]) -> str:
    """The records in Markdown."""
    timed = "decode, over the full cache" in rows[0]
    heads = ["cache", "bytes per token", "of the full cache", "KL, nats per token", "same token", "nats per character"]
    heads += ["decode speed"] * timed
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["format"], f"{row['bytes per token']:,.5g}", f"{row['of the full cache']:.2f}"]
        cells += [f"{row['nats']:.1e}", f"{row['same token']:.1%}", f"{row['nats per character']:.4f}"]
        if timed:
            cells.append(f"{row['decode, over the full cache']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

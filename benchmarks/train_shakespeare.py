"""Train the model that ships with the package: a small Qwen3 on Shakespeare, stored in block FP8.

    python benchmarks/train_shakespeare.py ../shared/data/texts/tinyshakespeare.txt --work WORK \
        --out bombus/shipped/tiny-shakespeare-fp8

Its parts: a byte-level BPE from the first nine tenths of the text, training with this project's own modules,
`jax.value_and_grad` and optax on the same, and a Hugging Face folder with the losses on the last tenth in its model
card (shakespeare_export.py). The state is saved in WORK every 100 steps; started again, the training goes on from
there, and with a finished state only exports. The exit status is 1 for a model that must not be shipped.

Against overfitting on a megabyte: every pass over the text is cut into other tokens (BPE dropout, Provilkov et al.
2020), some of the input tokens are replaced, and weights decay. Matrices are trained with Muon (Jordan 2024).

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from optax.contrib import MuonDimensionNumbers, muon
from shakespeare_data import Settings, batches, split, train_tokenizer
from shakespeare_export import export, nats, nats_per_character

from bombus.models import Model, Params, build_model
from bombus.models.qwen3 import Qwen3Spec


@dataclass(frozen=True, kw_only=True)
class State:
    """A training after `step` steps, which took `seconds`; not a number where the file does not say."""

    step: int
    seconds: float
    params: Params
    optimizer: Any


def make_spec() -> Qwen3Spec:
    """The architecture: every kernel is several tiles of 128x128, partial ones at the edges."""
    return Qwen3Spec(
        vocab_size=2000,
        hidden_size=192,
        intermediate_size=544,
        num_blocks=6,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        max_positions=1024,
        tie_word_embeddings=True,
    )


def make_optimizer(params: Params, settings: Settings) -> optax.GradientTransformation:
    """Muon for the kernels, Adam for the rest; the rate rises for 100 steps and falls to zero from half way."""
    last = settings.steps // 2
    shape = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, 100), optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.0, last)],
        [100, settings.steps - last],
    )
    kernels = jax.tree.map_with_path(
        lambda path, _: MuonDimensionNumbers(1, 0) if path[-1].key == "kernel" else None, params
    )
    return muon(
        lambda step: settings.rate * shape(step),
        weight_decay=settings.decay,
        adam_learning_rate=lambda step: 0.003 * shape(step),
        adam_b2=0.99,
        muon_weight_dimension_numbers=kernels,
    )


def save_state(state: State, path: Path) -> None:
    """Nothing; the file holds the state. Renamed into place, so that whoever is killed leaves the one before."""
    part = path.with_name("part.npz")
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves((state.params, state.optimizer)))}
    np.savez(part, step=state.step, seconds=state.seconds, **leaves)
    part.replace(path)


def load_state(path: Path, like: State) -> State:
    """The state in a file, of the same arrays as `like`. Ends the program with a line about a file that is not one."""
    leaves, structure = jax.tree.flatten((like.params, like.optimizer))
    try:
        with np.load(path) as file:
            found = [file[str(i)] for i in range(len(leaves))]
            step, seconds = int(file["step"]), float(file["seconds"]) if "seconds" in file else float("nan")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip("'\"")
        raise SystemExit(f"{path} is no state of a training: {reason}. Delete it to start anew.") from None
    if [(leaf.shape, leaf.dtype) for leaf in found] != [(leaf.shape, leaf.dtype) for leaf in leaves]:
        raise SystemExit(f"{path} is the state of another model. Delete it to start anew.")
    params, optimizer = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in found])
    return State(step=step, seconds=seconds, params=params, optimizer=optimizer)


@cache
def compile_update(
    spec: Qwen3Spec, settings: Settings
) -> tuple[Model, optax.GradientTransformation, Callable[..., Any]]:
    """(the model, its optimizer, (params, optimizer state, inputs, targets) -> (params, optimizer state, loss))."""
    model = build_model(spec)
    optimizer = make_optimizer(model.abstract_params, settings)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Params, state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Params, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(lambda params: nats(model, params, inputs, targets).mean())(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return model, optimizer, update


def train(
    spec: Qwen3Spec,
    settings: Settings,
    tokenizer: tokenizers.Tokenizer,
    text: str,
    saved: Path,
    *,
    save_every: int = 100,
    report: Callable[[State, float], None] = lambda state, loss: None,
) -> State:
    """The state after the last step, from that in `saved` where there is one.

    report: called after each save, with the mean loss of a token since the one before.
    """
    model, optimizer, update = compile_update(spec, settings)
    params = model.init(jax.random.key(0))
    state = State(step=0, seconds=0.0, params=params, optimizer=optimizer.init(params))
    if saved.exists():
        state = load_state(saved, state)
    params, optimizer_state, step, losses = state.params, state.optimizer, state.step, []
    data = batches(tokenizer, text, settings, start=step)
    began = time.perf_counter() - state.seconds
    while step < settings.steps:
        params, optimizer_state, loss = update(params, optimizer_state, *next(data))
        step, losses = step + 1, [*losses, loss]
        if step % save_every == 0 or step == settings.steps:
            mean = float(np.mean(losses))
            state = State(step=step, seconds=time.perf_counter() - began, params=params, optimizer=optimizer_state)
            save_state(state, saved)
            report(state, mean)
            losses = []
    return state


def main(arguments: list[str] | None = None) -> int:
    """Train, or go on training; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="the folder of the state")
    parser.add_argument("--out", type=Path, help="the folder of the model; without it nothing is exported")
    for name in ("steps", "rate", "decay", "noise", "dropout"):
        default = getattr(Settings, name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args(arguments)
    settings = Settings(**{name: getattr(options, name) for name in ("steps", "rate", "decay", "noise", "dropout")})
    options.work.mkdir(parents=True, exist_ok=True)
    raw = options.text.read_bytes()
    known, held_out = split(raw.decode("utf-8"))
    tokenizer, spec = train_tokenizer(known), make_spec()
    model = build_model(spec)

    def report(state: State, loss: float) -> None:
        line = f"step {state.step} loss {loss:.3f} {state.seconds:.0f} s"
        if state.step % 400 == 0 or state.step == settings.steps:
            line += f" held out {nats_per_character(model, state.params, tokenizer, held_out):.4f}"
        print(line, flush=True)

    state = train(spec, settings, tokenizer, known, options.work / "state.npz", report=report)
    if options.out is None:
        return 0
    facts = {
        "text": f"{options.text.name}, {len(raw):,} bytes, SHA-256 `{hashlib.sha256(raw).hexdigest()}`",
        "trained on": f"the first nine tenths, {len(known):,} characters; the tokenizer too",
        "held out": f"the last tenth, {len(held_out):,} characters",
        "steps": f"{state.step:,} of {settings.batch} x {settings.context} tokens",
        "tokens seen": f"{state.step * settings.batch * settings.context:,}",
        "time": f"{state.seconds / 60:.0f} minutes on {os.cpu_count()} CPU cores" if state.seconds > 0 else "not kept",
        "optimizer": f"Muon, rate {settings.rate}, for kernels; Adam, rate 0.003, for the rest; linear decay to zero "
        "in the second half",
        "regularization": f"BPE dropout {settings.dropout}, {settings.noise:.0%} of the input tokens replaced at "
        f"random, weight decay {settings.decay}",
    }
    wrong = export(spec, state.params, tokenizer, held_out, options.out, facts)
    for problem in wrong:
        print(f"not good enough: {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Attention in float64 NumPy from its definition: one row, one head, one query at a time; nothing of Bombus."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from flax import nnx


def fill(module: nnx.Module, seed: int = 0, size: float = 0.3) -> dict[str, np.ndarray]:
    """Random float32 values for every parameter of a module, bound into it; and the same in float64, by path."""
    random = np.random.default_rng(seed)
    values = {}
    for key, variable in nnx.to_flat_state(nnx.state(module)):
        shape = variable.get_value().shape
        values[".".join(map(str, key))] = (size * random.standard_normal(shape)).astype(np.float32)
    bound = [
        (key, variable.replace(values[".".join(map(str, key))]))
        for key, variable in nnx.to_flat_state(nnx.state(module))
    ]
    nnx.update(module, nnx.from_flat_state(bound))
    return {path: value.astype(np.float64) for path, value in values.items()}


def turn(x: np.ndarray, position: int, theta: float, size: int, *, interleaved: bool = False) -> np.ndarray:
    """A head (H,) whose first `size` dimensions are turned as pairs by position * theta^(-2i/size)."""
    result = x.copy()
    for pair in range(size // 2):
        angle = position * theta ** (-2 * pair / size)
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
        result[first] = x[first] * math.cos(angle) - x[second] * math.sin(angle)
        result[second] = x[second] * math.cos(angle) + x[first] * math.sin(angle)
    return result


def rms(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    """x / rms(x) * scale, over the last axis."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def weights(scores: list[float], sink: float | None) -> np.ndarray:
    """Softmax over the scores, and over a sink whose weight is left out."""
    shares = np.exp(np.asarray(scores))
    return shares / (shares.sum() + (0.0 if sink is None else math.exp(sink)))


def attention(
    values: dict[str, np.ndarray],
    x_TD: np.ndarray,
    *,
    heads: tuple[int, int],
    head_dim: int,
    rotary: tuple[float, int] | None = None,
    interleaved: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    norm: tuple[str, float] | None = None,
) -> np.ndarray:
    """What Attention returns for one row. rotary: theta and how many dimensions. norm: "head" or "all", epsilon."""
    num_heads, num_kv_heads = heads

    def project(name: str) -> np.ndarray:
        y = x_TD @ values[f"{name}.kernel"].T + values.get(f"{name}.bias", 0.0)
        if norm is not None and norm[0] == "all" and name != "value":
            y = rms(y, values[f"{name}_norm.scale"], norm[1])
        y = y.reshape(len(x_TD), -1, head_dim)
        if norm is not None and norm[0] == "head" and name != "value":
            y = rms(y, values[f"{name}_norm.scale"], norm[1])
        return y

    def turned(y: np.ndarray) -> np.ndarray:
        if rotary is None:
            return y
        rows = [[turn(head, at, *rotary, interleaved=interleaved) for head in row] for at, row in enumerate(y)]
        return np.asarray(rows)

    q, k, v = turned(project("query")), turned(project("key")), project("value")
    mixed = np.zeros((len(x_TD), num_heads, head_dim))
    for at in range(len(x_TD)):
        seen = range(0 if window is None else max(0, at - window + 1), at + 1)
        for head in range(num_heads):
            shared = head // (num_heads // num_kv_heads)
            scores = [float(q[at, head] @ k[key, shared]) * (scale or head_dim**-0.5) for key in seen]
            if softcap is not None:
                scores = [softcap * math.tanh(score / softcap) for score in scores]
            sink = float(values["sinks"][head]) if "sinks" in values else None
            mixed[at, head] = weights(scores, sink) @ v[seen.start : seen.stop, shared]
    return mixed.reshape(len(x_TD), -1) @ values["output.kernel"].T + values.get("output.bias", 0.0)


def latent_attention(values: dict[str, np.ndarray], x_TD: np.ndarray, sizes: dict[str, Any]) -> np.ndarray:
    """What LatentAttention returns for one row, from keys and values of every head written out."""
    n, p, r, v = (sizes[name] for name in ("num_heads", "nope_dim", "rope_dim", "value_dim"))
    c, epsilon, theta = sizes["key_value_rank"], sizes["epsilon"], sizes["theta"]

    def dense(y: np.ndarray, name: str) -> np.ndarray:
        return y @ values[f"{name}.kernel"].T + values.get(f"{name}.bias", 0.0)

    if "query.kernel" in values:
        q = dense(x_TD, "query")
    else:
        q = dense(rms(dense(x_TD, "query_down"), values["query_norm.scale"], epsilon), "query_up")
    q = q.reshape(-1, n, p + r)
    down = dense(x_TD, "key_value_down")
    up = dense(rms(down[:, :c], values["key_value_norm.scale"], epsilon), "key_value_up").reshape(-1, n, p + v)
    mixed = np.zeros((len(x_TD), n, v))
    for at in range(len(x_TD)):
        for head in range(n):
            query = np.concatenate((q[at, head, :p], turn(q[at, head, p:], at, theta, r, interleaved=True)))
            scores = []
            for key in range(at + 1):
                shared = turn(down[key, c:], key, theta, r, interleaved=True)
                scores.append(float(query @ np.concatenate((up[key, head, :p], shared))) * sizes["scale"])
            mixed[at, head] = weights(scores, None) @ up[: at + 1, head, p:]
    return dense(mixed.reshape(len(x_TD), -1), "output")

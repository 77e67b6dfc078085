"""The C++ kernels in kernels/cpp, called through XLA's foreign function interface on CPU.

Shapes: R rows of x, I inputs, O outputs.
"""

from __future__ import annotations

import ctypes
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from bombus.kernels.weight import Weight
from bombus.policies.errors import PolicyError, Problem

VARIABLE = "BOMBUS_KERNELS"
XLA = "xla"
NAMES = ("amx", "avx512_bf16", "avx512", "avx2", "plain")
_TARGETS = (
    *("bombus_product", "bombus_grouped", "bombus_norm", "bombus_rotate", "bombus_next_token"),
    *("bombus_attention", "bombus_write", "bombus_read", "bombus_move"),
)
# The numbers of Codes and Scales in kernels/cpp/kernels.h.
_CODES = {"float32": 0, "bfloat16": 1, "float16": 2, "float8_e4m3fn": 3, "float8_e5m2": 4, "int8": 5}
_INT4, _E2M1 = 6, 7
_SCALES = {"float32": 1, "bfloat16": 2, "float16": 3, "float8_e8m0fnu": 4, "float8_e4m3fn": 5}


@dataclass(frozen=True, kw_only=True)
class Library:
    """What is in use: the library, or None and why not."""

    loaded: ctypes.CDLL | None
    reason: str | None = None


@cache
def library() -> Library:
    """The library of kernels, loaded and made known to XLA the first time.

    $BOMBUS_KERNELS chooses: `xla` for XLA's own operations, or the name of an instruction set, one of NAMES. Raises
    PolicyError for another name, or an instruction set that this processor or the build lacks.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", XLA, *NAMES):
        raise _wrong(asked, "is no name of kernels", f"{XLA}, {', '.join(NAMES)}")
    if asked == XLA:
        return Library(loaded=None, reason=f"{VARIABLE}={XLA}")
    path = Path(__file__).parent / f"_native{EXTENSION_SUFFIXES[0]}"
    found = _load(path)
    if found.loaded is None and asked:
        raise _wrong(asked, f"cannot be used: {found.reason}", None)
    if found.loaded is not None and asked and not found.loaded.bombus_choose(asked.encode()):
        raise _wrong(asked, "is not for this processor", f"one of its own: {', '.join(available())}")
    return found


def _load(path: Path) -> Library:
    if not path.exists():
        return Library(
            loaded=None, reason="they were not built when the package was installed; a C++ compiler builds them"
        )
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.bombus_active.restype = ctypes.c_char_p
        for name in _TARGETS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    except Exception as error:  # of ctypes or of XLA: whatever it is, there is another way
        return Library(loaded=None, reason=f"the library does not load: {error}")
    return Library(loaded=loaded)


def _wrong(asked: str, message: str, expected: str | None) -> PolicyError:
    return PolicyError(Problem(subject=f"{VARIABLE}={asked}", message=message, expected=expected))


def available() -> tuple[str, ...]:
    """The instruction sets that can be chosen on this machine, best first; none without the library."""
    loaded = _load(Path(__file__).parent / f"_native{EXTENSION_SUFFIXES[0]}").loaded
    if loaded is None:
        return ()
    now = loaded.bombus_active()
    names = tuple(name for name in NAMES if loaded.bombus_choose(name.encode()))
    loaded.bombus_choose(now)
    return names


def kernels_in_use() -> str:
    """One of NAMES, the instruction set of the C++ kernels; or `xla` where they are not used."""
    loaded = library().loaded
    return XLA if loaded is None else loaded.bombus_active().decode()


@contextmanager
def using_kernels(name: str) -> Iterator[None]:
    """Take the kernels of one instruction set while this lasts, also in programs that are compiled already."""
    loaded = library().loaded
    before = kernels_in_use()
    if loaded is None or not loaded.bombus_choose(name.encode()):
        raise _wrong(name, "cannot be used here", ", ".join(available()) or XLA)
    try:
        yield
    finally:
        loaded.bombus_choose(before.encode())


@cache
def _say_once(reason: str) -> None:
    warnings.warn(
        f"bombus runs without its C++ kernels, several times slower on CPU: {reason}", RuntimeWarning, stacklevel=2
    )


def runs(weight: Weight, compute_type: jnp.dtype) -> bool:
    """Whether the kernels multiply with this weight: in low precision, or 16-bit values that are computed exactly."""
    kind = weight.codes.dtype
    if not weight.format.is_low and (kind == jnp.float32 or compute_type not in (kind, jnp.float32)):
        return False
    found = library()
    if found.loaded is None and not os.environ.get(VARIABLE) and jax.default_backend() == "cpu":
        assert found.reason is not None
        _say_once(found.reason)
    return found.loaded is not None


@custom_vmap
def multiply(x_RI: jax.Array, weights: Sequence[Weight]) -> tuple[jax.Array, ...]:
    """x times each of the weights, (R, O) in float32, in one call. CPU only; `runs` must be true of all."""
    return call_product(x_RI, weights)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a call does before or behind its products (`product` in kernels/cpp/ffi.cc): by which numbers, of what."""

    numbers: np.ndarray
    arrays: Sequence[jax.Array] = ()
    results: Sequence[jax.ShapeDtypeStruct] = ()


NO_NORM, NOTHING = Step(numbers=np.zeros(0, np.float32)), Step(numbers=np.zeros(0, np.int64))


def call_product(
    x_RI: jax.Array, weights: Sequence[Weight], *, norm: Step = NO_NORM, after: Step = NOTHING
) -> tuple[jax.Array, ...]:
    """x times each of the weights, (R, O) in float32; or the results of `after` where it has any."""
    numbers, factors, arrays = described(weights)
    made = [jax.ShapeDtypeStruct((x_RI.shape[0], weight.shape[0]), jnp.float32) for weight in weights]
    given = (x_RI, *norm.arrays, *arrays, *after.arrays)
    call = jax.ffi.ffi_call("bombus_product", (*norm.results, *made, *after.results))
    results = call(*given, numbers=numbers, factors=factors, norm=norm.numbers, after=after.numbers)
    first = len(norm.results) + len(made) if after.results else len(norm.results)
    return tuple(varying_as(result, *given) for result in results[first:])


@multiply.def_vmap
def _multiply_batch(
    size: int, batched: tuple[bool, Any], x: jax.Array, weights: Sequence[Weight]
) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
    if any(jax.tree.leaves(batched[1])):  # weights of their own: one after the other
        arrays, tree = jax.tree.flatten((x, weights))
        moving = jax.tree.leaves(batched)

        def one(index: jax.Array) -> tuple[jax.Array, ...]:
            from bombus.kernels.weight import slice_bits

            taken = [slice_bits(a, index)[0] if moves else a for a, moves in zip(arrays, moving, strict=True)]
            return multiply(*jax.tree.unflatten(tree, taken))

        made = jax.lax.map(one, jnp.arange(size))
    else:
        rows = multiply(x.reshape(-1, x.shape[-1]), weights)
        made = tuple(y.reshape(size, -1, y.shape[-1]) for y in rows)
    return made, (True,) * len(made)


def varying_as(result: jax.Array, *arguments: jax.Array) -> jax.Array:
    """The result of a call, marked inside shard_map as one that differs from device to device as its arguments do."""
    axes = set[Any]().union(*map(_varying, arguments)) - _varying(result)
    return jax.lax.pcast(result, tuple(axes), to="varying") if axes else result


def _varying(array: jax.Array) -> set[Any]:
    found = jax.typeof(array)
    kind = getattr(found, "manual_axis_type", None)  # before that name there was `vma`
    return set(getattr(found, "vma", ()) if kind is None else kind.varying)


def on_pool(values: jax.Array) -> jax.Array:
    """The values themselves; on CPU what needs them runs on one of the threads that the kernels share.

    Not with several devices, whose programs wait for each other: the pool may have fewer threads.
    """
    if library().loaded is None or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return values
    return jax.lax.platform_dependent(values, cpu=_move, default=lambda values: values)


def _move(values: jax.Array) -> jax.Array:
    made = jax.ShapeDtypeStruct(values.shape, values.dtype)
    call = jax.ffi.ffi_call("bombus_move", made, input_output_aliases={0: 0}, vmap_method="broadcast_all")
    return varying_as(call(values), values)


@jax.jit
def read_bytes(values: jax.Array) -> jax.Array:
    """The sum of a buffer's 64-bit words, as two uint32: a plain read by all of XLA's threads. CPU only."""
    assert library().loaded is not None
    return jax.ffi.ffi_call("bombus_read", jax.ShapeDtypeStruct((2,), jnp.uint32))(values)


def described(weights: Sequence[Weight]) -> tuple[np.ndarray, np.ndarray, list[jax.Array]]:
    """Numbers and factors of `Description` (ffi_arguments.h), and the arrays in the order that it takes them."""
    numbers, factors, arrays = [], [], []
    for weight in weights:
        outputs, inputs = weight.shape
        kind = weight.format.kind
        codes = (_E2M1 if kind.e2m1 else _INT4) if weight.format.packed else _CODES[weight.codes.dtype.name]
        parts = [weight.scale_inv, weight.zero_point, weight.global_scale]
        scales = 0 if weight.scale_inv is None else _SCALES[weight.scale_inv.dtype.name]
        rows, columns = weight.format.tile if weight.format.is_low else (0, 0)
        tile = (rows or max(outputs, 1), columns or max(inputs, 1))
        numbers += [
            codes,
            scales,
            parts[1] is not None,
            outputs,
            inputs,
            *tile,
            -(-inputs // tile[1]),
            parts[2] is not None,
        ]
        factors.append(math.ldexp(1.0, -kind.fraction) if weight.format.is_low else 1.0)
        arrays += [weight.codes, *(part for part in parts if part is not None)]
    return np.array(numbers, np.int64), np.array(factors, np.float32), arrays

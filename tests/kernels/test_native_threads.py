"""The C++ kernels on XLA's threads: many products of one program at once, and callers on threads of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from native_weights import KERNELS, REASON

pytestmark = pytest.mark.skipif(not KERNELS, reason=REASON)

# 48 products that do not wait for each other, and some that do: XLA runs them side by side, and each divides itself
# among the same threads. Results are equal bit for bit, whoever computes what.
PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
import jax, jax.numpy as jnp, numpy as np
from native_weights import SOME, assert_product, exact, rows_of, weight_of
from bombus.kernels import native, product
random = np.random.default_rng(0)
repeats, callers = map(int, sys.argv[1:])
weights = [weight_of(SOME[i % len(SOME)], (40 + 37 * (i % 9), 96), random) for i in range(48)]
weights = [w for w in weights if native.runs(w, np.dtype("float32"))]
assert len(weights) == 45
square = weight_of("f8_e4m3fn(tile=1x32)", (96, 96), random)

@jax.jit
def run(x, weights, square):
    y = product(x, square, compute_type=np.dtype("float32"))
    late = jnp.tanh(y)
    each = [product(x if i % 3 else late, w, compute_type=np.dtype("float32")) for i, w in enumerate(weights)]
    return each, sum(y.sum() for y in each)

for rows in (1, 6):
    x = jnp.asarray(rows_of(rows, 96, np.float32, random))
    first, total = jax.tree.map(np.asarray, run(x, weights, square))
    for i, (y, w) in enumerate(zip(first, weights, strict=True)):
        if i % 3:
            assert_product(y, np.asarray(x), exact(w), w.format)
    def call(_):
        each, _ = run(x, weights, square)
        return all(np.array_equal(np.asarray(y), right, equal_nan=True) for y, right in zip(each, first, strict=True))
    with ThreadPoolExecutor(callers) as pool:
        assert all(pool.map(call, range(repeats)))
print("right")
"""


@pytest.mark.parametrize(("threads", "callers"), [(1, 3), (2, 1), (8, 4)])
def test_products_side_by_side(threads: int, callers: int) -> None:
    """Forty times for one row and for several; with a process's threads as one core has them, as two, as eight."""
    support = Path(__file__).resolve().parents[1] / "support"
    # XLA makes as many threads as $NPROC says.
    environment = {**os.environ, "PYTHONPATH": str(support), "JAX_PLATFORMS": "cpu", "NPROC": str(threads)}
    command = [sys.executable, "-P", "-c", PROGRAM, "40", str(callers)]
    # The limit is for products that wait for each other for ever.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


# Which thread a callback runs on is that of the program, there.
MOVED = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import jax, jax.numpy as jnp, numpy as np
from bombus.kernels import native
threads, callers = map(int, sys.argv[1:])

def told(x):
    here = lambda x: (np.int32(threading.get_native_id()), x + 1)
    return jax.pure_callback(here, (jax.ShapeDtypeStruct((), jnp.int32), jax.typeof(x)), x)

# Several times: the first may be done before XLA looks, and nobody waits then.
moved = jax.jit(lambda x: told(jax.lax.fori_loop(0, 40, lambda _, x: native.on_pool(x), x)))
stayed = jax.jit(told)
each = jax.jit(jax.vmap(native.on_pool))
x = jnp.arange(12)
np.testing.assert_array_equal(each(x.reshape(3, 4)), x.reshape(3, 4))

def ids(run):
    found = []
    for repeat in range(20):
        thread, y = run(x + repeat)
        np.testing.assert_array_equal(y, np.arange(12) + repeat + 1)
        found.append(int(thread))
    return set(found)

with ThreadPoolExecutor(callers) as pool:
    there = set().union(*pool.map(ids, [moved] * callers))
here = ids(stayed)
text = jax.jit(native.on_pool).trace(x).lower(lowering_platforms=("cuda",)).as_text()
assert "bombus" not in text
if jax.local_device_count() > 1:
    assert "bombus_move" not in moved.lower(x).as_text()
elif threads > 1:
    assert not there & here, (there, here)
    assert len(there) <= threads, (there, threads)
print("right")
"""


@pytest.mark.parametrize(("threads", "callers", "devices"), [(1, 3, 1), (2, 1, 1), (2, 5, 1), (8, 4, 1), (2, 1, 4)])
def test_a_program_goes_on_with_the_pools_threads(threads: int, callers: int, devices: int) -> None:
    """Not where there is one, or where several devices' programs could wait for each other; whoever else is there."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": str(threads), "XLA_FLAGS": flags}
    command = [sys.executable, "-P", "-c", MOVED, str(threads), str(callers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "right\n", done.stderr

"""Without the C++ kernels everything is computed all the same, and it is said once; wrong choices are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from native_weights import REASON, SOME, assert_product, exact, rows_of, weight_of

from bombus.kernels import native
from bombus.policies.errors import PolicyError

ROWS, INPUTS = (1, 5, 17), 77
# Products of some formats, saved; and what was warned of, printed.
PRODUCTS = """
import sys, warnings
from pathlib import Path
import jax, numpy as np
from bombus.kernels import native, product
target, *elsewhere = sys.argv[1:]
if elsewhere:  # where the library is looked for
    native.__file__ = str(Path(elsewhere[0]) / "native.py")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from test_without_kernels import ROWS, SOME, cases
    run = jax.jit(lambda x, weights: [product(x, w, compute_type=np.dtype("float32")) for w in weights])
    made, called = {}, set()
    for rows, x, weights in cases():
        called.add("bombus_product" in run.lower(x, weights).as_text())
        made |= {f"{rows} {case}": np.asarray(y) for case, y in zip(SOME, run(x, weights), strict=True)}
np.savez(target, **made)
print(native.kernels_in_use(), *called)
print(*(f"{w.category.__name__}: {w.message}" for w in caught if "bombus" in str(w.message)), sep="\\n", end="")
"""

WARNED = "RuntimeWarning: bombus runs without its C++ kernels, several times slower on CPU: "


def cases():
    """(number of rows, x, a weight of each of SOME) for each of ROWS."""
    for rows in ROWS:
        random = np.random.default_rng(rows)
        yield rows, rows_of(rows, INPUTS, np.float32, random), [weight_of(case, (90, INPUTS), random) for case in SOME]


def products(target: Path, *elsewhere: Path, **variables: str) -> str:
    """What PRODUCTS prints, with these environment variables; the products are compared with float64."""
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent / "support")))
    kept = {name: value for name, value in os.environ.items() if name != native.VARIABLE}
    environment = {**kept, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **variables}
    command = [sys.executable, "-c", PRODUCTS, str(target), *map(str, elsewhere)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(target)
    for rows, x, weights in cases():
        for case, weight in zip(SOME, weights, strict=True):
            assert_product(found[f"{rows} {case}"], x, exact(weight), (rows, case))
    return done.stdout


def test_xla_computes_the_same(tmp_path: Path) -> None:
    """To float32's rounding, and without a word: it was asked for."""
    assert products(tmp_path / "xla.npz", BOMBUS_KERNELS="xla") == "xla False\n"


def test_a_library_that_is_missing_is_said_once(tmp_path: Path) -> None:
    reason = "they were not built when the package was installed; a C++ compiler builds them"
    assert products(tmp_path / "made.npz", tmp_path) == f"xla False\n{WARNED}{reason}"


def test_a_library_that_does_not_load_is_said_once(tmp_path: Path) -> None:
    library = tmp_path / f"_native{native.EXTENSION_SUFFIXES[0]}"
    library.write_bytes(b"no library")
    found = products(tmp_path / "made.npz", tmp_path)
    warned = (
        "RuntimeWarning: bombus runs without its C++ kernels, several times slower on CPU: the library does not load: "
    )
    assert found.startswith(f"xla False\n{warned}")
    assert found.count("Warning") == 1
    assert str(library) in found


@pytest.mark.skipif(native.library().loaded is None, reason=REASON)
def test_kernels_by_name(tmp_path: Path) -> None:
    """The plainest runs wherever any do."""
    assert products(tmp_path / "plain.npz", BOMBUS_KERNELS="plain") == "plain True\n"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """`fresh(name)`: the library as a new process with $BOMBUS_KERNELS=name has it."""
    before = native.kernels_in_use()

    def load(name: str) -> native.Library:
        monkeypatch.setenv(native.VARIABLE, name)
        native.library.cache_clear()
        return native.library()

    yield load
    monkeypatch.undo()
    native.library.cache_clear()
    if before != native.XLA:
        native.library().loaded.bombus_choose(before.encode())


def refused(fresh, name: str) -> str:
    with pytest.raises(PolicyError) as caught:
        fresh(name)
    return str(caught.value)


def test_a_name_that_is_none(fresh) -> None:
    known = ", ".join((native.XLA, *native.NAMES))
    assert refused(fresh, "sse2") == f"BOMBUS_KERNELS=sse2: is no name of kernels (expected {known})"


def test_kernels_of_another_processor(fresh) -> None:
    mine = native.available()
    if not mine or set(mine) == set(native.NAMES):
        pytest.skip("this processor has all, or there are none")
    other = next(name for name in native.NAMES if name not in mine)
    text = refused(fresh, other)
    assert text == f"BOMBUS_KERNELS={other}: is not for this processor (expected one of its own: {', '.join(mine)})"
    fresh("")
    with pytest.raises(PolicyError) as caught, native.using_kernels(other):
        pass
    assert str(caught.value) == f"BOMBUS_KERNELS={other}: cannot be used here (expected {', '.join(mine)})"


def test_kernels_that_were_not_built(fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name they are an error, not a warning; XLA's can be asked for."""
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    reason = "they were not built when the package was installed; a C++ compiler builds them"
    assert refused(fresh, "plain") == f"BOMBUS_KERNELS=plain: cannot be used: {reason}"
    assert fresh("xla") == native.Library(loaded=None, reason="BOMBUS_KERNELS=xla")
    assert fresh("") == native.Library(loaded=None, reason=reason)
    assert native.available() == ()
    assert native.kernels_in_use() == "xla"


def test_no_warning_with_kernels_or_a_choice(fresh) -> None:
    """Only where they are missing without anybody having asked for that."""
    weight = weight_of("int8", (3, 4), np.random.default_rng(0))
    for name in ("xla", *native.available()):
        fresh(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert native.runs(weight, jax.numpy.dtype("float32")) is (name != "xla")

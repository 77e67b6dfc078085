"""What every test shares: strict promotion, real data where it is, tiny checkpoints made once."""

from __future__ import annotations

import os
import signal
from importlib.metadata import version

# Most of the tests' time is LLVM's, for programs that run once. Its optimizations change neither values nor buffers
# that the tests look at, and neither does how fusions are written down (which JAX 0.11 no longer lets one choose); the
# parity stage of CI runs as users do. Set before JAX starts.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jax") < "0.11" else ""),
)
# The commands keep what they compile for the next one; tests count what is compiled.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# What a script starts in its background inherits that Ctrl-C is ignored; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from bombus.testing import tiny_checkpoint

# Files and texts, the service they come from, what is refused before a model computes, and the ways in to what other
# tests compute: the marker `once`. The newer JAX is asked to load, save, compute, compile and generate.
_TESTS = Path(__file__).resolve().parent
ONCE = (
    *("malformed", "policies", "cli", "loader"),
    *("test_architecture.py", "test_notebooks.py", "test_readme.py", "test_train_shakespeare.py"),
    *(
        "test_packaging.py",
        "test_tables.py",
        "test_precision_properties.py",
        "kernels/test_quantiz",
        "kernels/test_requantize.py",
    ),
    *(f"generation/test_{name}" for name in ("text", "refusals", "request", "engine", "make_sampling", "processors")),
    *(f"generation/test_{name}" for name in ("beam", "contrastive", "lookup", "kv_formats", "batches", "streams")),
    *(f"models/test_{name}" for name in ("rotary", "mixture_specs", "spec", "released", "further_blocks", "onnx")),
    *(f"models/test_{name}" for name in ("cached_models", "goldens", "fp8_models")),
    *("layers/test_cache_formats.py", "layers/test_cache_attention.py", "generation/test_loop.py"),
    *("evaluation", "test_lazy_imports.py", "generation/test_kept.py", "test_packaging_kernels.py"),
    # .ci/run has those of the C++ kernels apart: the rest goes without them there.
    *(
        "kernels/test_native",
        "kernels/test_attention_kernel.py",
        "kernels/test_emulated.py",
        "kernels/test_sanitizers.py",
    ),
)
TWICE = ("loader/test_load.py", "loader/test_save.py")

# An implicit mix of types is a bug in a library about types.
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real checkpoints; its tests are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BOMBUS_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real checkpoints at {folder}; set BOMBUS_TEST_DATA")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands keep nothing in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        if "BOMBUS_CACHE" not in os.environ:
            patch.setenv("BOMBUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny(architecture, weights, **options)`: the folder of a tiny checkpoint, made once per session. Read only."""
    made: dict[Any, Path] = {}

    def make(architecture: str = "qwen3", weights: str = "f8_e4m3fn", **options: Any) -> Path:
        key = (architecture, weights, repr(sorted(options.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}-{weights}")
            made[key] = tiny_checkpoint(architecture, folder, weights, **options)
        return made[key]

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is under ONCE and not under TWICE."""
    for item in items:
        place = item.path.relative_to(_TESTS).as_posix() if item.path.is_relative_to(_TESTS) else ""
        if place.startswith(ONCE) and not place.startswith(TWICE):
            item.add_marker("once")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many malformed inputs were tried, of which rows of the list; tests/malformed says so of each."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    tried = [value for report in reports for name, value in report.user_properties if name == "malformed_input"]
    if tried:
        bounds = [row.partition("-") for row in tried]
        rows = {row for first, _, last in bounds for row in range(int(first), int(last or first) + 1)}
        terminalreporter.write_line(f"malformed inputs: {len(tried)} tried, of {len(rows)} rows of the list")

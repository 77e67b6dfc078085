"""Who is measured: Bombus, and the rivals it is compared with where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from bombus.evaluation.errors import EvaluationError
from bombus.evaluation.workload import Workload
from bombus.policies.errors import Problem, closest
from bombus.policies.mixed_precision import PolicyLike, as_precision

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who is measured, as a process can be told: `kind` says which class, `options` (plain data) what that takes.

    device: "cpu", "gpu", or None for what it chooses by itself.
    """

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    device: Device | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One generation: seconds to the first token, from there to the last, and the tokens of every row."""

    first_seconds: float
    decode_seconds: float
    tokens: list[list[int]]


class Prepared(TypedDict):
    """What a workload takes: bytes of the cache, and bytes that a decode step half way has to read."""

    cache_bytes: int
    step_bytes: float


class Measured(Protocol):
    """What runs in a contender's process."""

    def load(self) -> dict[str, Any]:
        """Imports are done before `load_seconds` begin; those, `load_memory`, `weight_bytes` and `versions`."""

    def prepare(self, workload: Workload) -> Prepared:
        """Programs or contexts for the workload."""

    def run(self, workload: Workload, new_tokens: int) -> Turn:
        """Prompts of the workload and at most its new tokens, greedy."""

    def peak_memory(self) -> int | None:
        """The device's high-water mark in bytes; None where the process's own is what counts."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Another runtime: the modules that it needs, and what installs them."""

    modules: tuple[str, ...]
    install: str


RIVALS = {
    "transformers": Rival(modules=("torch", "transformers"), install="pip install torch transformers"),
    "llama.cpp": Rival(modules=("llama_cpp",), install="pip install llama-cpp-python"),
}
GGUF_TYPES = ("Q8_0", "BF16")


def bombus_contender(
    repo: str | PathLike[str],
    *,
    name: str | None = None,
    policy: PolicyLike = None,
    preserve_source_types: bool = False,
    device: Device | None = None,
    **options: Any,
) -> Contender:
    """Bombus with a repository and what load_model takes. name: how tables call it."""
    if policy is not None and not isinstance(policy, str):
        policy = as_precision(policy).to_json()
    if name is None:
        named = policy if isinstance(policy, str) else "with a policy" if policy is not None else None
        name = ", ".join(filter(None, ("Bombus", "types kept" if preserve_source_types else None, named)))
    # A folder is as the user sees it, and a contender's process is in the same folder.
    arguments = {"repo": str(repo), "policy": policy, "preserve_source_types": preserve_source_types, **options}
    return Contender(name=name, kind="bombus", options=arguments, device=device)


def transformers_contender(folder: Path, *, device: Device | None = None) -> Contender:
    """transformers (torch) with the checkpoint in a folder, in the type that its configuration names."""
    return Contender(name="transformers", kind="transformers", options={"folder": str(folder)}, device=device)


def llama_cpp_contender(file: Path, *, name: str, tied_head: bool, device: Device | None = None) -> Contender:
    """llama.cpp with a GGUF file. tied_head: whether the embeddings are also the head."""
    options = {"file": str(file), "tied_head": tied_head}
    return Contender(name=name, kind="llama.cpp", options=options, device=device)


def check_rivals(
    names: Sequence[str],
    gguf: Path | None,
    *,
    is_there: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
) -> None:
    """Nothing; raises EvaluationError that lists every rival that does not exist or is not installed, and says what
    installs it, and a GGUF file that is not there or that nobody reads.
    """
    problems = []
    for name in names:
        if name not in RIVALS:
            problems.append(Problem(subject=f"contender {name!r}", message="is unknown", remedy=closest(name, RIVALS)))
        elif missing := [module for module in RIVALS[name].modules if not is_there(module)]:
            remedy = f"run `{RIVALS[name].install}`"
            problems.append(
                Problem(
                    subject=f"contender {name}", message=f"needs {' and '.join(missing)}, not installed", remedy=remedy
                )
            )
    if gguf is not None and "llama.cpp" not in names:
        problems.append(Problem(subject="gguf", message="is for llama.cpp", remedy="compare with it"))
    elif gguf is not None and not gguf.is_file():
        problems.append(Problem(subject="gguf", message="is no file", found=str(gguf)))
    elif gguf is None and "llama.cpp" in names and not is_there("gguf"):
        remedy = "run `pip install gguf`, or give a file: gguf=FILE (--gguf FILE)"
        problems.append(
            Problem(subject="contender llama.cpp", message="needs a GGUF file, and gguf makes it", remedy=remedy)
        )
    if problems:
        raise EvaluationError(problems)

"""A program whose children are killed while they write files, each at another point, and what that leaves.

    python killed_writer.py FOLDER CHECKPOINT ROUNDS

prints `Found` as JSON. A point is a number of calls of the operating system, drawn from a seed, so no clock decides.
The children are forked: starting Python fifty times would take minutes.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import bombus
from bombus.loader.generation_config import GenerationConfig
from bombus.loader.read import arrays_of
from bombus.loader.save import write_folder
from bombus.loader.write import TensorWriter

TENSORS = {
    "embedding": ((300, 64), np.dtype(np.float16)),
    "odd": ((7, 3), np.dtype(np.uint8)),
    "empty": ((0, 4), np.dtype(np.float32)),
    "scale": ((), np.dtype(np.float32)),
}
Write = Callable[[Path, int], None]
Files = dict[str, bytes]


@dataclass
class Found:
    """How the children ended, what was seen of their files afterwards, and everything that was wrong."""

    killed: int = 0
    finished: int = 0
    old: int = 0
    new: int = 0
    mixed: int = 0
    partials: int = 0
    wrong: list[str] = field(default_factory=list)


class Calls:
    """Counts calls of the operating system, and kills this process at the one with the number `last`."""

    def __init__(self) -> None:
        self.count = 0
        self.last: int | None = None
        self.before = False
        for name in ("open", "pwrite", "fsync", "replace", "unlink", "close"):
            self._wrap(os, name)
        self._wrap(fcntl, "flock")

    def _wrap(self, module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.last:
                if name == "pwrite":  # in the middle of it
                    file, data, position = arguments
                    real(file, memoryview(data)[: len(data) // 2], position)
                elif not self.before:
                    real(*arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(module, name, call)


def write_one(folder: Path, number: int) -> None:
    """A file with tensors that depend on the number."""
    with TensorWriter(folder / "one.safetensors", TENSORS) as writer:
        for name, (shape, dtype) in TENSORS.items():
            writer.write(name, np.full(shape, number).astype(dtype))


def saver(checkpoint: str) -> Write:
    """What writes a model in shards, with NumPy's arrays for parameters: a child starts no JAX."""
    plan = bombus.load_plan(checkpoint, preserve_source_types=True).plan

    def parameters(number: int) -> Iterator[dict[str, Any]]:
        for entry in plan.entries:
            yield {path: np.full(shape, number).astype(dtype) for path, (shape, dtype) in arrays_of(entry).items()}

    def write(folder: Path, number: int) -> None:
        order = [entry.path for entry in plan.entries]
        write_folder(plan.model, order, parameters(number), folder, GenerationConfig(), 10_000)

    return write


def files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".partial")}


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".partial")]


def kill_one(found: Found, calls: Calls, folder: Path, write: Write, number: int) -> None:
    """Write with one number as a whole, elsewhere; and then here, in a process that is killed at some point."""
    whole = folder.with_name(f"{folder.name}-{number}")
    whole.mkdir()
    first = calls.count
    write(whole, number)
    draw = random.Random(number)
    # A few more calls than that: some live, and who removes what a killed one left makes some more.
    last, before = draw.randint(1, calls.count - first + 6), draw.random() < 0.5
    old, new = files(folder), files(whole)
    child = os.fork()
    if child == 0:
        calls.count, calls.last, calls.before = 0, last, before
        write(folder, number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    now = files(folder)
    found.killed += os.WIFSIGNALED(status)
    found.finished += os.WIFEXITED(status)
    found.partials += len(partials(folder))
    found.old, found.new = found.old + (now == old), found.new + (now == new)
    found.mixed += now not in (old, new)
    for name in old.keys() | new.keys() | now.keys():
        if now.get(name) not in (old.get(name), new.get(name)):
            found.wrong.append(f"{name} of {number} is not whole, killed at call {last}")
    if os.WIFEXITED(status) and (now != new or partials(folder)):
        found.wrong.append(f"{number} ended, and left {sorted(now)} and {partials(folder)}")


def main(folder: Path, checkpoint: str, rounds: int) -> Found:
    """Kill half of the writers of one file, and half of those of a model in shards; then let one finish."""
    found, calls = Found(), Calls()
    for kind, write in (("one", write_one), ("model", saver(checkpoint))):
        place = folder / kind
        place.mkdir()
        for number in range(1, rounds // 2 + 1):
            kill_one(found, calls, place, write, number)
        write(place, 100)
        whole = folder / f"{kind}-100"
        whole.mkdir()
        write(whole, 100)
        if files(place) != files(whole) or partials(place):
            found.wrong.append(f"the next writer of {kind} left {os.listdir(place)}")
    return found


if __name__ == "__main__":
    print(json.dumps(asdict(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))))

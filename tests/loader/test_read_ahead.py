"""Tensors are read ahead: as many as it says and no more, and files that change meanwhile are an error of ours."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import pytest
from converted import as_bytes
from damaged import SIZES
from safetensors.numpy import load_file, save_file
from tqdm import TMonitor

import bombus
from bombus.loader import read
from bombus.loader.plan import LoadPlan
from bombus.loader.read import in_file_order, stream_parameters
from bombus.loader.tensors import TensorInfo
from bombus.models.model import nested
from bombus.policies.errors import Problem

WEIGHTS = "model.safetensors"


def threads() -> set[threading.Thread]:
    """Those that run, but for the one that every bar of tqdm shares."""
    return {thread for thread in threading.enumerate() if not isinstance(thread, TMonitor)}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """After every test here, whatever went wrong in it."""
    before = threads()
    yield
    assert threads() <= before


@pytest.fixture
def plan(llama: Path) -> LoadPlan:
    """Of a checkpoint of its own, one block, eleven tensors."""
    return bombus.load_plan(llama).plan


class Readers:
    """What is read, and when: tensors start to be read in the order in which they are asked for, one at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plan: LoadPlan) -> None:
        self.order = [source.tensor for _, source in in_file_order(plan)]
        self.started: list[str] = []
        self.before: dict[str, Callable[[], Any]] = {}
        self.turn = threading.Condition()
        real = TensorInfo.read

        def read(info: TensorInfo, name: str) -> Any:
            with self.turn:
                assert self.turn.wait_for(lambda: self.order[len(self.started)] == name, timeout=60)
                self.started.append(name)
                self.turn.notify_all()
                self.before.get(name, lambda: None)()
                return real(info, name)

        monkeypatch.setattr(TensorInfo, "read", read)

    def wait(self, count: int) -> None:
        """Until so many have been started."""
        with self.turn:
            assert self.turn.wait_for(lambda: len(self.started) >= count, timeout=60)


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch, plan: LoadPlan) -> Readers:
    return Readers(monkeypatch, plan)


@pytest.mark.parametrize("shards", [1, 3])
def test_the_order_is_that_of_the_files(shards: int, tiny: Callable[..., Path]) -> None:
    """File after file, forward in each; the parameters are those of a load."""
    folder = tiny("qwen3", "f8_e4m3fn", shards=shards, **SIZES)
    plan = bombus.load_plan(folder, preserve_source_types=True).plan
    places = [(source.info.file.name, source.info.start) for _, source in in_file_order(plan)]
    assert places == sorted(places)
    assert len({file for file, _ in places}) == shards
    streamed = list(stream_parameters(plan, None))
    assert [next(iter(arrays)) for arrays in streamed] == [entry.path for entry, _ in in_file_order(plan)]
    values = {path: array for arrays in streamed for path, array in arrays.items()}
    assert as_bytes(nested(values)) == as_bytes(bombus.load_model(folder, preserve_source_types=True).params)


def test_at_most_three_are_read_before_their_turn(
    plan: LoadPlan, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first is placed, the second and third are read, and no fourth is asked for."""
    asked = []

    class Counted(ThreadPoolExecutor):
        def submit(self, *arguments: Any) -> Any:
            asked.append(arguments)
            return super().submit(*arguments)

    monkeypatch.setattr(read, "ThreadPoolExecutor", Counted)
    with closing(stream_parameters(plan, None)) as parameters:
        assert readers.started == []
        for number, _ in enumerate(parameters, start=1):
            assert len(asked) == min(number + 2, 11)
            readers.wait(len(asked))
    assert readers.started == readers.order


def test_nothing_is_kept_of_what_was_given_out(plan: LoadPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that are ahead are in memory, when the one that was given out is let go."""
    alive: list[Any] = []
    real = TensorInfo.stored_bytes

    def stored_bytes(info: TensorInfo, name: str) -> Any:
        found = real(info, name)
        alive.append(weakref.ref(found.base))
        return found

    monkeypatch.setattr(TensorInfo, "stored_bytes", stored_bytes)

    def count() -> int:
        jax.device_put(0)  # JAX lets go of host memory when it is called the next time
        return sum(each() is not None for each in alive)

    counts = []
    for arrays in stream_parameters(plan, None):
        del arrays
        counts.append(count())
    assert len(alive) == len(counts) == 11
    assert max(counts) <= 2
    assert count() == 0


def replaced(path: Path, size: int) -> None:
    path.with_name("other").write_bytes(path.read_bytes()[:size])
    os.replace(path.with_name("other"), path)


CHANGES: dict[str, Callable[[Path, int], Any]] = {
    "cut short": os.truncate,
    "replaced by a shorter one": replaced,
    "deleted": lambda path, size: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("number", range(11))
def test_a_file_that_changes_while_it_is_read(change: str, number: int, plan: LoadPlan, readers: Readers) -> None:
    """In the middle of any tensor: what it is, and the tensor, and no thread is left."""
    _, source = in_file_order(plan)[number]
    left = source.info.nbytes // 2
    readers.before[source.tensor] = lambda: CHANGES[change](source.info.file, source.info.start + left)
    with pytest.raises(bombus.CheckpointError) as caught:
        read.read_parameters(plan, None)
    file, tensor = source.info.file, source.tensor
    if change == "deleted":
        said = f"tensor {tensor}: cannot be read: [Errno 2] No such file or directory: '{file}'"
    else:
        said = (
            f"tensor {tensor}: ends early: the file became shorter while it was read (expected {source.info.nbytes} "
            f"bytes, found {left}). Download the file again"
        )
    assert str(caught.value) == f"{file}: {said}"
    assert len(readers.started) <= number + 3


@pytest.mark.parametrize("cached", [True, False])
def test_load_model_says_the_same(cached: bool, llama: Path, readers: Readers, tmp_path: Path) -> None:
    """And keeps nothing of it."""
    readers.before[readers.order[5]] = lambda: os.truncate(llama / WEIGHTS, 5000)
    with pytest.raises(bombus.CheckpointError, match=r"ends early: the file became shorter while it was read"):
        bombus.load_model(llama, cache=tmp_path / "cache" if cached else None)
    assert not list(tmp_path.glob("cache/*")) + list(tmp_path.glob("cache/.*"))


@pytest.mark.parametrize("change", [CHANGES["cut short"], CHANGES["deleted"]], ids=["cut short", "deleted"])
def test_a_copy_that_is_compared(change: Callable[[Path, int], Any], tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A tied head, gone since its header was read: an error of ours that names file and tensor."""
    folder = Path(shutil.copytree(tiny("llama", "bf16", **SIZES), tmp_path / "checkpoint"))
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, folder / WEIGHTS)
    plan = bombus.load_plan(folder).plan
    change(folder / WEIGHTS, 3000)
    with pytest.raises(bombus.CheckpointError) as caught:
        read.read_parameters(plan, None)
    said = str(caught.value)
    assert said.startswith(f"{folder / WEIGHTS}: tensor lm_head.weight: ")
    # Not that they differ, which would be the wrong advice.
    assert "ends early" in said or "cannot be read" in said


class Unexpected(BaseException):
    """Not even an Exception."""


ERRORS = [
    bombus.CheckpointError(Problem(subject="a", message="b"), where="c"),
    MemoryError("no room"),
    KeyboardInterrupt("in a worker"),
    Unexpected("text"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("number", [0, 4, 10])
def test_errors_of_a_reader_come_as_they_are(
    error: BaseException, number: int, plan: LoadPlan, readers: Readers
) -> None:
    """In the place of their tensor: those before it are given out, and hardly any after it is read."""

    def refuse() -> None:
        raise error

    readers.before[readers.order[number]] = refuse
    given = []
    with pytest.raises(type(error)) as caught:
        given.extend(stream_parameters(plan, None))
    assert caught.value is error
    assert len(given) == number
    assert readers.started == readers.order[: len(readers.started)]
    assert len(readers.started) <= number + 3


@pytest.mark.parametrize("number", [0, 4, 10])
def test_ctrl_c_while_one_is_placed(
    number: int, plan: LoadPlan, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the load, and those that were to be read are not."""
    real, placed = read._place, []

    def place(*arguments: Any) -> Any:
        placed.append(arguments)
        if len(placed) > number:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(read, "_place", place)
    with pytest.raises(KeyboardInterrupt):
        read.read_parameters(plan, None)
    assert len(placed) == number + 1
    assert len(readers.started) <= number + 3


def test_ctrl_c_while_one_is_waited_for(plan: LoadPlan, readers: Readers) -> None:
    """A signal, as the terminal sends it; from a reader, when all of them run."""
    readers.before[readers.order[5]] = lambda: os.kill(os.getpid(), signal.SIGINT)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            read.read_parameters(plan, None)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_closed_early_it_reads_no_more(plan: LoadPlan, readers: Readers) -> None:
    """By who took two; who let it go; and who took nothing."""
    before = threads()
    parameters = stream_parameters(plan, None)
    next(parameters), next(parameters)
    assert threads() > before
    parameters.close()
    assert threads() == before
    assert 2 <= len(readers.started) <= 4
    count = len(readers.started)
    stream_parameters(plan, None).close()
    assert len(readers.started) == count


def test_an_error_of_who_takes_them(plan: LoadPlan, readers: Readers) -> None:
    """A writer whose disk is full: the readers stop although somebody holds on to the error."""

    def attempt() -> None:
        with closing(stream_parameters(plan, None)) as parameters:
            for _ in parameters:
                raise OSError("full")

    with pytest.raises(OSError, match="full") as caught:
        attempt()
    assert caught.value.__traceback__ is not None
    assert len(readers.started) <= 3


def test_two_at_once(plan: LoadPlan) -> None:
    """Each has its own readers."""
    with closing(stream_parameters(plan, None)) as one, closing(stream_parameters(plan, None)) as other:
        for ours, theirs in zip(one, other, strict=True):
            assert as_bytes(ours) == as_bytes(theirs)
    assert all(a != b for a, b in pairwise([entry.path for entry, _ in in_file_order(plan)]))

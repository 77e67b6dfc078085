"""The headers of PyTorch's checkpoints, read without PyTorch: `pytorch_model.bin`, `.pt` and `.pth`.

Two formats. A zip archive (since PyTorch 1.6) holds the pickle as NAME/data.pkl and each storage as NAME/data/KEY.
The older one is five pickles in a row (a magic number, a protocol, facts about the machine, the object, the keys of
its storages) and for each of these keys the number of its values (i64) and the values. Nothing in either is executed.

Source: torch 2.13's torch/serialization.py.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from bombus.loader.pickle_machine import MAX_BYTES, Global, shown
from bombus.loader.pickles import interpret
from bombus.loader.sniff import AGAIN, ZIP, is_pickle, is_safetensors, is_tar, placeholder
from bombus.loader.tensors import TensorInfo
from bombus.loader.torch_tensors import NAMES, Storage, StoredTensor, declare, locate
from bombus.loader.zip_records import DeflatedTensor, Record, read_record, read_records
from bombus.policies.errors import CheckpointError, Problem

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# Where training scripts keep the parameters, beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PLAIN = (type(None), bool, int, float, str)
_KINDS: dict[type, str] = {StoredTensor: "tensor", Storage: "storage", Global: "class or constant"}
_MAX_REPEATS = 16
_RESAVE = "load it with torch, and save only the parameters: `torch.save(model.state_dict(), path)`"


def read_torch_header(path: Path) -> dict[str, TensorInfo]:
    """Name -> TensorInfo of every tensor in a file of `torch.save`, without reading tensor bytes.

    The file holds a dict of tensors, or one under the key state_dict, model_state_dict or model of a dict; numbers,
    texts and None beside them are left out. Raises CheckpointError with all that is wrong with the file.
    """
    problems: list[Problem] = []
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if start.startswith(ZIP):
            value, records = _read_zip(file, path, problems)
        elif is_pickle(start):
            value, records = _read_pickles(file, path, problems)
        else:
            raise _error(_not_torch(start), path)
    tensors = {}
    for name, tensor in _named_tensors(value, problems).items():
        record = records.get(tensor.storage.key)
        found = None if record is None else locate(name, tensor, record, path)
        if isinstance(found, Problem):
            problems.append(found)
        elif found is not None:
            tensors[name] = found
    problems += _shared_too_often(tensors)
    if problems:
        raise _error(problems, path)
    return tensors


def _read_zip(file: BinaryIO, path: Path, problems: list[Problem]) -> tuple[Any, dict[str, Record]]:
    """(the object, storage key -> its record) of a zip archive."""
    archive = read_records(file, path)
    pickles = [name for name in archive if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        message = f"is not one of `torch.save`: it holds {len(pickles)} objects (data.pkl), not 1"
        raise _error(Problem(subject="zip archive", message=message, remedy=AGAIN), path)
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive:
        raise _error(Problem(subject="file", message="is a TorchScript program", remedy=_RESAVE), path)
    if order := archive.get(f"{root}byteorder"):
        _check_order(read_record(file, order, "byteorder", path, limit=16) == b"little", path)
    data = read_record(file, archive[pickles[0]], "data.pkl", path, limit=MAX_BYTES)
    storages: dict[str, Storage] = {}
    value, length = interpret(BytesIO(data), where=str(path), names=NAMES, persistent=partial(declare, storages))
    if length != len(data):
        problems.append(Problem(subject="data.pkl", message=f"has {len(data) - length} spare bytes at its end"))
    records = {}
    for key, storage in storages.items():
        record = archive.get(f"{root}data/{key}")
        if record is None:
            problems.append(Problem(subject=f"storage {shown(key)}", message="is not in the archive", remedy=AGAIN))
        elif record.size != storage.nbytes:
            problems.append(_wrong_size(storage, f"{storage.nbytes} bytes", f"{record.size}"))
        else:
            records[key] = record
    return value, records


def _read_pickles(file: BinaryIO, path: Path, problems: list[Problem]) -> tuple[Any, dict[str, Record]]:
    """(the object, storage key -> its record) of a file in the older format."""
    where = str(path)
    magic, _ = interpret(file, where=where)
    if magic != _MAGIC:
        message = "is a pickle, but not one of `torch.save`; it was not executed"
        raise _error(Problem(subject="file", message=message, remedy=AGAIN), path)
    protocol, _ = interpret(file, where=where)
    if protocol != _PROTOCOL:
        message = "is of another version of this format"
        raise _error(Problem(subject="file", message=message, expected=f"{_PROTOCOL}", remedy=_RESAVE), path)
    machine, _ = interpret(file, where=where)
    _check_order(type(machine) is dict and machine.get("little_endian") is True, path)
    storages: dict[str, Storage] = {}
    value, _ = interpret(file, where=where, names=NAMES, persistent=partial(declare, storages))
    keys, _ = interpret(file, where=where)
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        message = "are not those that the tensors are in"
        raise _error(Problem(subject="storages", message=message, remedy=AGAIN), path)
    position, size = file.tell(), os.fstat(file.fileno()).st_size
    end = position + sum(8 + storages[key].nbytes for key in keys)
    if end != size:
        what = (
            f"is cut short: {end - size} bytes are missing"
            if end > size
            else f"has {size - end} spare bytes at its end"
        )
        raise _error(
            Problem(subject="file", message=what, expected=f"{end} bytes", found=f"{size}", remedy=AGAIN), path
        )
    records = {}
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(os.pread(file.fileno(), 8, position), "little")
        if count != storage.numel:
            problems.append(_wrong_size(storage, f"{storage.numel} values", f"{count}"))
        start, position = position + 8, position + 8 + storage.nbytes
        records[key] = Record(start=start, stop=position, size=storage.nbytes)
    return value, records


def _named_tensors(value: Any, problems: list[Problem]) -> dict[str, StoredTensor]:
    """The tensors of an object by name; what else is in it is left out when it is plain, or is a problem."""
    if type(value) is not dict:
        message = f"holds a {_kind(value)}, not a dict of tensors"
        problems.append(Problem(subject="file", message=message, remedy=_RESAVE))
        return {}
    wrapper = next((key for key in _WRAPPERS if _holds_tensors(value.get(key))), None)
    beside, inside = ({}, value) if wrapper is None else (value, value[wrapper])
    for name, item in beside.items():
        if name != wrapper and type(item) not in _PLAIN:
            message = f"is a {_kind(item)} beside {wrapper!r}, and would be lost"
            problems.append(Problem(subject=f"entry {shown(name)}", message=message, remedy=_RESAVE))
    tensors = {}
    for name, item in inside.items():
        if type(item) is StoredTensor and type(name) is str:
            tensors[name] = item
        elif type(item) not in _PLAIN:
            message = f"is a {_kind(item)}, where a tensor with a name is expected"
            problems.append(Problem(subject=f"entry {shown(name)}", message=message, remedy=_RESAVE))
    return tensors


def _holds_tensors(value: Any) -> bool:
    return type(value) is dict and any(type(item) is StoredTensor for item in value.values())


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _shared_too_often(tensors: dict[str, TensorInfo]) -> list[Problem]:
    """A compressed storage is inflated for each of its tensors, which takes as long as all of it does each time."""
    work: Counter[Record] = Counter()
    for info in tensors.values():
        if isinstance(info, DeflatedTensor):
            work[info.record] += info.stop
    return [
        Problem(
            subject=f"storage at byte {record.start}",
            message="is compressed, and would be inflated too often: many tensors share it",
            expected=f"at most {_MAX_REPEATS} times",
            found=f"{inflated // record.size}",
            remedy=_RESAVE,
        )
        for record, inflated in work.items()
        if inflated > _MAX_REPEATS * record.size
    ]


def _wrong_size(storage: Storage, expected: str, found: str) -> Problem:
    message = "has another size in the file than in the pickle"
    return Problem(
        subject=f"storage {shown(storage.key)}", message=message, expected=expected, found=found, remedy=AGAIN
    )


def _check_order(is_little: bool, path: Path) -> None:
    if not is_little:
        message, remedy = "does not store numbers lowest byte first", "save it again on a little-endian machine"
        raise _error(Problem(subject="file", message=message, remedy=remedy), path)


def _not_torch(start: bytes) -> Problem:
    if instead := placeholder(start):
        return instead
    if is_safetensors(start):
        message, remedy = "is a safetensors file under another name", "rename it, to model.safetensors"
    elif is_tar(start):
        message, remedy = "is in the tar format of the first versions of PyTorch, which is not read", _RESAVE
    else:
        message, remedy = "is not a PyTorch checkpoint" if start else "is empty", AGAIN
    return Problem(subject="file", message=message, remedy=remedy)


def _error(problems: Problem | list[Problem], path: Path) -> CheckpointError:
    return CheckpointError(problems, where=str(path))

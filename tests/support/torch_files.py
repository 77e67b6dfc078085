"""Files as `torch.save` writes them, and such as it never would: pickles of our own making, in either format."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
# torch's name of a storage -> the type of its values in NumPy.
STORAGES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}


@dataclass(frozen=True)
class Name:
    """A global: "module.name"."""

    text: str


@dataclass(frozen=True)
class Call:
    """What a global gives when it is called."""

    function: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Persistent:
    """What a persistent id stands for."""

    identity: Any


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    code: bytes


def opcodes(value: Any) -> bytes:
    """The opcodes of protocol 2 that make a value."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if 0 <= value < 256:
            return b"K" + bytes([value])
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return b"}(" + b"".join(opcodes(key) + opcodes(item) for key, item in value.items()) + b"u"
        case Name(text):
            return "c{}\n{}\n".format(*text.rsplit(".", 1)).encode()
        case Call(function, arguments):
            return opcodes(Name(function)) + opcodes(arguments) + b"R"
        case Persistent(identity):
            return opcodes(identity) + b"Q"
        case Raw(code):
            return code
    raise TypeError(type(value))


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + opcodes(value) + b"."


def storage(key: str = "0", kind: str = "torch.FloatStorage", numel: Any = 6, *more: Any) -> Persistent:
    """A reference to a storage, as in a zip archive; the older format has one thing more, None."""
    return Persistent(("storage", Name(kind), key, "cpu", numel, *more))


def view(of: Any, offset: Any = 0, shape: Any = (2, 3), stride: Any = (3, 1), *metadata: Any) -> Call:
    """A tensor that is a view of a storage."""
    hooks = Call("collections.OrderedDict")
    return Call("torch._utils._rebuild_tensor_v2", (of, offset, shape, stride, False, hooks, *metadata))


def zip_file(
    value: Any,
    storages: Mapping[str, bytes],
    *,
    root: str = "archive",
    compression: int = zipfile.ZIP_STORED,
    records: Mapping[str, bytes] | None = None,
) -> bytes:
    """The newer format. `records`: more of them, or others in place of those that are there."""
    contents = {"data.pkl": value if isinstance(value, bytes) else pickled(value), "byteorder": b"little"}
    contents |= {f"data/{key}": data for key, data in storages.items()} | {"version": b"3\n"} | dict(records or {})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(f"{root}/{name}", data)
    return file.getvalue()


def central(content: bytes, name: bytes) -> int:
    """The position of a record's entry in the directory of an archive."""
    return content.rindex(b"archive/" + name) - 46


def patched(content: bytes, *changes: tuple[int, bytes]) -> bytes:
    """A file with other bytes at some positions."""
    result = bytearray(content)
    for position, data in changes:
        result[position : position + len(data)] = data
    return bytes(result)


def legacy_file(
    value: Any,
    storages: Mapping[str, np.ndarray],
    *,
    magic: Any = MAGIC,
    protocol: Any = 1001,
    machine: Any = None,
    keys: Any = None,
    spare: bytes = b"",
) -> bytes:
    """The older format. `storages`: key -> values, for their number and their bytes."""
    facts = {"protocol_version": 1001, "little_endian": True} if machine is None else machine
    pickles = [magic, protocol, facts, value, sorted(storages) if keys is None else keys]
    data = b"".join(item if isinstance(item, bytes) else pickled(item) for item in pickles)
    for key in sorted(storages):
        data += struct.pack("<q", storages[key].size) + storages[key].tobytes()
    return data + spare

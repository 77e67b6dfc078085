"""The two formats of torch's files, damaged or made to do harm: zip archives, and pickles with storages behind them.

Numbers are rows of the project's list of malformed inputs.
"""

from __future__ import annotations

import io
import warnings
import zipfile

import numpy as np
import pytest
from torch_files import central, legacy_file, patched, pickled, storage, view, zip_file
from torch_refusals import cheap_refusal, refusal

from bombus.loader import zip_records
from bombus.loader.torch_files import read_torch_header
from bombus.policies.errors import CheckpointError

AGAIN = "Download the file again, for example with `hf download`"
RESAVE = "Load it with torch, and save only the parameters: `torch.save(model.state_dict(), path)`"
VALUES = np.arange(6, dtype=np.float32) + 0.5
DATA = {"0": VALUES.tobytes()}
GOOD = zip_file({"w": view(storage())}, DATA)
OLD_STATE = {"w": view(storage("0", "torch.FloatStorage", 6, None))}
OLD = legacy_file(OLD_STATE, {"0": VALUES})


def u16(value):
    return value.to_bytes(2, "little")


def u32(value):
    return value.to_bytes(4, "little")


def inner():
    """An archive whose record data/1 lies inside the bytes of data/0."""
    part = b"PK\3\4" + bytes(14) + u32(4) + u32(4) + u16(14) + u16(0) + b"archive/data/1" + b"abcd"
    content = zip_file(
        {"w": view(storage("0", "torch.ByteStorage", len(part)), 0, (4,), (1,))}, {"0": part, "1": b"abcd"}
    )
    return patched(content, (central(content, b"data/1") + 42, u32(content.index(part))))


def twice():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        archive.writestr("archive/data.pkl", pickled({}))
        archive.writestr("archive/data.pkl", pickled({}))
    return file.getvalue()


def archive_of(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, pickled({}))
    return file.getvalue()


END = len(GOOD) - 22
NOT_THERE = "zip archive: has no directory where it should be"
OTHER = "is not where the directory says, or is another one there"
PACKED = zip_file({"w": view(storage())}, {"0": bytes(4000)}, compression=zipfile.ZIP_DEFLATED)

ARCHIVES = [
    ("11 cut short", GOOD[:-1], "zip archive: has no directory at its end: the file is cut short"),
    ("11 cut in the comment", patched(GOOD, (END + 20, u16(9))), "zip archive: is cut short in its comment"),
    ("12 spare bytes", GOOD + b"abc", f"zip archive: has 3 spare bytes at its end. {AGAIN}"),
    ("bytes before it", b"PK\3\4" + GOOD, NOT_THERE),
    ("directory outside", patched(GOOD, (END + 16, u32(2**31))), NOT_THERE),
    ("directory of 2^32 bytes", patched(GOOD, (END + 12, b"\xff" * 8)), NOT_THERE),
    ("two parts", patched(GOOD, (END + 4, u16(1))), "zip archive: is one of several parts"),
    (
        "one entry of four",
        patched(GOOD, (END + 8, u16(1) * 2)),
        "has a directory that does not end with its last entry",
    ),
    ("65,535 entries of four", patched(GOOD, (END + 8, b"\xff" * 4)), "zip archive: has a directory that ends early"),
    (
        "an entry that is none",
        patched(GOOD, (central(GOOD, b"data/0"), b"XX")),
        "has a directory with something else in it",
    ),
    (
        "a name that is too long",
        patched(GOOD, (central(GOOD, b"version") + 28, u16(999))),
        "does not end with its last",
    ),
    (
        "64 bits that are not there",
        patched(GOOD, (central(GOOD, b"data/0") + 24, b"\xff" * 4)),
        "zip archive: has a directory that ends early",
    ),
    ("64-bit directory outside", GOOD[:END] + b"PK\6\7" + b"\xff" * 16 + GOOD[END:], "a directory that ends early"),
    ("64-bit directory that is none", GOOD[:END] + b"PK\6\7" + bytes(16) + GOOD[END:], NOT_THERE),
    ("record outside", patched(GOOD, (central(GOOD, b"data/0") + 42, u32(2**31))), "record 'archive/data/0': " + OTHER),
    (
        "record elsewhere",
        patched(GOOD, (central(GOOD, b"data/0") + 42, u32(GOOD.index(b"archive/data/0") - 29))),
        "record 'archive/data/0': " + OTHER,
    ),
    ("no record there", patched(GOOD, (GOOD.index(b"archive/data/0") - 30, b"XX")), "'archive/data/0': " + OTHER),
    ("another name there", patched(GOOD, (GOOD.index(b"data/0"), b"data/9")), "record 'archive/data/0': " + OTHER),
    ("another method there", patched(GOOD, (GOOD.index(b"archive/data/0") - 22, u16(8))), OTHER),
    (
        "encrypted",
        patched(GOOD, (central(GOOD, b"data/0") + 8, u16(1))),
        "record 'archive/data/0': is encrypted. Write the",
    ),
    ("encrypted there", patched(GOOD, (GOOD.index(b"archive/data/0") - 24, u16(1))), "'archive/data/0': is encrypted"),
    (
        "bzip2",
        zip_file({}, {}, compression=zipfile.ZIP_BZIP2),
        "record 'archive/data.pkl': is compressed by method 12, which is not supported. Write the archive again, "
        "neither compressed nor encrypted (`zip -0`)",
    ),
    ("two sizes", patched(GOOD, (central(GOOD, b"data/0") + 24, u32(99))), "cannot have 99 bytes, from 24 in the file"),
    (
        "longer than it can be",
        patched(GOOD, (central(GOOD, b"data/0") + 20, u32(9**9) * 2)),
        "overlaps what comes after it",
    ),
    ("one inside another", inner(), "record 'archive/data/0': overlaps what comes after it"),
    ("two entries of one record", twice(), "record 'archive/data.pkl': stands twice in the archive"),
    ("two objects", archive_of("a/data.pkl", "b/data.pkl"), "it holds 2 objects (data.pkl), not 1"),
    (
        "no object",
        archive_of("data.pkl"),
        "zip archive: is not one of `torch.save`: it holds 0 objects (data.pkl), not 1",
    ),
    ("TorchScript", archive_of("a/data.pkl", "a/constants.pkl"), f"file: is a TorchScript program. {RESAVE}"),
    (
        "big-endian",
        zip_file({}, {}, records={"byteorder": b"big"}),
        "file: does not store numbers lowest byte first. Save it again on a little-endian machine",
    ),
    (
        "a long byte order",
        zip_file({}, {}, records={"byteorder": b"little" * 9}),
        "record byteorder: is too large (expected",
    ),
    ("spare bytes behind the pickle", zip_file(pickled({}) + b"abc", {}), "data.pkl: has 3 spare bytes at its end"),
    ("no storage", zip_file({"w": view(storage("7"))}, DATA), f"storage '7': is not in the archive. {AGAIN}"),
    (
        "a storage too short",
        zip_file({"w": view(storage())}, {"0": bytes(23)}),
        "storage '0': has another size in the file than in the pickle (expected 24 bytes, found 23). " + AGAIN,
    ),
    ("a storage too long", zip_file({"w": view(storage())}, {"0": bytes(25)}), "(expected 24 bytes, found 25)"),
    (
        "56 more than deflate can make",
        patched(PACKED, (central(PACKED, b"data/0") + 24, u32(2**31))),
        f"record 'archive/data/0': cannot have {2**31} bytes, from",
    ),
]
PICKLES = [
    (
        "another pickle",
        pickled({"w": 1}),
        f"file: is a pickle, but not one of `torch.save`; it was not executed. {AGAIN}",
    ),
    (
        "another protocol",
        legacy_file({}, {}, protocol=1002),
        "file: is of another version of this format (expected 1001)",
    ),
    (
        "big-endian",
        legacy_file({}, {}, machine={"little_endian": False}),
        "file: does not store numbers lowest byte first",
    ),
    ("no machine", legacy_file({}, {}, machine=[1]), "file: does not store numbers lowest byte first"),
    ("an id for the magic number", legacy_file({}, {}, magic=storage()), "global torch.FloatStorage: is not a name"),
    ("11 cut in a pickle", OLD[:60], "it ends early"),
    ("11 cut", OLD[:-5], f"file: is cut short: 5 bytes are missing (expected {len(OLD)} bytes, found {len(OLD) - 5})"),
    ("11 cut before all", OLD[:-32], "file: is cut short: 32 bytes are missing"),
    ("12 spare bytes", OLD + b"abc", f"file: has 3 spare bytes at its end (expected {len(OLD)} bytes, found"),
    (
        "a key too few",
        legacy_file(OLD_STATE, {"0": VALUES}, keys=[]),
        "storages: are not those that the tensors are in",
    ),
    ("a key too many", legacy_file(OLD_STATE, {"0": VALUES}, keys=["0", "1"]), "storages: are not those"),
    ("a key twice", legacy_file(OLD_STATE, {"0": VALUES}, keys=["0", "0"]), "storages: are not those"),
    ("keys that are numbers", legacy_file(OLD_STATE, {"0": VALUES}, keys=[0]), "storages: are not those"),
    ("keys of two types", legacy_file(OLD_STATE, {"0": VALUES}, keys=[0, "0"]), "storages: are not those"),
    ("keys that are no list", legacy_file(OLD_STATE, {"0": VALUES}, keys={"0": 1}), "storages: are not those"),
    (
        "another number of values",
        patched(OLD, (len(OLD) - 32, b"\5")),
        "storage '0': has another size in the file than in the pickle (expected 6 values, found 5)",
    ),
    ("2^64 - 1 values", patched(OLD, (len(OLD) - 32, b"\xff" * 8)), f"(expected 6 values, found {2**64 - 1})"),
]
REFUSED = [*((f"zip {row[0]}", *row[1:]) for row in ARCHIVES), *((f"legacy {row[0]}", *row[1:]) for row in PICKLES)]


@pytest.mark.parametrize(("content", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_file_is_refused_by_name(tmp_path, content, text):
    assert text in cheap_refusal(tmp_path / "pytorch_model.bin", content)


def test_a_directory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_records, "_MAX_DIRECTORY", 100)
    length = int.from_bytes(GOOD[END + 12 : END + 16], "little")
    assert f"zip archive: has a directory of {length} bytes, more than 100" in refusal(tmp_path / "w.bin", GOOD)


@pytest.mark.parametrize("form", ["stored", "deflated", "legacy"])
def test_changed_bytes_are_read_or_refused(tmp_path, form):
    """500 files with up to three other bytes each: nothing but values or a CheckpointError comes of them."""
    packed = zip_file({"w": view(storage())}, DATA, compression=zipfile.ZIP_DEFLATED)
    content = {"stored": GOOD, "deflated": packed, "legacy": OLD}[form]
    path, chance, refused = tmp_path / "w.bin", np.random.default_rng(0), 0
    for _ in range(500):
        places = chance.integers(0, len(content), chance.integers(1, 4))
        path.write_bytes(patched(content, *((int(place), chance.bytes(1)) for place in places)))
        try:
            for name, info in read_torch_header(path).items():
                assert info.read(name).nbytes <= 24
        except CheckpointError:
            refused += 1
    assert 100 < refused < 500

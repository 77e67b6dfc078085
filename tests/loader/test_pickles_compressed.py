"""Compressed archives: what they cost is bounded by what they declare, and by what is read of them.

Numbers are rows of the project's list of malformed inputs.
"""

from __future__ import annotations

import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_files import central, patched, storage, view, zip_file
from torch_refusals import refusal

from bombus.loader.torch_files import read_torch_header
from bombus.policies.errors import CheckpointError

AGAIN = "Download the file again, for example with `hf download`"


def deflated(value, storages, **changes):
    """A compressed archive, with other sizes in its directory: record name -> size."""
    content = zip_file(value, storages, compression=zipfile.ZIP_DEFLATED)
    sizes = ((central(content, name.encode()) + 24, size.to_bytes(4, "little")) for name, size in changes.items())
    return patched(content, *sizes)


def test_56_a_bomb_in_place_of_the_pickle_costs_no_memory(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(deflated(bytes(100_000_001), {}))
    assert path.stat().st_size < 150_000
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_torch_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = "record data.pkl: is too large (expected at most 100000000 bytes, found 100000001)"
    assert str(caught.value) == f"{path}: {text}"
    assert peak < 1_000_000


@pytest.mark.parametrize(("size", "what"), [(9_000_000, "more"), (9 << 20, "more"), (10_000_001, "less")])
def test_56_a_record_inflates_to_what_the_archive_says(tmp_path, size, what):
    """Of data.pkl while the header is read, of a storage when a tensor is: bounded by what is declared."""
    path = tmp_path / "w.bin"
    text = refusal(path, deflated(bytes(10_000_000), {}, **{"data.pkl": size}))
    assert text == f"{path}: record data.pkl: inflates to {what} than the archive says (expected {size} bytes). {AGAIN}"
    of = storage("0", "torch.ByteStorage", size)
    state = {"all": view(of, 0, (size,), (1,)), "first": view(of, 0, (5,), (1,)), "last": view(of, size - 1, (), ())}
    path.write_bytes(deflated(state, {"0": bytes(10_000_000)}, **{"data/0": size}))
    header = read_torch_header(path)
    assert header["first"].read("first").tolist() == [0] * 5
    for name in ("all", "last"):
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError, match=f"tensor {name}: inflates to {what} than the archive says"):
                header[name].read(name)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 5_000_000 + (size if name == "all" else 0)


def test_56_a_compressed_storage_is_not_shared_by_many_tensors(tmp_path):
    path = tmp_path / "w.bin"
    state = {f"w{number}": view(storage("0", numel=1000), 999, (), ()) for number in range(17)}
    text = refusal(path, deflated(state, {"0": bytes(4000)}))
    assert (
        "is compressed, and would be inflated too often: many tensors share it (expected at most 16 times, found 17)"
        in text
    )
    del state["w0"]
    path.write_bytes(deflated(state, {"0": bytes(4000)}))
    assert len(read_torch_header(path)) == 16
    # Those that are not compressed are read where they are.
    path.write_bytes(zip_file(state | {"w0": view(storage("0", numel=1000), 999, (), ())}, {"0": bytes(4000)}))
    assert len(read_torch_header(path)) == 17


def test_a_compressed_storage_costs_what_is_read_of_it(tmp_path):
    """64 MB of zeros in 64 KB: the header costs next to nothing, a tensor its own size and a piece."""
    count = 16_000_000
    values = np.zeros(count, np.float32)
    values[-3:] = 1, 2, 3
    state = {
        "end": view(storage("0", numel=count), count - 3, (3,), (1,)),
        "all": view(storage("0", numel=count), 0, (count,), (1,)),
    }
    path = tmp_path / "w.bin"
    path.write_bytes(deflated(state, {"0": values.tobytes()}))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        header = read_torch_header(path)
        read_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        end = header["end"].read("end")
        end_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert end.tolist() == [1, 2, 3]
    assert read_peak < 1_000_000
    assert end_peak < 5_000_000
    np.testing.assert_array_equal(header["all"].read("all"), values, strict=True)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data, at: data[:at], "inflates to less than the archive says"),
        (lambda data, at: data[:at] + b"\xff" * (len(data) - at), "cannot be inflated: Error -3"),
        (None, "cannot be read: "),
    ],
    ids=["cut", "overwritten", "removed"],
)
def test_a_compressed_file_that_changes_is_an_error(tmp_path, damage, text):
    values = np.arange(1000, dtype=np.float32)
    path = tmp_path / "w.bin"
    path.write_bytes(deflated({"w": view(storage("0", numel=1000), 0, (1000,), (1,))}, {"0": values.tobytes()}))
    info = read_torch_header(path)["w"]
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes(), info.record.start + 50))
    with pytest.raises(CheckpointError) as caught:
        info.read("a.weight")
    assert str(caught.value).startswith(f"{path}: tensor a.weight: {text}")

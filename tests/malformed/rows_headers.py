"""Rows 1 to 26: what a safetensors file can be in place of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from malformed import WEIGHTS, case, entry, raw, small, whole, with_header
from safetensors.numpy import load_file, save

from bombus import CheckpointError

KIND = CheckpointError


@case("1", KIND)
def empty_file(folder: Path) -> None:
    raw(folder, b"")


@case("2", KIND)
def seven_bytes(folder: Path) -> None:
    raw(folder, bytes(7))


@case("3", KIND)
def header_longer_than_the_file(folder: Path) -> None:
    raw(folder, (1000).to_bytes(8, "little") + b"{}")


@case("4", KIND)
def header_of_all_ones(folder: Path) -> None:
    raw(folder, b"\xff" * 8 + b"{}")


@case("4", KIND)
def header_of_more_than_100_mb_in_a_sparse_file(folder: Path) -> None:
    with (folder / WEIGHTS).open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)


@case("5", KIND)
def header_not_utf_8(folder: Path) -> None:
    raw(folder, with_header(b'{"\xff": 1}'))


@case("6", KIND)
def header_not_json(folder: Path) -> None:
    raw(folder, with_header(b'{"a": '))


@case("7", KIND)
def header_nested_100_000_deep(folder: Path) -> None:
    raw(folder, with_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))


@case("8", KIND)
def git_lfs_pointer(folder: Path) -> None:
    raw(folder, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16\n")


@case("9", KIND)
def html_page(folder: Path) -> None:
    raw(folder, b"<!DOCTYPE html>\n<html><body>502 Bad Gateway</body></html>")


@case("10", KIND)
def pickle_under_another_name(folder: Path) -> None:
    raw(folder, b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")


@case("10", KIND)
def zipped_pickle_under_another_name(folder: Path) -> None:
    raw(folder, b"PK\x03\x04" + bytes(100))


@case("11", KIND)
def cut_short(folder: Path) -> None:
    raw(folder, whole(folder)[:-10])


@case("12", KIND)
def trailing_bytes(folder: Path) -> None:
    raw(folder, whole(folder) + bytes(3))


@case("13", KIND)
def hole_between_tensors(folder: Path) -> None:
    raw(folder, small({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)))


@case("14", KIND)
def overlapping_tensors(folder: Path) -> None:
    raw(folder, small({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)))


@case("15", KIND)
def reversed_offsets(folder: Path) -> None:
    raw(folder, small({"a": entry(8, 0)}))


@case("15", KIND)
def negative_offsets(folder: Path) -> None:
    raw(folder, small({"a": entry(-8, 0)}))


@case("16", KIND)
def tensor_twice(folder: Path) -> None:
    raw(folder, small(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}'))


@case("17", KIND)
def key_twice_in_an_entry(folder: Path) -> None:
    raw(folder, small('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'))


@case("18", KIND)
def unknown_dtype(folder: Path) -> None:
    raw(folder, small({"a": entry(dtype="F9")}))


@case("19", KIND)
def size_that_does_not_fit(folder: Path) -> None:
    raw(folder, small({"a": entry(shape=[3])}))


@case("20", KIND)
def half_a_byte_of_fp4(folder: Path) -> None:
    raw(folder, small({"a": entry(0, 2, [3], "F4")}, bytes(2)))


@case("21", KIND)
def shape_product_that_overflows(folder: Path) -> None:
    raw(folder, small({"a": entry(shape=[2**33, 2**33])}))


@case("21", KIND)
def size_that_no_integer_holds(folder: Path) -> None:
    raw(folder, small({"a": entry(shape=[2**64])}))


@case("21", KIND)
def no_values_of_a_shape_that_overflows(folder: Path) -> None:
    raw(folder, small({"a": entry(0, 0, [0, 2**40, 2**40])}, b""))


@case("22", KIND)
def negative_dimension(folder: Path) -> None:
    raw(folder, small({"a": entry(shape=[-2])}))


@case("22", KIND)
def fractional_dimension(folder: Path) -> None:
    raw(folder, small({"a": entry(shape=[2.0])}))


@case("23", KIND)
def sixty_five_dimensions(folder: Path) -> None:
    raw(folder, small({"a": entry(shape=[1] * 63 + [2, 1])}))


@case("24")
def zero_dimension(folder: Path) -> None:
    """On the written list of what a model does not need, so that only the header counts."""
    tensors = load_file(folder / WEIGHTS)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    raw(folder, save(tensors | {name: np.zeros((0, 2**40), np.float32)}))


@case("25", KIND)
def metadata_that_is_no_string(folder: Path) -> None:
    raw(folder, small({"__metadata__": {"format": 1}, "a": entry()}))


@case("26")
def tensors_at_odd_places(folder: Path) -> None:
    """One byte before the others moves them all: neither aligned to their type nor to 64 bytes."""
    data = whole(folder)
    length = int.from_bytes(data[:8], "little")
    header = {"model.layers.0.self_attn.rotary_emb.inv_freq": entry(0, 1, [1], "U8")}
    for name, value in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            value["data_offsets"] = [offset + 1 for offset in value["data_offsets"]]
            header[name] = value
    raw(folder, with_header(json.dumps(header).encode(), b"\x00" + data[8 + length :]))

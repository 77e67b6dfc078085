"""GPTQ's and AWQ's layouts: weights stored inputs first, in int32 words, with zero points; and their configuration.

Sources: AutoGPTQ's and GPTQModel's QuantLinear, AutoAWQ's WQLinear_GEMM. Both decode (code - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bombus.loader.compressed import refused
from bombus.loader.layouts import CODES, Layout, nibbles, out_of_order, pack_bytes
from bombus.policies.formats import DType, Format, Shape, find_format

# The place in a word of each of eight codes in a row.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_WORDS = {CODES: "qweight", "scale_inv": "scales", "zero_point": "qzeros"}


@dataclass(frozen=True, kw_only=True)
class GptqLayout(Layout):
    """GPTQ: int32 words along the inputs; zero points along the outputs, `less` below what they are.

    int8 has no zero points here: the file's must all be 128.
    """

    less: int = 1

    def file_type(self, leaf: str, format: Format, shape: Shape) -> tuple[Shape, DType]:
        """See Layout."""
        words = np.dtype(np.int32)
        per_word = 32 // format.kind.bits
        outputs, groups = format.grid(shape)
        if leaf == CODES:
            return (-(-shape[1] // per_word), shape[0]), words
        if leaf == "zero_point":
            return (groups, -(-outputs // per_word)), words
        return (groups, outputs), format.scale_type

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """See Layout."""
        if leaf == "zero_point":
            zeros = nibbles(np.ascontiguousarray(tensor).view(np.uint8))[:, : shape[0]]
            # 15 stands for zero: the packing knows four bits, as in AutoGPTQ since 0.5.
            return np.ascontiguousarray(zeros.T) + np.uint8(self.less) & np.uint8(15)
        turned = np.ascontiguousarray(tensor.T)
        if leaf != CODES:
            return turned
        codes = np.ascontiguousarray(turned.view(np.uint8)[:, : format.codes_shape(shape)[1]])
        return codes if format.packed else (codes ^ 0x80).view(np.int8)

    def contradiction(self, word: str, tensor: np.ndarray, format: Format, shape: Shape) -> str | None:
        """See Layout."""
        if word == "g_idx":
            return out_of_order(tensor, format, shape)
        zeros = np.ascontiguousarray(tensor).view(np.uint8)
        return None if format.packed or (zeros == 128 - self.less).all() else "zero points of 128, which int8 has"


@dataclass(frozen=True, kw_only=True)
class AwqLayout(GptqLayout):
    """AWQ's GEMM version: int32 words along the outputs, of eight codes in an order of their own."""

    less: int = 0

    def file_type(self, leaf: str, format: Format, shape: Shape) -> tuple[Shape, DType]:
        """See Layout."""
        if leaf == CODES:
            return (shape[1], -(-shape[0] // 8)), np.dtype(np.int32)
        return super().file_type(leaf, format, shape)

    def from_file(self, leaf: str, tensor: np.ndarray, format: Format, shape: Shape) -> np.ndarray:
        """See Layout."""
        if leaf == "scale_inv":
            return super().from_file(leaf, tensor, format, shape)
        rows = nibbles(np.ascontiguousarray(tensor).view(np.uint8))
        codes = rows.reshape(len(rows), -1, 8)[:, :, _AWQ_ORDER].reshape(len(rows), -1)[:, : shape[0]]
        turned = np.ascontiguousarray(codes.T)
        return turned if leaf == "zero_point" else pack_bytes(np.pad(turned, ((0, 0), (0, shape[1] % 2))))


@dataclass(frozen=True, kw_only=True)
class Qweight:
    """What a configuration says of all `qweight` tensors of a checkpoint."""

    layout: Layout
    format: Format


def read_gptq(section: Mapping[str, Any]) -> Qweight:
    """GPTQ's configuration. Raises SpecError for what is not supported."""
    bits, (field, version) = section.get("bits"), _version(section, "checkpoint_format", "gptq")
    if bits not in (4, 8):
        raise refused("quantization_config.bits", repr(bits), "4 or 8")
    if section.get("desc_act"):
        raise refused(
            "quantization_config.desc_act", repr(section["desc_act"]), "False: groups of inputs in their order"
        )
    if version not in ("gptq", "gptq_v2"):
        raise refused(f"quantization_config.{field}", repr(section[field]), "'gptq' or 'gptq_v2'")
    if bits == 8 and section.get("sym") is False:
        raise refused("quantization_config.sym", "False", "True with 8 bits")
    told = ("g_idx",) if bits == 4 else ("g_idx", "qzeros")
    layout = GptqLayout(words=_WORDS, told=told, less=1 if version == "gptq" else 0)
    return _qweight(section, layout, f"int{bits}", "" if bits == 8 else ", zero_points")


def read_awq(section: Mapping[str, Any]) -> Qweight:
    """AWQ's configuration. Raises SpecError for what is not supported."""
    bits, (field, version) = section.get("bits", section.get("w_bit")), _version(section, "version", "gemm")
    if bits != 4:
        raise refused("quantization_config.bits", repr(bits), "4")
    if version != "gemm":
        raise refused(f"quantization_config.{field}", repr(section[field]), "'gemm'")
    if section.get("zero_point") is False:
        raise refused("quantization_config.zero_point", "False", "True")
    return _qweight(section, AwqLayout(words=_WORDS), "int4", ", zero_points")


def _version(section: Mapping[str, Any], field: str, default: str) -> tuple[str, str]:
    """(the field that says the version of the layout, what it says); newer files call it `format`."""
    field = field if section.get(field) else "format"
    return field, str(section.get(field) or default).lower()


def _qweight(section: Mapping[str, Any], layout: Layout, name: str, zeros: str) -> Qweight:
    group = section.get("group_size", section.get("q_group_size"))
    if type(group) is not int or (group < 1 and group != -1):
        raise refused("quantization_config.group_size", repr(group), "a number of inputs, or -1")
    shown = "channel" if group == -1 else group
    return Qweight(layout=layout, format=find_format(f"{name}(group={shown}{zeros}, scale=f16)").canonical)

"""What `quantization_config` of config.json says about low-precision weights, read and written.

Three conventions: Hugging Face's block FP8 ("fp8"), compressed-tensors, and this project's own ("bombus"), which
holds every format: `{"quant_method": "bombus", "version": 1, "formats": {LAYER: FORMAT}}` beside tensors as in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bombus.loader.compressed import Group, find_group, read_groups, refused, write_compressed
from bombus.loader.layouts import BLOCK_FP8, CODES, COMPRESSED, OWN, Layout
from bombus.loader.tensors import TensorInfo
from bombus.policies.errors import BombusError, Problem, SpecError
from bombus.policies.formats import FORMATS, DType, Format, Shape, find_format

_VERSION = 1
_FP8 = FORMATS["f8_e4m3fn"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Where the low-precision weights of a checkpoint are and in which format: by default block FP8."""

    block_shape: tuple[int, int] = _FP8.options["tile"]

    def find(self, layer: str, headers: Mapping[str, TensorInfo]) -> tuple[Layout, Format] | None:
        """The layout and the format of a layer's weight, if it is in low precision."""
        info = headers.get(f"{layer}.weight")
        if info is None or info.dtype != _FP8.dtype:
            return None
        return BLOCK_FP8, Format("f8_e4m3fn", (("tile", self.block_shape),)).canonical


@dataclass(frozen=True, kw_only=True)
class CompressedScheme(Scheme):
    """compressed-tensors: the first group of the configuration that targets a layer says its format."""

    groups: tuple[Group, ...]
    ignore: tuple[str, ...] = ()

    def find(self, layer: str, headers: Mapping[str, TensorInfo]) -> tuple[Layout, Format] | None:
        """See Scheme."""
        format = find_group(layer, self.groups, self.ignore)
        if format is None:
            return None
        return _present(layer, headers, format, COMPRESSED[format.name])


@dataclass(frozen=True, kw_only=True)
class OwnScheme(Scheme):
    """This project's own: every layer is listed."""

    formats: Mapping[str, Format] = field(default_factory=dict)

    def find(self, layer: str, headers: Mapping[str, TensorInfo]) -> tuple[Layout, Format] | None:
        """See Scheme."""
        format = self.formats.get(layer)
        return None if format is None else _present(layer, headers, format, (OWN,))


def _present(
    layer: str, headers: Mapping[str, TensorInfo], format: Format, layouts: tuple[Layout, ...]
) -> tuple[Layout, Format] | None:
    """The layout whose codes are there. The tensors decide: a weight that is stored as it is needs no format."""
    for layout in layouts:
        info = headers.get(f"{layer}.{layout.words[CODES]}")
        # The shape is checked with that of the parameter, later.
        if info is not None and info.dtype == layout.file_type(CODES, format, (1, 1))[1]:
            return layout, format
    return None


def read_scheme(config: Mapping[str, Any]) -> Scheme:
    """The scheme of a checkpoint, from its config.json.

    Raises SpecError for a convention that is not supported, by the name of the field that says so.
    """
    section = config.get("quantization_config")
    if section is None:
        return Scheme()
    if not isinstance(section, Mapping):
        raise refused("quantization_config", repr(section), "an object")
    method = section.get("quant_method")
    if method == "fp8":
        return Scheme(block_shape=_read_block_shape(section))
    if method == "compressed-tensors":
        groups, ignore = read_groups(section)
        return CompressedScheme(groups=groups, ignore=ignore)
    if method == "bombus":
        return _read_own(section)
    expected = "'fp8' (block FP8), 'compressed-tensors' or 'bombus'"
    raise refused("quantization_config.quant_method", repr(method), expected)


def read_declared_type(config: Mapping[str, Any]) -> DType | None:
    """The type of the model that config.json names (`dtype`, or `torch_dtype` in older ones), if it is one of ours."""
    names = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
    name = names.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."))
    return None if name is None else find_format(name).dtype


def _read_block_shape(section: Mapping[str, Any]) -> tuple[int, int]:
    if section.get("activation_scheme", "dynamic") != "dynamic":
        raise refused("quantization_config.activation_scheme", repr(section["activation_scheme"]), "'dynamic'")
    size = section.get("weight_block_size", list(_FP8.options["tile"]))
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise refused("quantization_config.weight_block_size", repr(size), "two positive sizes, like [128, 128]")
    return size[0], size[1]


def _read_own(section: Mapping[str, Any]) -> OwnScheme:
    version, formats = section.get("version"), section.get("formats")
    if type(version) is not int or version != _VERSION:
        raise refused("quantization_config.version", repr(version), f"{_VERSION}; a newer one needs a newer bombus")
    if not isinstance(formats, Mapping):
        raise refused("quantization_config.formats", repr(formats), "an object of layer: format")
    problems: list[Problem] = []
    found: dict[str, Format] = {}
    for layer, text in formats.items():
        try:
            found[layer] = find_format(text).canonical
        except BombusError as error:
            problems += [replace(problem, subject=f"layer {layer}, {problem.subject}") for problem in error.problems]
    if problems:
        raise SpecError(problems, where="config.json, quantization_config.formats")
    return OwnScheme(formats=found)


def write_quantization(
    formats: Mapping[str, Format], shapes: Mapping[str, Shape], embeddings: frozenset[str]
) -> tuple[dict[str, Any], Layout | None]:
    """The `quantization_config` of weights of these formats and shapes, by their layers' names, and their layout.

    None for the layout stands for compressed-tensors', which depends on the format. Block FP8 and compressed-tensors
    where these can say it, as transformers and vLLM read them; else this project's own.
    """
    low = {layer: format.canonical for layer, format in formats.items() if format.is_low}
    plain = [layer for layer, format in formats.items() if not format.is_low and layer not in embeddings]
    tiles = {format.tile for format in low.values()}
    if embeddings.isdisjoint(low):
        only_fp8 = all(format.name == "f8_e4m3fn" for format in low.values())
        tile = next(iter(tiles))
        if only_fp8 and len(tiles) == 1 and min(tile) > 0:
            return write_block_fp8(tile, plain), BLOCK_FP8
        if all(_compressible(format, shapes[layer]) for layer, format in low.items()):
            return write_compressed(low, plain), None
    texts = {layer: str(format) for layer, format in low.items()}
    return {"quant_method": "bombus", "version": _VERSION, "formats": texts}, OWN


def write_block_fp8(block_shape: tuple[int, int], not_converted: list[str]) -> dict[str, Any]:
    """The `quantization_config` of a block-FP8 checkpoint, as transformers and vLLM read it."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(block_shape),
        "modules_to_not_convert": not_converted,
    }


def _compressible(format: Format, shape: Shape) -> bool:
    """Whether compressed-tensors has a name for this format with these options, and takes the weight's shape."""
    rows, columns = format.tile
    if rows == 1 and columns and shape[1] % columns:
        return False  # it has blocks that are partial, but not groups
    if format.name not in COMPRESSED or (format.name == "mxfp8" and format.option("element") != "f8_e4m3fn"):
        return False
    return "scale" not in format.kind.options or format.option("scale") != "e8m0"

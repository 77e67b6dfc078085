"""What `quantization_config` of config.json says about low-precision weights, read and written.

It is compared with what the tensors show (conventions.py) and completes it. This project's own convention holds every
format: `{"quant_method": "bombus", "version": 1, "formats": {LAYER: FORMAT}}` beside tensors as in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bombus.loader.compressed import Group, find_group, read_groups, refused, write_compressed
from bombus.loader.conventions import OwnScheme, Scheme
from bombus.loader.layouts import BLOCK_FP8, COMPRESSED, OWN, Layout
from bombus.loader.qweight import read_awq, read_gptq
from bombus.policies.errors import BombusError, Problem, SpecError
from bombus.policies.formats import FORMATS, DType, Format, Shape, find_format
from bombus.policies.kinds import FLOATS

MODELOPT_FILE = "hf_quant_config.json"
_VERSION = 1
_FP8_TILE = FORMATS["f8_e4m3fn"].options["tile"]
_FLOAT8 = ("f8_e4m3fn", "f8_e5m2")
# modelopt's algorithms, and the formats that their weights are in.
_ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "FP8": _FLOAT8,
    "FP8_PER_CHANNEL_PER_TOKEN": _FLOAT8,
    "FP8_PB_WO": _FLOAT8,
    "MXFP8": ("mxfp8",),
    "NVFP4": ("nvfp4",),
    "W4A16_NVFP4": ("nvfp4",),
    "MIXED_PRECISION": (*_FLOAT8, "mxfp8", "nvfp4"),
}


@dataclass(frozen=True, kw_only=True)
class CompressedScheme(Scheme):
    """compressed-tensors: the group of the configuration that targets a layer says its format."""

    groups: tuple[Group, ...]
    ignore: tuple[str, ...] = ()

    def declared(self, layer: str) -> Format | None:
        """See Scheme."""
        return find_group(layer, self.groups, self.ignore)


def read_scheme(config: Mapping[str, Any], modelopt: Mapping[str, Any] | None = None) -> Scheme:
    """What a checkpoint's config.json, or its hf_quant_config.json (modelopt's), says about its weights.

    Raises SpecError for a convention that is not supported, by the name of the field that says so.
    """
    section = config.get("quantization_config")
    if section is None and modelopt is not None:
        return _read_modelopt(modelopt, "quantization", MODELOPT_FILE)
    if section is None:
        return Scheme()
    if not isinstance(section, Mapping):
        raise refused("quantization_config", repr(section), "an object")
    method = section.get("quant_method")
    if not isinstance(method, str) or method not in _READERS:
        remedy = _ELSEWHERE.get(str(method))
        expected = "one of " + ", ".join(map(repr, _READERS))
        raise refused("quantization_config.quant_method", repr(method), expected, remedy)
    return _READERS[method](section)


def read_declared_type(config: Mapping[str, Any]) -> DType | None:
    """The type of the model that config.json names (`dtype`, or `torch_dtype` in older ones), if it is one of ours."""
    # torch calls 16- and 32-bit types as NumPy does.
    name = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return next((kind.dtype for short, kind in FORMATS.items() if short in FLOATS and kind.dtype.name == name), None)


def _read_fp8(section: Mapping[str, Any]) -> Scheme:
    scheme = section.get("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static", None):
        raise refused("quantization_config.activation_scheme", repr(scheme), "'dynamic' or 'static'")
    if section.get("expert_dtype", "fp8") != "fp8":
        raise refused("quantization_config.expert_dtype", repr(section["expert_dtype"]), "'fp8'")
    tile = find_format("mxfp8").tile if section.get("quant_method") == "mxfp8" else _FP8_TILE
    size = section.get("weight_block_size", list(tile))
    is_block = isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    if size is not None and not is_block:
        raise refused("quantization_config.weight_block_size", repr(size), "two positive sizes, like [128, 128]")
    return Scheme(method="fp8", block_shape=None if size is None else (size[0], size[1]), names=(*_FLOAT8, "mxfp8"))


def _read_fbgemm(section: Mapping[str, Any]) -> Scheme:
    return Scheme(method="fbgemm_fp8", block_shape=None, names=("f8_e4m3fn",))


def _read_mxfp4(section: Mapping[str, Any]) -> Scheme:
    return Scheme(method="mxfp4", names=("mxfp4",))


def _read_compressed(section: Mapping[str, Any]) -> Scheme:
    groups, ignore = read_groups(section)
    return CompressedScheme(method="compressed-tensors", groups=groups, ignore=ignore)


def _read_modelopt(
    section: Mapping[str, Any], field: str = "quantization_config", where: str = "config.json"
) -> Scheme:
    inner = section.get("quantization", section)
    algorithm = inner.get("quant_algo") if isinstance(inner, Mapping) else None
    names = _ALGORITHMS.get(str(algorithm).upper())
    if names is None:
        expected = "one of " + ", ".join(_ALGORITHMS)
        raise refused(f"{field}.quant_algo", repr(algorithm), expected, where=where)
    return Scheme(method="modelopt", names=names)


def _read_qweight(section: Mapping[str, Any]) -> Scheme:
    method = section["quant_method"]
    found = read_gptq(section) if method == "gptq" else read_awq(section)
    return Scheme(method=method, qweight=found, names=(found.format.name,))


def _read_own(section: Mapping[str, Any]) -> Scheme:
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
    return OwnScheme(method="bombus", formats=found)


_Reader = Callable[[Mapping[str, Any]], Scheme]
_READERS: Mapping[str, _Reader] = {
    "fp8": _read_fp8,
    "mxfp8": _read_fp8,
    "fbgemm_fp8": _read_fbgemm,
    "compressed-tensors": _read_compressed,
    "modelopt": _read_modelopt,
    "mxfp4": _read_mxfp4,
    "gptq": _read_qweight,
    "awq": _read_qweight,
    "bombus": _read_own,
}
# What to do about what others write and we do not read.
_ELSEWHERE: Mapping[str, str] = {
    "bitsandbytes": "load the model that it was made from, with policy='int8' or 'int4'",
    "torchao": "load the model that it was made from, with a policy of the same format",
    "quark": "load the model that it was made from, or its compressed-tensors version",
    "hqq": "load the model that it was made from, with policy='int4(group=64, zero_points)'",
    "gguf": "load the Hugging Face checkpoint that it was made from",
}


def write_quantization(
    formats: Mapping[str, Format], shapes: Mapping[str, Shape], embeddings: frozenset[str]
) -> tuple[dict[str, Any], Callable[[Format], Layout]]:
    """The `quantization_config` of weights of these formats and shapes, by their layers' names, and the layout of each
    format. Block FP8 and compressed-tensors where these can say it, as transformers and vLLM read them; else this
    project's own.
    """
    low = {layer: format.canonical for layer, format in formats.items() if format.is_low}
    plain = [layer for layer, format in formats.items() if not format.is_low and layer not in embeddings]
    tiles = {format.tile for format in low.values()}
    if embeddings.isdisjoint(low):
        only_fp8 = all(format.name == "f8_e4m3fn" for format in low.values())
        tile = next(iter(tiles))
        if only_fp8 and len(tiles) == 1 and min(tile) > 0:
            return write_block_fp8(tile, plain), lambda _: BLOCK_FP8
        if all(_compressible(format, shapes[layer]) for layer, format in low.items()):
            return write_compressed(low, plain), lambda format: COMPRESSED[format.name]
    texts = {layer: str(format) for layer, format in low.items()}
    return {"quant_method": "bombus", "version": _VERSION, "formats": texts}, lambda _: OWN


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

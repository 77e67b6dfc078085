"""What config.json says about low-bit weights. The tensors decide; this gives the block shape and is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bombus.policies.errors import Problem, SpecError
from bombus.policies.formats import FORMATS


def read_block_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """The tile (outputs, inputs) of FP8 weights, `weight_block_size` of a `quantization_config`.

    Raises SpecError for a convention that is not block FP8 with dynamic activations.
    """
    default = FORMATS["f8_e4m3fn"].tile
    assert default is not None
    section = config.get("quantization_config")
    if section is None:
        return default
    if not isinstance(section, Mapping):
        raise _refusal("quantization_config", repr(section), "an object")
    method = section.get("quant_method")
    if method != "fp8":
        raise _refusal("quantization_config.quant_method", repr(method), "'fp8' (block FP8)")
    if section.get("activation_scheme", "dynamic") != "dynamic":
        raise _refusal("quantization_config.activation_scheme", repr(section["activation_scheme"]), "'dynamic'")
    size = section.get("weight_block_size", list(default))
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise _refusal("quantization_config.weight_block_size", repr(size), "two positive sizes, like [128, 128]")
    return size[0], size[1]


def write_quantization_config(block_shape: tuple[int, int], not_converted: list[str]) -> dict[str, Any]:
    """The `quantization_config` of a block-FP8 checkpoint, as transformers and vLLM read it."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(block_shape),
        "modules_to_not_convert": not_converted,
    }


def _refusal(field: str, found: str, expected: str) -> SpecError:
    return SpecError(
        Problem(
            subject=f"field {field!r}",
            message="is not supported",
            expected=expected,
            found=found,
            remedy="look for a BF16 or block-FP8 version of this checkpoint",
        ),
        where="config.json",
    )

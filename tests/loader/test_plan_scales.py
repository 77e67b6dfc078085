"""What the plan does with tiles and scales: kept, cast, made anew, or refused."""

from __future__ import annotations

import pytest
from plan_headers import (
    BF16,
    CAST,
    DEQUANTIZE,
    E5M2,
    E8M0,
    EMBEDDING,
    F8,
    F16,
    F32,
    FP8,
    GATE,
    KEEP,
    KERNELS,
    LAYER,
    OUR_KERNELS,
    REQUANTIZE,
    arrays,
    headers,
    plan,
    refusal,
    stored,
    tensor,
)

from bombus.loader.quantization import Scheme
from bombus.policies import Policy
from bombus.policies.formats import type_name


def scaled(scales):
    """A block-FP8 format with scales of this type, as it is written."""
    return "f8_e4m3fn" if scales == F32 else f"f8_e4m3fn(scale={type_name(scales)})"


TILES_64x96 = Scheme(block_shape=(64, 96))


def with_tiles_of_64x96(scales=F32):
    """(headers of an FP8 file with these tiles, the grid of each kernel's scales)."""
    grids = {name: (-(-shape[0] // 64), -(-shape[1] // 96)) for name, (shape, _) in KERNELS.items()}
    found = {f"{LAYER}{name}.weight_scale_inv": tensor(grid, scales) for name, grid in grids.items()}
    return headers(F8) | found, grids


def test_tiles_are_as_large_as_the_configuration_says():
    found, grids = with_tiles_of_64x96()
    made = plan(found, preserve_source_types=True, scheme=TILES_64x96)
    for theirs, ours in OUR_KERNELS.items():
        assert arrays(made, ours) == {"kernel": (KERNELS[theirs][0], F8), "scale_inv": (grids[theirs], F32)}
        assert stored(made)[ours] == ("f8_e4m3fn(tile=64x96)", KEEP)
    problems = refusal(found)
    assert len(problems) == len(KERNELS)
    assert all("in tiles of (128, 128)" in problem for problem in problems)


@pytest.mark.parametrize("scales", [F32, BF16, F16, E8M0])
def test_scales_stay_as_the_file_has_them(scales):
    made = plan(headers(F8, scales=scales), "bf16", preserve_source_types=True)
    assert stored(made)[GATE] == (scaled(scales), KEEP)
    assert arrays(made, GATE) == {"kernel": ((320, 192), F8), "scale_inv": ((3, 2), scales)}


@pytest.mark.parametrize(
    ("policy", "preserve"),
    [
        ({"*.scale_inv": "bf16"}, True),
        ({GATE.replace("kernel", "scale_inv"): "bf16"}, True),
        (Policy(params={"kernel": "f8_e4m3fn", "scale_inv": "bf16"}), True),
        (Policy(params={"kernel": "f8_e4m3fn", "scale_inv": "bf16"}), False),
        ({"*.gate.*": {"params": {"kernel": "f8_e4m3fn", "scale_inv": "bf16"}}}, False),
        ({GATE: "f8_e4m3fn(scale=bf16)"}, False),
    ],
)
def test_scales_are_cast_where_they_are_named(policy, preserve):
    """And the codes are not touched: a parameter whose scales alone are cast is not quantized again."""
    made = plan(headers(F8), policy, preserve_source_types=preserve)
    assert stored(made)[GATE] == ("f8_e4m3fn(scale=bf16)", CAST)
    assert arrays(made, GATE) == {"kernel": ((320, 192), F8), "scale_inv": ((3, 2), BF16)}


def test_scales_of_a_type_that_a_format_cannot_have_are_refused():
    """Every weight that the rule reaches is listed, in one error with everything else."""
    problems = refusal(headers() | {"extra": tensor((1,))}, {"*.ffn.*.scale_inv": "bf16", "*.ffn.*.kernel": "mxfp8"})
    assert problems == [
        "tensor extra: is unexpected: no parameter reads it (found bf16[1]). "
        "Check the architecture in config.json, or pass strict=False to leave it out",
        *(
            f"parameter decoder.blocks.0.ffn.{name}.scale_inv: cannot be stored as bf16, which rule "
            "'*.ffn.*.scale_inv' asks for: the scales of mxfp8 have a type of their own"
            for name in ("gate", "intermediate", "output")
        ),
    ]


def test_a_type_for_everything_does_not_cast_scales():
    policy = Policy(params={"kernel": "f8_e4m3fn", "default": "bf16"})
    made = plan(headers(F8), policy)
    assert stored(made)[GATE] == (FP8, KEEP)
    assert arrays(made, GATE)["scale_inv"] == ((3, 2), F32)


@pytest.mark.parametrize(
    ("policy", "preserve", "embedding"),
    [
        (None, False, ("bf16", DEQUANTIZE)),
        (None, True, (FP8, KEEP)),
        ("f32", False, ("f32", DEQUANTIZE)),
        ({"default": "bf16", EMBEDDING: None}, False, (FP8, KEEP)),
        ({EMBEDDING: "int8(group=64)"}, True, ("int8(group=64)", REQUANTIZE)),
    ],
)
def test_an_fp8_embedding_is_read_with_its_scales(policy, preserve, embedding):
    found = headers(F8) | {
        "model.embed_tokens.weight": tensor((320, 192), F8),
        "model.embed_tokens.weight_scale_inv": tensor((3, 2), F32),
    }
    made = plan(found, policy, preserve_source_types=preserve)
    assert stored(made)[EMBEDDING] == embedding
    (entry,) = (entry for entry in made.entries if entry.path == EMBEDDING)
    scale = "model.embed_tokens.weight_scale_inv"
    assert entry.source.parts == {"scale_inv": (scale, found[scale])}


@pytest.mark.parametrize(
    ("asked", "action", "format", "codes", "scales"),
    [
        ("f8_e4m3fn", KEEP, "f8_e4m3fn(tile=64x96, scale=bf16)", F8, ((5, 2), BF16)),
        ("f8_e4m3fn(tile=64x96)", KEEP, "f8_e4m3fn(tile=64x96, scale=bf16)", F8, ((5, 2), BF16)),
        ("f8_e4m3fn(scale=bf16)", KEEP, "f8_e4m3fn(tile=64x96, scale=bf16)", F8, ((5, 2), BF16)),
        ("f8_e4m3fn(tile=64x96, scale=f32)", CAST, "f8_e4m3fn(tile=64x96, scale=f32)", F8, ((5, 2), F32)),
        # What does not accept them is made as it was asked for, with the defaults of the rest.
        ("f8_e4m3fn(tile=128x128)", REQUANTIZE, "f8_e4m3fn(tile=128x128)", F8, ((3, 2), F32)),
        ("f8_e4m3fn(tile=channel)", REQUANTIZE, "f8_e4m3fn(tile=channel)", F8, ((320, 1), F32)),
        ("f8_e5m2", REQUANTIZE, "f8_e5m2", E5M2, ((3, 2), F32)),
    ],
)
def test_a_format_that_is_asked_for_takes_the_files_options_where_it_has_none(asked, action, format, codes, scales):
    found, _ = with_tiles_of_64x96(scales=BF16)
    made = plan(found, {"*.kernel": asked}, scheme=TILES_64x96)
    assert stored(made)[GATE] == (format, action)
    assert arrays(made, GATE) == {"kernel": ((320, 192), codes), "scale_inv": scales}


def test_scales_that_would_be_rounded_to_powers_of_two_are_not_cast():
    """That would change the values by up to a third: the codes have to follow."""
    made = plan(headers(F8), {GATE: "f8_e4m3fn(scale=e8m0)"})
    assert stored(made)[GATE] == ("f8_e4m3fn(scale=e8m0)", REQUANTIZE)
    # The other way round nothing is lost.
    made = plan(headers(F8, scales=E8M0), {GATE: "f8_e4m3fn(scale=f32)"})
    assert stored(made)[GATE] == ("f8_e4m3fn(scale=f32)", CAST)

"""Rows 27 to 52: files, indexes, tensors and configurations that do not belong together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from malformed import NORM, WEIGHTS, case, edit_config, edit_tensors, shard
from numpy_decoder import read_tensors
from safetensors.numpy import load_file, save_file

import bombus
from bombus import CheckpointError, PlanError, SpecError

UP = "model.layers.0.mlp.up_proj.weight"
SCALE = f"{UP}_scale_inv"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FP8 = "f8_e4m3fn"


def values(folder: Path, name: str) -> np.ndarray:
    return read_tensors(folder)[name]


@case("27", CheckpointError)
def missing_shards(folder: Path) -> None:
    shard(folder, {"x": "three.safetensors"})
    (folder / "two.safetensors").unlink()


@case("28", CheckpointError)
def shard_without_a_promised_tensor(folder: Path) -> None:
    shard(folder, {"x": "one.safetensors", "y": "two.safetensors"})


@case("29", CheckpointError)
def tensor_in_two_shards(folder: Path) -> None:
    shard(folder)
    two = load_file(folder / "two.safetensors")
    save_file(two | {NORM: load_file(folder / "one.safetensors")[NORM]}, folder / "two.safetensors")


@case("29")
def shard_that_the_index_does_not_name(folder: Path) -> None:
    shard(folder)
    save_file({"spare": np.zeros(3, np.float32)}, folder / "three.safetensors")


@case("30", CheckpointError)
def index_with_an_absolute_path(folder: Path) -> None:
    shard(folder, {NORM: "/etc/hostname.safetensors"})


@case("30", CheckpointError)
def index_with_dots(folder: Path) -> None:
    shard(folder, {NORM: "../one.safetensors"})


@case("30", CheckpointError)
def index_with_a_backslash(folder: Path) -> None:
    shard(folder, {NORM: "..\\one.safetensors"})


@case("31", CheckpointError)
def link_out_of_the_folder(folder: Path) -> None:
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


@case("31")
def link_into_the_blobs_of_the_hubs_cache(folder: Path) -> Callable[[], Any]:
    snapshot = folder / "models--a--b" / "snapshots" / "0123"
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate((WEIGHTS, "config.json")):
        (folder / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    return lambda: bombus.load_model(snapshot)


@case("32", CheckpointError)
def fifo(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@case("32", CheckpointError)
def folder_in_place_of_a_file(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


@case("32", CheckpointError)
def device(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


@case("33", CheckpointError)
def index_that_is_a_list(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


@case("33", CheckpointError)
def index_with_a_number_for_a_file(folder: Path) -> None:
    shard(folder, {NORM: 7})


@case("34", PlanError)
def missing_tensors(folder: Path) -> None:
    edit_tensors(folder, {NORM: None, UP: None})


@case("35", PlanError)
def unexpected_tensor(folder: Path) -> None:
    edit_tensors(folder, {"model.layers.0.mlp.bogus.weight": np.zeros((2, 3), np.float32)})


@case("36", PlanError)
def wrong_shape(folder: Path) -> None:
    edit_tensors(folder, {NORM: np.zeros(31, np.float32)})


@case("34-36")
def not_strict(folder: Path) -> Callable[[], Any]:
    """The explicit way out: what is missing is made anew and listed, what is unexpected left out."""
    edit_tensors(folder, {NORM: None, UP: np.zeros((2, 2), np.float32), "bogus": np.zeros(2, np.float32)})

    def load() -> None:
        report = bombus.load_model(folder, strict=False).report
        assert set(report.initialised) == {"output_norm.scale", "decoder.blocks.0.ffn.intermediate.kernel"}
        assert report.plan.unused == ("bogus",)

    return load


@case("37")
def known_buffers(folder: Path) -> None:
    edit_tensors(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)})


@case("38")
def tied_model_with_only_the_head(folder: Path) -> None:
    edit_tensors(folder, {HEAD: values(folder, EMBEDDING), EMBEDDING: None})


@case("38")
def tied_model_with_only_the_embedding(folder: Path) -> None:
    assert HEAD not in read_tensors(folder)


@case("39", CheckpointError)
def tied_model_with_two_tensors(folder: Path) -> None:
    edit_tensors(folder, {HEAD: values(folder, EMBEDDING) + np.float32(1)})


@case("40", PlanError, weights=FP8)
def fp8_without_a_scale(folder: Path) -> None:
    edit_tensors(folder, {SCALE: None})


@case("41", PlanError, weights=FP8)
def scale_without_fp8(folder: Path) -> None:
    edit_tensors(folder, {UP: np.zeros(values(folder, UP).shape, np.float32)})


@case("41", PlanError, weights=FP8)
def scale_without_a_weight(folder: Path) -> None:
    edit_tensors(folder, {"model.layers.0.mlp.bogus.weight_scale_inv": np.ones((1, 1), np.float32)})


@case("42", PlanError, weights=FP8)
def wrong_grid(folder: Path) -> None:
    edit_tensors(folder, {SCALE: np.ones((2, 1), np.float32)})


def _scale(value: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        edit_tensors(folder, {SCALE: np.full(values(folder, SCALE).shape, value, np.float32)})

    return spoil


for _name, _value in (("nan", np.nan), ("zero", 0.0), ("negative", -1.0)):
    _spoil = _scale(_value)
    _spoil.__name__ = f"scale_that_is_{_name}"
    case("43", CheckpointError, weights=FP8)(_spoil)


def _rename(word: str, dtype: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = read_tensors(folder)
        scales = {name: tensor for name, tensor in tensors.items() if name.endswith("_scale_inv")}
        renamed = {name.removesuffix("weight_scale_inv") + word: tensor for name, tensor in scales.items()}
        if dtype == "U8":
            renamed = {name: np.full(tensor.shape, 120, np.uint8) for name, tensor in renamed.items()}
        elif dtype is not None:
            renamed = {name: tensor.astype(dtype) for name, tensor in renamed.items()}
        edit_tensors(folder, {**dict.fromkeys(scales), **renamed})

    return spoil


for _word, _type in (("weight_scale", None), ("scale", None), ("weight_scale_inv", np.float16), ("scale", "U8")):
    _spoil = _rename(_word, _type)
    _spoil.__name__ = f"scale_called_{_word}_in_{_type or 'float32'}"
    case("44", weights=FP8)(_spoil)


@case("44", PlanError, weights=FP8)
def scale_of_integers(folder: Path) -> None:
    edit_tensors(folder, {SCALE: np.ones((1, 1), np.int32)})


@case("45", PlanError, weights=FP8)
def fp8_without_a_configuration_or_scales(folder: Path) -> None:
    edit_config(folder, "quantization_config")
    names = [name for name in read_tensors(folder) if name.endswith("_scale_inv") and "up_proj" in name]
    edit_tensors(folder, dict.fromkeys(names))


@case("45", weights=FP8)
def fp8_without_a_configuration_and_with_scales(folder: Path) -> None:
    edit_config(folder, "quantization_config")


@case("46", SpecError)
def config_without_fields(folder: Path) -> None:
    edit_config(folder, "hidden_size", "num_hidden_layers")


@case("47", SpecError)
def config_with_wrong_types(folder: Path) -> None:
    edit_config(folder, hidden_size="32", rms_norm_eps=None, num_attention_heads=True)


@case("48", SpecError)
def heads_that_do_not_divide(folder: Path) -> None:
    edit_config(folder, num_key_value_heads=3)


@case("49", SpecError)
def unknown_architecture(folder: Path) -> None:
    edit_config(folder, architectures=["LamaForCausalLM"], model_type="lama")


@case("50", SpecError)
def unknown_rope_type(folder: Path) -> None:
    edit_config(folder, rope_scaling={"rope_type": "lama3", "factor": 8.0})


@case("51", PlanError)
def ten_to_the_twelve_parameters(folder: Path) -> None:
    edit_config(folder, hidden_size=2**20, intermediate_size=2**20)


@case("52")
def code_in_the_repository(folder: Path) -> None:
    code = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"
    (folder / "modeling_evil.py").write_text(code)
    (folder / "configuration_evil.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))

"""`bombus policy`: results on standard output, errors of one line of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import EMBEDDING, GATE, Run, error, output

import bombus
from bombus.cli import main


def test_template_lists_every_parameter_with_its_format(run: Run, fp8: Path) -> None:
    found = json.loads(output(run, "policy", "template", fp8))
    model = bombus.load_plan(fp8, preserve_source_types=True).plan.model
    assert found == {"bombus_policy": 1, "rules": {path: str(format) for path, format in model.formats.items()}}
    assert found["rules"][GATE] == "f8_e4m3fn"
    assert found["rules"][EMBEDDING] == found["rules"]["output_norm.scale"] == "bf16"


def test_a_template_in_a_file_is_a_policy_of_the_other_commands(run: Run, bf16: Path, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    out = output(run, "policy", "template", bf16, "--default-format", "int8(group=16)", "-o", file)
    assert out == f"{file}\n"
    rules = json.loads(file.read_text("utf-8"))["rules"]
    assert {format for path, format in rules.items() if path.endswith((".kernel", ".embedding"))} == {"int8(group=16)"}
    assert {format for path, format in rules.items() if path.endswith(".scale")} == {"bf16"}
    found = json.loads(output(run, "plan", bf16, "--policy", file, "--json"))
    assert found["policy"] is None or found["policy"] == str(file)
    assert {row["rule"] for row in found["parameters"]} == set(rules)
    assert found["stored_bytes"].keys() == {"int8", "bf16"}


@pytest.mark.parametrize(
    ("policy", "name", "text"),
    [
        (
            '{"feed_forward": "int8", "default": "bf16"}',
            GATE,
            f"{GATE}: Policy(params=int8, compute=None, output=None) from 'feed_forward', because no other rule "
            "matches. Stored as int8, computed in bf16",
        ),
        (
            '{"*": "f16", "model.layers.0.mlp.gate_proj.weight": "mxfp4"}',
            "model.layers.0.mlp.gate_proj.weight",
            f"{GATE}: Policy(params=mxfp4, compute=None, output=None) from 'model.layers.0.mlp.gate_proj.weight', "
            "because an exact name beats every pattern. Stored as mxfp4, computed in f16",
        ),
        (
            "int4",
            "output_norm.scale",
            "output_norm.scale: Policy(params=int4, compute=None, output=None) from the default, because no rule "
            "matches; int4 is only for weights. Stored as bf16, computed in f32",
        ),
        (
            "performance",
            GATE,
            f"{GATE}: Policy(params=int4(group=32), compute=None, output=None) from 'feed_forward', because no other "
            "rule matches. Stored as int4(group=32), computed in bf16",
        ),
        (
            '{"embedding": "f32"}',
            GATE,
            f"{GATE}: no rule matches and there is no default, so it is left as the checkpoint has it. Stored as bf16, "
            "computed in f32",
        ),
    ],
)
def test_explain_is_one_sentence(run: Run, bf16: Path, policy: str, name: str, text: str) -> None:
    assert output(run, "policy", "explain", bf16, policy, name) == f"{text}\n"


def test_explain_keeps_the_formats_of_the_file_where_it_is_told_to(run: Run, fp8: Path) -> None:
    arguments = ("policy", "explain", fp8, "bf16", GATE)
    assert output(run, *arguments).endswith(". Stored as bf16, computed in bf16\n")
    assert output(run, *arguments, "--preserve-source-types").endswith(". Stored as f8_e4m3fn, computed in bf16\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["template", "{bf16}", "--default-format", "int9"],
            "PolicyError: type 'int9': is not a storage format. The closest are 'int8', 'int4'",
        ),
        (["template", "/no/such/folder"], "HubError: /no/such/folder: repository: there is no such folder, and it is "),
        (["template", "{bf16}", "-o", "{tmp}/no/file.json"], "PolicyError: {tmp}/no/file.json: file: cannot be writ"),
        (
            ["explain", "{bf16}", "int8", "decoder.blocks.0.ffn.gte.kernel"],
            "PolicyError: parameter 'decoder.blocks.0.ffn.gte.kernel': does not exist. The closest are '" + GATE,
        ),
        (
            ["explain", "{bf16}", '{"*.gte.*": "int8"}', GATE],
            "PlanError: {bf16}: policy rule '*.gte.*': matches no parameter. The closest are ",
        ),
        (["explain", "{bf16}", "{tmp}/absent.json", GATE], "PolicyError: {tmp}/absent.json: policy file: cannot be "),
        (
            ["import", "bfp_bf9", "--from", "tt-xla"],
            "PolicyError: tt-xla: rule 'default': has no type 'bfp_bf9' (expected bf16, bfp_bf8, bfp_bf4)",
        ),
        (["import", "{tmp}/absent.json", "--from", "tt-xla"], "PolicyError: {tmp}/absent.json: file: cannot be read: "),
        (
            ["import", "bfp_bf8", "--from", "tt-xla", "--parent", "bf16"],
            "PolicyError: --parent and --ignore: are for --from tt-transformers",
        ),
        (
            ["import", "precision_cfg = {ff1_3 bfp4}", "--from", "tt-transformers"],
            "PolicyError: TT-Transformers: optimizations: are malformed (expected precision_cfg = {ff1_3: bfp4, wo: ",
        ),
        (
            ["import", "precision_cfg = {kv_cache: bfp8}", "--from", "tt-transformers"],
            "PolicyError: TT-Transformers: kv_cache of decoder *: has no counterpart here. Leave it out with ignore=",
        ),
        (
            ["import", "precision_cfg = {wo: bfp8}", "--from", "tt-transformers", "--ignore", "kv_cash"],
            "PolicyError: TT-Transformers: ignore: cannot hold 'kv_cash'. The closest are 'kv_cache'",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, bf16: Path, tmp_path: Path, arguments: list[str], text: str) -> None:
    def filled(words: str) -> str:
        return words.replace("{bf16}", str(bf16)).replace("{tmp}", str(tmp_path))

    assert error(run, "policy", *map(filled, arguments)).startswith(f"bombus: {filled(text)}")


@pytest.mark.parametrize("arguments", [[], ["template"], ["import", "bfp_bf8"], ["import", "x", "--from", "nobody"]])
def test_a_wrong_call_is_answered_with_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["policy", *arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err[:20]) == ("", "usage: bombus policy")


BFP8 = {"params": {"kernel": "bfp8(axis=out)", "default": None}}


def test_tt_xlas_overrides_become_a_policy(run: Run, bf16: Path, tmp_path: Path) -> None:
    """Its last entry wins, whatever it is; a type for everything is written without a file."""
    source, target = tmp_path / "overrides.json", tmp_path / "policy.json"
    entries = {
        "default": "bfp_bf8",
        "model.layers.*.mlp.*.weight": "bfp_bf4",
        "model.layers.0.mlp.up_proj.weight": "bf16",
    }
    source.write_text(json.dumps(entries), "utf-8")
    assert output(run, "policy", "import", source, "--from", "tt-xla", "-o", target) == f"{target}\n"
    bfp4 = {"params": {"kernel": "bfp4(axis=out)", "default": None}}
    assert json.loads(target.read_text("utf-8")) == {
        "bombus_policy": 1,
        "rules": {
            "model.layers.*.mlp.*.weight": bfp4,
            "model.layers.0.mlp.up_proj.weight": "bf16",
            "default": BFP8,
        },
    }
    rows = json.loads(output(run, "plan", bf16, "--policy", target, "--json"))["parameters"]
    stored = {row["parameter"].removeprefix("decoder.blocks.0."): row["stored"].partition("[")[0] for row in rows}
    assert [stored[f"ffn.{name}.kernel"] for name in ("gate", "intermediate")] == ["bfp4(axis=out)", "bf16"]
    assert stored["self_attention.query.kernel"] == "bfp8(axis=out)"
    assert stored[EMBEDDING] == stored["output_norm.scale"] == "bf16"
    inline = json.loads(output(run, "policy", "import", "bfp_bf8", "--from", "tt-xla"))
    assert inline == {"bombus_policy": 1, "rules": {"default": BFP8}}


def test_tt_transformers_configurations_become_a_policy(run: Run, tmp_path: Path) -> None:
    """From a file or a text; what is missing is the parent's, and what has no counterpart is left out by name."""
    decoders = {"decoders": {"31": {"precision_cfg": {"FF1_FF3": "BFP8"}, "fidelity_cfg": {"LI_FF1_FF3": "LOFI"}}}}
    source = tmp_path / "performance_decoder_config.json"
    source.write_text(json.dumps(decoders), "utf-8")
    call = ("policy", "import", source, "--from", "tt-transformers")
    assert error(run, *call).startswith("bombus: PolicyError: TT-Transformers: fidelity_cfg of decoder 31: has no ")
    found = json.loads(output(run, *call, "--ignore", "fidelity_cfg, kv_cache", "--parent", "performance"))
    assert found["rules"] == {
        "{attention,embedding,head}": "int8",
        "feed_forward": "int4(group=32)",
        "decoder.blocks.31.ffn.{gate,intermediate}.kernel": "bfp8(axis=out)",
    }
    text = "precision_cfg = {ff1_3: bfp4, wo: bfp8}, fidelity_cfg = {}"
    inline = json.loads(
        output(run, "policy", "import", text, "--from", "tt-transformers", "--parent", '{"norm": "f32"}')
    )
    assert inline["rules"] == {
        "norm": "f32",
        "decoder.blocks.*.ffn.{gate,intermediate}.kernel": "bfp4(axis=out)",
        "decoder.blocks.*.self_attention.output.kernel": "bfp8(axis=out)",
    }
    written = json.dumps(decoders)
    assert output(run, "policy", "import", written, "--from", "tt-transformers", "--ignore", "fidelity_cfg") == (
        json.dumps(
            {
                "bombus_policy": 1,
                "rules": {"decoder.blocks.31.ffn.{gate,intermediate}.kernel": "bfp8(axis=out)"},
            },
            indent=2,
        )
        + "\n"
    )

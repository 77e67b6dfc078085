"""Who is measured, and what is said of those who are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

import bombus
from bombus.evaluation import EvaluationError, bombus_contender
from bombus.evaluation.contenders import check_rivals


def refused(names: list[str], gguf: Path | None, there: set[str]) -> str:
    with pytest.raises(EvaluationError) as caught:
        check_rivals(names, gguf, is_there=there.__contains__)
    return str(caught.value)


def test_who_is_not_installed_is_named_with_the_remedy() -> None:
    assert refused(["transformers", "llama.cpp", "vllm"], None, {"transformers"}) == (
        "4 problems\n"
        "  - contender transformers: needs torch, not installed. Run `pip install torch transformers`\n"
        "  - contender llama.cpp: needs llama_cpp, not installed. Run `pip install llama-cpp-python`\n"
        "  - contender 'vllm': is unknown. Known: transformers, llama.cpp\n"
        "  - contender llama.cpp: needs a GGUF file, and gguf makes it. Run `pip install gguf`, or give a file: "
        "gguf=FILE (--gguf FILE)"
    )


def test_a_file_that_is_not_there_or_not_read_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.gguf"
    assert refused(["llama.cpp"], absent, {"llama_cpp"}) == f"gguf: is no file (found {absent})"
    assert refused([], absent, set()) == "gguf: is for llama.cpp. Compare with it"


def test_a_given_file_needs_no_package_that_makes_one(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    check_rivals(["llama.cpp"], file, is_there={"llama_cpp"}.__contains__)
    check_rivals([], None, is_there=set[str]().__contains__)


def test_ours_is_named_after_its_precision() -> None:
    assert bombus_contender("r").name == "Bombus"
    assert bombus_contender("r", preserve_source_types=True, policy="int8").name == "Bombus, types kept, int8"
    assert bombus_contender("r", policy={"norm": "f32"}).name == "Bombus, with a policy"
    assert bombus_contender("r", policy={"norm": "f32"}, name="x").name == "x"


def test_a_policy_reaches_the_process_as_plain_data() -> None:
    policy = bombus.MixedPrecision({"norm": "f32", "feed_forward": "int8(group=64)"})
    sent = bombus_contender("r", policy=policy).options["policy"]
    assert sent == policy.to_json()
    assert bombus_contender("r", policy="accuracy").options["policy"] == "accuracy"

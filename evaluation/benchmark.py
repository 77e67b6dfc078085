"""bench: how fast a model is here, beside others in the same run and beside what the memory allows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from bombus.evaluation.contenders import (
    GGUF_TYPES,
    Contender,
    Device,
    bombus_contender,
    check_rivals,
    llama_cpp_contender,
    transformers_contender,
)
from bombus.evaluation.errors import EvaluationError
from bombus.evaluation.gguf_export import export_gguf
from bombus.evaluation.machine import Machine, this_machine
from bombus.evaluation.measurement import Measurement
from bombus.evaluation.tables import text_table
from bombus.evaluation.turns import measure_in_turns
from bombus.evaluation.workload import Workload, choose_workload, find_preset
from bombus.loader import load_plan, load_spec
from bombus.loader.report import readable_bytes
from bombus.loader.repository import HubOptions, open_repository
from bombus.models import DecoderSpec
from bombus.policies.errors import Problem
from bombus.policies.mixed_precision import PolicyLike


@dataclass(frozen=True, kw_only=True, repr=False)
class Bench:
    """What was measured, a table of it as text. The first measurement is Bombus', the others are what it is compared
    with. bandwidth: bytes per second that the machine reads, measured in the same run.
    """

    where: str
    preset: str
    workload: Workload
    rounds: int
    machine: Machine
    bandwidth: float
    measurements: tuple[Measurement, ...]

    @property
    def ratios(self) -> dict[str, dict[str, float | None]]:
        """For each rival how many times as fast Bombus is, at decoding and at reading prompts."""
        first, *rivals = self.measurements
        pairs = {rival.contender: first.times(rival) for rival in rivals}
        return {name: {"decode": decode, "prefill": prefill} for name, (decode, prefill) in pairs.items()}

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table, the columns' names first."""
        return measurement_rows(self.measurements, self.bandwidth)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "where": self.where,
            "preset": self.preset,
            "workload": self.workload.to_json(),
            "rounds": self.rounds,
            "machine": self.machine.to_json(),
            "read_bandwidth": self.bandwidth,
            "results": [measurement.to_json(self.bandwidth) for measurement in self.measurements],
            "times_as_fast_as": self.ratios,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.where}, {self.preset}: {self.workload}; medians of {self.rounds} "
            f"{'round' if self.rounds == 1 else 'rounds'}",
            f"{self.machine}, reads {self.bandwidth / 1e9:.1f} GB/s",
            "",
            text_table(self.rows()),
        ]
        dispatch = self.measurements[0].dispatch
        if dispatch is not None:
            lines.append(f"a step that the host starts takes {dispatch * 1e6:,.0f} us longer than one of the loop")
        for name, ratio in self.ratios.items():
            decode = "" if ratio["decode"] is None else f"decodes {ratio['decode']:.2f} times and "
            lines.append(f"{decode}reads prompts {ratio['prefill']:.2f} times as fast as {name}")
        return "\n".join(lines)

    __repr__ = __str__


def measurement_rows(measurements: Sequence[Measurement], bandwidth: float) -> list[tuple[str, ...]]:
    """A row of cells for each, and the columns' names before them."""
    names: tuple[str, ...] = (
        *("", "decode, tok/s", "per user", "of bandwidth", "prefill, tok/s", "first token, s", "with the load, s"),
        *("peak memory", "over weights and cache"),
    )
    rows = [names]
    for found in measurements:
        fraction, peak, ratio = found.fraction_of(bandwidth), found.peak_memory, found.memory_ratio
        rows.append(
            (
                found.contender,
                _number(found.decode, 1),
                _number(found.decode_per_user, 1),
                "" if fraction is None else f"{fraction:.0%}",
                _number(found.prefill, 1),
                _number(found.first_token, 3),
                _number(found.start_seconds, 1),
                "" if peak is None else readable_bytes(peak),
                _number(ratio, 2),
            )
        )
    return rows


def bench(
    repo: str | PathLike[str],
    *,
    preset: str = "latency",
    batch: int | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    context: int | None = None,
    policy: PolicyLike = None,
    preserve_source_types: bool = False,
    architecture: str | None = None,
    strict: bool = True,
    compare: Sequence[str] = (),
    gguf: str | PathLike[str] | None = None,
    rounds: int | None = None,
    device: Device | None = None,
    dispatch: bool = False,
    report: Callable[[str], None] = lambda line: None,
    **hub: Unpack[HubOptions],
) -> Bench:
    """Speeds, seconds to the first token and memory of a model, each contender in a process of its own, in turns.

    preset: "latency" (1 user), "throughput" (32), "long" (a context of 64k tokens) or "reasoning" (15,000 new tokens);
    batch, prompt_tokens, new_tokens and context (prompt and new tokens together) replace its numbers.
    policy, preserve_source_types, architecture, strict: as of load_model.
    compare: "transformers" and "llama.cpp", which have to be installed. gguf: the file that llama.cpp reads; else files
    of Q8_0 and BF16 are made from the checkpoint for the run. device: "cpu" or "gpu" for all, None for JAX's choice.
    dispatch: measure also what a step costs the host that starts it. report: called with a line about what comes next.

    Raises EvaluationError that says what cannot be measured and what to do, and all that load_plan raises.
    """
    chosen = find_preset(preset)
    rounds = chosen.rounds if rounds is None else rounds
    _check_rounds(rounds)
    file = None if gguf is None else Path(gguf)
    check_rivals(compare, file)
    options: dict[str, Any] = {"architecture": architecture, "strict": strict, **hub}
    precision: dict[str, Any] = {"policy": policy, "preserve_source_types": preserve_source_types}
    spec, where = check_model(repo, **precision, **options)
    workload = choose_workload(
        chosen.workload,
        positions=spec.max_positions,
        batch=batch,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        context=context,
        where=where,
    )
    contenders = [bombus_contender(repo, **precision, device=device, **options)]
    with tempfile.TemporaryDirectory(prefix="bombus-gguf-") as folder:
        contenders += rivals(repo, compare, file, Path(folder), device=device, report=report, **hub)
        found, bandwidth = measure_in_turns(contenders, [workload], rounds=rounds, dispatch=dispatch, report=report)
    return Bench(
        where=where,
        preset=preset,
        workload=workload,
        rounds=rounds,
        machine=this_machine(),
        bandwidth=bandwidth,
        measurements=tuple(found),
    )


def check_model(repo: str | PathLike[str], **options: Any) -> tuple[DecoderSpec, str]:
    """(the spec of the model that load_model would load, what errors call it), from headers alone.

    Raises what load_plan does, and EvaluationError for a model that writes no text.
    """
    plan = load_plan(repo, **options)
    spec = plan.plan.model.spec
    if spec.head != "causal_lm":
        raise EvaluationError(
            Problem(subject="model", message="writes no text", expected="the head causal_lm", found=spec.head),
            where=plan.where,
        )
    return spec, plan.where


def rivals(
    repo: str | PathLike[str],
    names: Sequence[str],
    gguf: Path | None,
    folder: Path,
    *,
    device: Device | None = None,
    report: Callable[[str], None] = lambda line: None,
    **hub: Unpack[HubOptions],
) -> list[Contender]:
    """The contenders of these names, in this order. GGUF files are made in `folder` unless one is given."""
    found: list[Contender] = []
    if not names:
        return found
    tied = load_spec(repo, architecture="causal_lm", **hub).tie_word_embeddings
    for name in names:
        if name == "transformers":
            config = open_repository(repo, **hub).require("config.json", "transformers reads no other")
            found.append(transformers_contender(config.parent, device=device))
        elif gguf is not None:
            found.append(llama_cpp_contender(gguf, name=f"llama.cpp, {gguf.name}", tied_head=tied, device=device))
        else:
            for type in GGUF_TYPES:
                report(f"llama.cpp: writes a GGUF file of {type}")
                made = export_gguf(repo, folder / f"{type}.gguf", type, **hub)
                found.append(llama_cpp_contender(made, name=f"llama.cpp, {type}", tied_head=tied, device=device))
    return found


def _check_rounds(rounds: int) -> None:
    if type(rounds) is not int or rounds < 1:
        raise EvaluationError(
            Problem(subject="rounds", message="is out of range", expected="an integer from 1", found=repr(rounds))
        )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"

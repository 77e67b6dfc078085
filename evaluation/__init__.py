"""Measurements: how fast and how large models are here, beside other runtimes and beside what the machine allows."""

from bombus.evaluation.bandwidth import read_bandwidth
from bombus.evaluation.benchmark import Bench, bench, measurement_rows
from bombus.evaluation.contenders import (
    Contender,
    bombus_contender,
    llama_cpp_contender,
    transformers_contender,
)
from bombus.evaluation.errors import EvaluationError, OutOfMemory
from bombus.evaluation.gguf_export import export_gguf
from bombus.evaluation.machine import Machine, this_machine
from bombus.evaluation.measurement import Measurement, Sample
from bombus.evaluation.plots import check_plot, plot_bench, plot_tuning
from bombus.evaluation.tables import markdown_table, text_table
from bombus.evaluation.tune import BatchPoint, BatchTuning, tune_batch
from bombus.evaluation.turns import measure_in_turns
from bombus.evaluation.workload import PRESETS, Preset, Workload

__all__ = [
    "PRESETS",
    "BatchPoint",
    "BatchTuning",
    "Bench",
    "Contender",
    "EvaluationError",
    "Machine",
    "Measurement",
    "OutOfMemory",
    "Preset",
    "Sample",
    "Workload",
    "bench",
    "bombus_contender",
    "check_plot",
    "export_gguf",
    "llama_cpp_contender",
    "markdown_table",
    "measure_in_turns",
    "measurement_rows",
    "plot_bench",
    "plot_tuning",
    "read_bandwidth",
    "text_table",
    "this_machine",
    "transformers_contender",
    "tune_batch",
]

"""transformers (torch) as a contender. Runs in a process of its own, the only one that imports them."""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

from bombus.evaluation.contenders import Prepared, Turn
from bombus.evaluation.workload import Workload

_LAYERS_OF_A_CACHE = ("keys", "values")


class TransformersContender:
    """A checkpoint in a folder, in the type that its configuration names; on CPU block FP8 is dequantized to bf16.

    threads: as many as cores unless given.
    """

    def __init__(self, *, folder: str, device: str | None = None, threads: int | None = None) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._transformers: Any = importlib.import_module("transformers")
        self._folder, self._device = folder, "cuda" if device == "gpu" else "cpu"
        self._torch.set_num_threads(threads or os.cpu_count() or 1)
        self._transformers.utils.logging.disable_progress_bar()

    def load(self) -> dict[str, Any]:
        """Load; seconds, bytes, versions."""
        began = time.perf_counter()
        options: dict[str, Any] = {"dtype": "auto"}
        config = self._transformers.AutoConfig.from_pretrained(self._folder)
        scheme = getattr(config, "quantization_config", None) or {}
        if self._device == "cpu" and isinstance(scheme, dict) and scheme.get("quant_method") == "fp8":
            # Its FP8 product is for GPUs. On CPU it falls back to this, but not with the file's type.
            made = self._transformers.FineGrainedFP8Config(**{**scheme, "dequantize": True})
            options = {"dtype": self._torch.bfloat16, "quantization_config": made}
        model = self._transformers.AutoModelForCausalLM.from_pretrained(self._folder, **options)
        self._model = model.to(self._device).eval()
        self._wait()
        seconds = time.perf_counter() - began
        parameters = {tensor.data_ptr(): tensor for tensor in model.parameters()}
        self._weights = sum(tensor.numel() * tensor.element_size() for tensor in parameters.values())
        version = f"transformers {self._transformers.__version__}, torch {self._torch.__version__}"
        return {"versions": version, "load_seconds": seconds, "weight_bytes": self._weights}

    def prepare(self, workload: Workload) -> Prepared:
        """Nothing to make; the cache's bytes are those of a short prompt, scaled."""
        torch = self._torch
        with torch.inference_mode():
            cache = self._model(torch.zeros((1, 2), dtype=torch.long, device=self._device), use_cache=True)
        kept = [getattr(layer, name) for layer in cache.past_key_values.layers for name in _LAYERS_OF_A_CACHE]
        per_token = sum(tensor.numel() * tensor.element_size() for tensor in kept) / 2
        table = self._model.get_input_embeddings().weight
        head = self._model.get_output_embeddings()
        read = float(self._weights)
        if head is None or head.weight.data_ptr() != table.data_ptr():  # only the rows of the tokens are read
            read -= (table.shape[0] - workload.rows) * table.shape[1] * table.element_size()
        half_way = workload.prompt_tokens + workload.new_tokens / 2
        return {
            "cache_bytes": int(workload.rows * workload.tokens * per_token),
            "step_bytes": read + workload.rows * half_way * per_token,
        }

    def run(self, workload: Workload, new_tokens: int) -> Turn:
        """Greedy tokens, a forward pass for each."""
        torch = self._torch
        began = time.perf_counter()
        with torch.inference_mode():
            tokens = torch.tensor(workload.prompts(self._model.config.vocab_size), device=self._device)
            output = self._model(tokens, use_cache=True, logits_to_keep=1)
            found = [output.logits[:, -1:].argmax(-1)]
            self._wait()
            middle = time.perf_counter()
            for _ in range(new_tokens - 1):
                output = self._model(found[-1], past_key_values=output.past_key_values, use_cache=True)
                found.append(output.logits[:, -1:].argmax(-1))
            self._wait()
        seconds = time.perf_counter() - middle
        return Turn(first_seconds=middle - began, decode_seconds=seconds, tokens=torch.cat(found, 1).tolist())

    def peak_memory(self) -> int | None:
        """The GPU's high-water mark; None on CPU."""
        return None if self._device == "cpu" else int(self._torch.cuda.max_memory_allocated())

    def _wait(self) -> None:
        if self._device != "cpu":
            self._torch.cuda.synchronize()

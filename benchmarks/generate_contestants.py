"""Rivals that search with transformers' `generate`: its own model, and exported graphs of OpenVINO and ONNX Runtime."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

import florence2
from benchmarks.benchmark_models import load_model
from benchmarks.contestants import TASK, ContestantConfig, Job
from florence2.system import tune_allocator


class GenerateContestant:
    """`generate` as on the model card: fixed batches, the processor in the same loop."""

    def __init__(self, config: ContestantConfig, model: Any, processor: Any) -> None:
        self._config, self._model, self._processor = config, model, processor
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def run(self, job: Job, decoded: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Caption batch by batch."""
        self.seconds.clear()
        for start in range(0, len(job.images), self._config.batch_size):
            paths = job.images[start : start + self._config.batch_size]
            lengths = job.lengths[start : start + self._config.batch_size]
            inputs = self.timed("read", self._read)(paths, decoded)
            ids = self.timed("decode", self._generate)(inputs, lengths)
            for length, row in zip(lengths, ids, strict=bool(lengths)):
                assert row.tolist().index(2, 1) == length + 2, (row, length)
            yield from zip(paths, self._processor.batch_decode(ids, skip_special_tokens=True), strict=True)

    def _read(self, paths: list[str], decoded: dict[str, Image.Image]) -> Any:
        images = [decoded.get(path) or Image.open(path).convert("RGB") for path in paths]
        inputs = self._processor(text=[TASK.token] * len(paths), images=images, return_tensors="pt", padding=True)
        return inputs.to(self._config.device, self._model.dtype)

    def _generate(self, inputs: Any, lengths: list[int]) -> Tensor:
        num_beams = self._config.num_beams
        ids: Tensor = self._model.generate(
            **inputs,
            max_new_tokens=1000,
            num_beams=num_beams,
            do_sample=False,
            early_stopping=num_beams > 1,
            logits_processor=LogitsProcessorList([ForcedLengths(lengths, num_beams)] if lengths else []),
        )
        return ids

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that adds its duration to a part; on a GPU, which computes later, the parts say nothing."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - start

        return run

    def report(self) -> dict[str, Any]:
        """Return the time of each part of the last job; decoding is what `generate` does besides the other parts."""
        parts = dict(self.seconds)
        parts["decode"] -= parts["vision"] + parts["encode"]
        return {"stats": {"seconds": parts}} if self._config.device == "cpu" else {}


class TransformersContestant(GenerateContestant):
    """transformers' model; tuned, it has channels-last weights and an allocator that keeps freed memory."""

    def __init__(self, config: ContestantConfig) -> None:
        if config.name.endswith("tuned"):
            tune_allocator()
        model, processor = load_model(config.model_size, config.device, config.dtype)
        if config.name.endswith("tuned"):
            model.to(memory_format=torch.channels_last)
        super().__init__(config, model, processor)
        for part, module in (("vision", model.model.vision_tower), ("encode", model.model.language_model.encoder)):
            module.forward = self.timed(part, module.forward)


class ExportedContestant(GenerateContestant):
    """Graphs that `florence2 export` wrote."""

    def __init__(self, config: ContestantConfig) -> None:
        model, processor = florence2.load_exported(config.export_folder, num_threads=config.num_threads)
        super().__init__(config, model, processor)
        graphs: Any = model.graphs
        graphs.encode_image, graphs.encode = (
            self.timed("vision", graphs.encode_image),
            self.timed("encode", graphs.encode),
        )


class ForcedLengths(LogitsProcessor):  # type: ignore[misc]
    """Ends each row of a batch at its own length, because random weights do not predict an end."""

    def __init__(self, lengths: list[int], num_beams: int) -> None:
        self._ends = torch.tensor(lengths).repeat_interleave(num_beams)[:, None] + 2

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Forbid eos before the end, and every other token at the end."""
        is_end = (self._ends == input_ids.shape[1]).to(scores.device)
        is_eos = (torch.arange(scores.shape[-1], device=scores.device) == 2)[None]
        scores = scores.masked_fill(is_eos & (self._ends > input_ids.shape[1]).to(scores.device), -float("inf"))
        return torch.where(is_end, torch.where(is_eos, 0.0, -float("inf")), scores)

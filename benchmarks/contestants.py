"""The contestants of `throughput`: each captions images in its own process.

The processes are separate because the allocator's settings apply to a process, and the rivals must not profit from
ours. A contestant reads one job as a line of JSON from stdin, replies with one line, and waits for the next job.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from benchmarks.benchmark_models import BUNDLED, load_model
from florence2.data.sample import Sample
from florence2.devices import inference_dtype, is_8_bit
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.engine.quantization.quantize_model import quantize_model
from florence2.model.tasks import find_task
from florence2.system import tune_allocator

TASK = find_task("caption")
MODEL_IMAGE_SIZE, MAX_LENGTH = (768, 768), 200


@dataclass(frozen=True)
class ContestantConfig:
    """The name of a contestant and its options; `exports` is the folder of the exported models, `target` its layout."""

    name: str
    batch_size: int  # 0: the engine's own choice
    model_size: str
    num_beams: int
    device: str
    dtype: str
    compile: str
    num_workers: int
    num_threads: int
    exports: str = ""
    target: str = ""

    @property
    def export_folder(self) -> Path:
        """Return the folder of the exported model."""
        return Path(self.exports) / f"{self.model_size}-{self.target}-{self.dtype}"


@dataclass(frozen=True)
class Job:
    """Images to caption, the length of each caption in tokens, and the output file.

    Files may repeat. The bundled model, which `model_size` `demo` names, ends its captions itself. With `decoded`,
    images are decoded and resized to the model's size before the clock starts.
    """

    model_size: str
    images: list[str]
    lengths: list[int]
    output: str
    decoded: bool = False


class Contestant(Protocol):
    """Captions images."""

    def run(self, job: Job, decoded: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Yield (image, caption) pairs; images that are not `decoded` are read from disk."""

    def report(self) -> dict[str, Any]:
        """Return more numbers for the reply."""


class EngineContestant:
    """The engine of this package, one for all jobs, so that compiled code and CUDA graphs stay."""

    def __init__(self, config: ContestantConfig) -> None:
        tune_allocator()
        dtype = str(inference_dtype(config.dtype, torch.device(config.device))).removeprefix("torch.")
        model, processor = load_model(config.model_size, config.device, dtype)
        if is_8_bit(config.dtype):
            quantize_model(model, config.dtype)
        self._lengths: list[int] = []
        settings = EngineConfig(
            generation=GenerationConfig(num_beams=config.num_beams, max_length=MAX_LENGTH),
            batch_size=config.batch_size or None,
            num_workers=config.num_workers,
            compile=config.compile,  # type: ignore[arg-type]
            forced_lengths=None if config.model_size == BUNDLED else lambda sample: self._lengths[int(sample.id)],
        )
        self._engine = Engine(model, processor, settings).__enter__()

    def run(self, job: Job, decoded: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Caption by continuous batching."""
        self._lengths = job.lengths
        self._engine.encoder.wait_until_compiled(self._engine.config.compile)
        stats = self._engine.stats
        stats.seconds.clear()
        stats.steps = stats.tokens = 0
        samples = [Sample(str(n), decoded.get(path, Path(path)), TASK.token) for n, path in enumerate(job.images)]
        for prediction in self._engine.run(samples):
            number = int(prediction.file_name)
            assert prediction.error is None, prediction
            assert not job.lengths or prediction.num_tokens == job.lengths[number], prediction
            yield job.images[number], prediction.text

    def report(self) -> dict[str, Any]:
        """Return the time of each part of the last job."""
        return {"stats": asdict(self._engine.stats)}


def create_contestant(config: ContestantConfig) -> Contestant:
    """Create a contestant by its name."""
    if config.name in ("ours", "ours-int8"):
        return EngineContestant(config)
    if config.name == "vllm":
        from benchmarks.vllm_contestant import VllmContestant

        return VllmContestant(config)
    from benchmarks.generate_contestants import ExportedContestant, TransformersContestant

    return (ExportedContestant if config.target else TransformersContestant)(config)


def main() -> None:
    """Run jobs until stdin ends."""
    config = ContestantConfig(**json.loads(sys.argv[1]))
    # Output of libraries goes to stderr; stdout is for replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestant: Contestant | None = None
    for line in sys.stdin:
        job = Job(**json.loads(line))
        if contestant is None or job.model_size != config.model_size:
            contestant = None  # frees its memory first
            config = replace(config, model_size=job.model_size)
            contestant = create_contestant(config)
        decoded = {
            path: Image.open(path).convert("RGB").resize(MODEL_IMAGE_SIZE) for path in set(job.images) if job.decoded
        }
        start, cpu_start = time.perf_counter(), time.process_time()
        with torch.inference_mode(), Path(job.output).open("w") as output:
            for path, text in contestant.run(job, decoded):
                print(json.dumps({"file_name": path, "text": text}), file=output, flush=True)
        reply = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        reply["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20 if config.device == "cuda" else 0
        reply["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(reply | contestant.report()), file=replies, flush=True)


if __name__ == "__main__":
    main()

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
from transformers import GenerationConfig as TransformersGenerationConfig
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from florence2.data.sample import Sample
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.model.storage import legacy_layout as legacy
from florence2.model.storage.checkpoint_files import read_tokenizer
from florence2.model.tasks import find_task
from florence2.system import tune_allocator

HUB = Path(__file__).parents[1] / "tests" / "fixtures" / "hub"
TASK = find_task("caption")
MODEL_IMAGE_SIZE, MAX_LENGTH = (768, 768), 200
TINY_CONFIG = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
TINY_CONFIG |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}


@dataclass(frozen=True)
class ContestantConfig:
    """The name of a contestant and its options."""

    name: str
    batch_size: int  # 0: the engine's own choice
    model_size: str
    num_beams: int
    device: str
    dtype: str
    compile: str
    num_workers: int


@dataclass(frozen=True)
class Job:
    """Images to caption, the length of each caption in tokens, and the output file.

    Files may repeat. With `decoded`, images are decoded and resized to the model's size before the clock starts.
    """

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
        model, processor = random_model(config)
        self._lengths: list[int] = []
        settings = EngineConfig(
            generation=GenerationConfig(num_beams=config.num_beams, max_length=MAX_LENGTH),
            batch_size=config.batch_size or None,
            num_workers=config.num_workers,
            compile=config.compile,  # type: ignore[arg-type]
            forced_lengths=lambda sample: self._lengths[int(sample.id)],
        )
        self._engine = Engine(model, processor, settings).__enter__()

    def run(self, job: Job, decoded: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Caption by continuous batching."""
        self._lengths = job.lengths
        stats = self._engine.stats
        stats.seconds.clear()
        stats.steps = stats.tokens = 0
        samples = [Sample(str(n), decoded.get(path, Path(path)), TASK.token) for n, path in enumerate(job.images)]
        for prediction in self._engine.run(samples):
            number = int(prediction.file_name)
            assert prediction.num_tokens == job.lengths[number], prediction
            yield job.images[number], prediction.text

    def report(self) -> dict[str, Any]:
        """Return the time of each part of the last job."""
        return {"stats": asdict(self._engine.stats)}


class GenerateContestant:
    """`generate` of transformers as on the model card: fixed batches, the processor in the same loop."""

    def __init__(self, config: ContestantConfig) -> None:
        if config.name.endswith("tuned"):
            tune_allocator()
        self._config, (self._model, self._processor) = config, random_model(config)
        if config.name.endswith("tuned"):
            self._model.to(memory_format=torch.channels_last)

    def run(self, job: Job, decoded: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Caption batch by batch."""
        for start in range(0, len(job.images), self._config.batch_size):
            paths = job.images[start : start + self._config.batch_size]
            lengths = job.lengths[start : start + self._config.batch_size]
            images = [decoded.get(path) or Image.open(path).convert("RGB") for path in paths]
            inputs = self._processor(text=[TASK.token] * len(paths), images=images, return_tensors="pt", padding=True)
            inputs = inputs.to(self._config.device, getattr(torch, self._config.dtype))
            ids = self._model.generate(
                **inputs,
                max_new_tokens=1000,
                num_beams=self._config.num_beams,
                do_sample=False,
                early_stopping=self._config.num_beams > 1,
                logits_processor=LogitsProcessorList([ForcedLengths(lengths, self._config.num_beams)]),
            )
            for length, row in zip(lengths, ids, strict=True):
                assert row.tolist().index(2, 1) == length + 2, (row, length)
            yield from zip(paths, self._processor.batch_decode(ids, skip_special_tokens=True), strict=True)

    def report(self) -> dict[str, Any]:
        """Return nothing more."""
        return {}


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


def random_model(contestant: ContestantConfig) -> tuple[Any, Florence2Processor]:
    """Create the real architecture with random weights, and the real tokenizer."""
    source = "large" if contestant.model_size == "large" else "base"
    config = legacy.config_to_native(json.loads((HUB / f"microsoft-{source}" / "config.json").read_text()))
    tokenizer = read_tokenizer(HUB / "microsoft-large")  # the same bytes as base
    if contestant.model_size == "tiny":  # to test the script
        config["text_config"] |= TINY_CONFIG
        config["vision_config"] |= {"embed_dim": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "projection_dim": 32}
        config["vision_config"] |= {"num_heads": (1, 2, 4, 8), "num_groups": (1, 2, 4, 8)}
    config["text_config"]["vocab_size"] = len(tokenizer)
    config["image_token_id"] = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model: Any = Florence2ForConditionalGeneration(Florence2Config(**config)).eval()
    with torch.no_grad():  # otherwise all tokens are about equally likely, unlike in a real search
        model.model.language_model.shared.weight.mul_(8)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    model.generation_config = TransformersGenerationConfig(**ids, forced_bos_token_id=0, no_repeat_ngram_size=3)
    images = CLIPImageProcessorPil(
        size={"height": 768, "width": 768},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        image_seq_length=577,
    )
    return model.to(contestant.device, getattr(torch, contestant.dtype)), Florence2Processor(images, tokenizer)


def main() -> None:
    """Run jobs until stdin ends."""
    config = ContestantConfig(**json.loads(sys.argv[1]))
    # Output of libraries goes to stderr; stdout is for replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestant: Contestant = EngineContestant(config) if config.name == "ours" else GenerateContestant(config)
    print(json.dumps({"ready": config.name}), file=replies, flush=True)
    for line in sys.stdin:
        job = Job(**json.loads(line))
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

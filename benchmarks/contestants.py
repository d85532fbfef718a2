"""The contestants of `throughput`: each is a process of its own that captions JPEGs when it is told to.

A process of its own, because the allocator's settings hold for a whole process and the stock rivals shall not profit
from ours. It reads one job as a line of JSON from stdin and answers with one line; between jobs it waits.
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
SEEN, LONGEST = (768, 768), 200
SMALL = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
SMALL |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}


@dataclass(frozen=True)
class Plan:
    """What a contestant is: its name, and the options all of them share."""

    name: str
    batch: int
    size: str
    beams: int
    device: str
    dtype: str
    compile: str
    workers: int


@dataclass(frozen=True)
class Job:
    """Pictures to caption, how many tokens each caption shall have, and where the captions go.

    Files may come several times. `decoded` pictures are open, and of the model's size, before the clock starts.
    """

    images: list[str]
    lengths: list[int]
    output: str
    decoded: bool = False


class Contestant(Protocol):
    """Captions pictures."""

    def run(self, job: Job, opened: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Give (picture, caption) pairs; pictures that are not `opened` are read from disk."""

    def report(self) -> dict[str, Any]:
        """Say what else is known."""


class Ours:
    """The engine of this package, one for all jobs: what it compiled and recorded stays."""

    def __init__(self, plan: Plan) -> None:
        tune_allocator()
        model, processor = random_model(plan)
        self._lengths: list[int] = []
        settings = EngineConfig(
            generation=GenerationConfig(num_beams=plan.beams, max_length=LONGEST),
            batch_size=plan.batch or None,
            num_workers=plan.workers,
            compile=plan.compile,  # type: ignore[arg-type]
            forced_lengths=lambda sample: self._lengths[int(sample.id)],
        )
        self._engine = Engine(model, processor, settings).__enter__()

    def run(self, job: Job, opened: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Caption through slots."""
        self._lengths = job.lengths
        stats = self._engine.stats
        stats.seconds.clear()
        stats.steps = stats.tokens = 0
        samples = [Sample(str(n), opened.get(path, Path(path)), TASK.token) for n, path in enumerate(job.images)]
        for prediction in self._engine.run(samples):
            number = int(prediction.file_name)
            assert prediction.num_tokens == job.lengths[number], prediction
            yield job.images[number], prediction.text

    def report(self) -> dict[str, Any]:
        """Say where the time of the last job went."""
        return {"stats": asdict(self._engine.stats)}


class Stock:
    """`generate` of transformers, as the model card shows it: fixed batches, the processor in the same loop."""

    def __init__(self, plan: Plan) -> None:
        if plan.name.endswith("tuned"):
            tune_allocator()
        self._plan, (self._model, self._processor) = plan, random_model(plan)
        if plan.name.endswith("tuned"):
            self._model.to(memory_format=torch.channels_last)

    def run(self, job: Job, opened: dict[str, Image.Image]) -> Iterator[tuple[str, str]]:
        """Caption batch by batch."""
        for start in range(0, len(job.images), self._plan.batch):
            paths = job.images[start : start + self._plan.batch]
            lengths = job.lengths[start : start + self._plan.batch]
            images = [opened.get(path) or Image.open(path).convert("RGB") for path in paths]
            inputs = self._processor(text=[TASK.token] * len(paths), images=images, return_tensors="pt", padding=True)
            inputs = inputs.to(self._plan.device, getattr(torch, self._plan.dtype))
            ids = self._model.generate(
                **inputs,
                max_new_tokens=1000,
                num_beams=self._plan.beams,
                do_sample=False,
                early_stopping=self._plan.beams > 1,
                logits_processor=LogitsProcessorList([Lengths(lengths, self._plan.beams)]),
            )
            for length, row in zip(lengths, ids, strict=True):
                assert row.tolist().index(2, 1) == length + 2, (row, length)
            yield from zip(paths, self._processor.batch_decode(ids, skip_special_tokens=True), strict=True)

    def report(self) -> dict[str, Any]:
        """Nothing more is known."""
        return {}


class Lengths(LogitsProcessor):  # type: ignore[misc]
    """Ends each row of a batch at a length of its own: random weights know no end."""

    def __init__(self, lengths: list[int], beams: int) -> None:
        self._ends = torch.tensor(lengths).repeat_interleave(beams)[:, None] + 2

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Forbid eos before the end, and all else at the end."""
        is_end = (self._ends == input_ids.shape[1]).to(scores.device)
        is_eos = (torch.arange(scores.shape[-1], device=scores.device) == 2)[None]
        scores = scores.masked_fill(is_eos & (self._ends > input_ids.shape[1]).to(scores.device), -float("inf"))
        return torch.where(is_end, torch.where(is_eos, 0.0, -float("inf")), scores)


def random_model(plan: Plan) -> tuple[Any, Florence2Processor]:
    """Make the real architecture with random weights, and the real tokenizer."""
    source = "large" if plan.size == "large" else "base"
    config = legacy.config_to_native(json.loads((HUB / f"microsoft-{source}" / "config.json").read_text()))
    tokenizer = read_tokenizer(HUB / "microsoft-large")  # the same bytes as base
    if plan.size == "tiny":  # to try the script itself
        config["text_config"] |= SMALL
        config["vision_config"] |= {"embed_dim": (8, 16, 32, 64), "depths": (1, 1, 1, 1), "projection_dim": 32}
        config["vision_config"] |= {"num_heads": (1, 2, 4, 8), "num_groups": (1, 2, 4, 8)}
    config["text_config"]["vocab_size"] = len(tokenizer)
    config["image_token_id"] = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model: Any = Florence2ForConditionalGeneration(Florence2Config(**config)).eval()
    with torch.no_grad():  # else all tokens are about equally likely, and no search is like a real one
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
    return model.to(plan.device, getattr(torch, plan.dtype)), Florence2Processor(images, tokenizer)


def main() -> None:
    """Do jobs until there are no more."""
    plan = Plan(**json.loads(sys.argv[1]))
    # Whatever a library prints to stdout goes to stderr: stdout is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestant: Contestant = Ours(plan) if plan.name == "ours" else Stock(plan)
    print(json.dumps({"ready": plan.name}), file=answers, flush=True)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        opened = {path: Image.open(path).convert("RGB").resize(SEEN) for path in set(job.images) if job.decoded}
        start, processor = time.perf_counter(), time.process_time()
        with torch.inference_mode(), Path(job.output).open("w") as output:
            for path, text in contestant.run(job, opened):
                print(json.dumps({"file_name": path, "text": text}), file=output, flush=True)
        answer = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - processor}
        answer["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20 if plan.device == "cuda" else 0
        answer["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer | contestant.report()), file=answers, flush=True)


if __name__ == "__main__":
    main()

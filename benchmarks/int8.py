"""int8 beside bfloat16 on a CPU: the vision tower, the latency of one caption, and captions a second.

    python -m benchmarks.int8 [--size base|large] [--num_rounds 3] [--num_images 6] [--length 30]

Random weights at real size, images of 768 x 768 that are decoded before the clock starts. Both precisions are in one
process and run in turn, in an order that alternates, so that a busy machine disturbs them alike; a ratio is taken
within a round, and printed is the median. `seconds` are those of the wall clock, `cpu` the processor time of all
threads, which on a busy machine is the better measure. Prints a table, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.processor import processor_name
from benchmarks.real_size import write_checkpoint
from florence2.config import HubSettings, InferenceDType
from florence2.data.sample import Sample
from florence2.demo.scenes import make_scene
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.recipes.create_engine import ModelSource
from florence2.system import tune_allocator

PRECISIONS: tuple[InferenceDType, ...] = ("auto", "int8")
PIXELS = 768
Contestants = dict[str, Callable[[], Any]]


def main() -> None:
    """Measure and print a table, and one line of JSON last."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=["base", "large"], default="base")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--num_images", type=int, default=6, help="of a run with several slots")
    parser.add_argument("--length", type=int, default=30, help="tokens of a caption")
    options = parser.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(Path(name) / "model", options.size)
        source = str(Path(name) / "model")
        models: dict[str, Any] = {
            dtype: ModelSource.resolve(source, HubSettings(), dtype).load("cpu") for dtype in PRECISIONS
        }
    rows = [
        measure(name, contestants, options.num_rounds, num_captions)
        for name, contestants, num_captions in jobs(models, options)
    ]
    dtype = str(models["auto"][0].dtype).removeprefix("torch.")
    print(f"{options.size}, {processor_name()}, {torch.get_num_threads()} threads, medians of {options.num_rounds}")
    print(f"\n| | {dtype}, s | int8, s | ratio | ratio of processor time |\n|---|---|---|---|---|")
    for row in rows:
        seconds = " | ".join(f"{row['seconds'][precision]:.3f}" for precision in PRECISIONS)
        print(f"| {row['name']} | {seconds} | {row['ratio']:.2f} | {row['cpu_ratio']:.2f} |")
    report = {"command": "python -m benchmarks.int8 " + " ".join(sys.argv[1:]), "torch": torch.__version__}
    print(json.dumps(report | {"threads": torch.get_num_threads(), "processor": processor_name(), "rows": rows}))


def jobs(models: dict[str, Any], options: argparse.Namespace) -> list[tuple[str, Contestants, int]]:
    """Return the name of each measurement, what both precisions run, and how many captions that writes."""
    num_images = options.num_images
    images = [make_scene(number).render().resize((PIXELS, PIXELS)) for number in range(num_images)]
    samples = [Sample(f"{number}.png", image, "caption") for number, image in enumerate(images)]
    return [
        ("vision tower, one image", towers(models, samples[0]), 1),
        ("one caption, greedy", engines(models, samples[:1], 1, options.length), 1),
        ("one caption, 3 beams", engines(models, samples[:1], 3, options.length), 1),
        (f"a caption of {num_images}, 3 beams", engines(models, samples, 3, options.length), num_images),
    ]


def towers(models: dict[str, Any], sample: Sample) -> Contestants:
    """Return a pass of the vision tower for each precision, patched as an engine patches it."""
    contestants: Contestants = {}
    for precision, (model, preprocessor) in models.items():
        Engine(model, preprocessor, EngineConfig(batch_size=1))  # leaves its patches
        pixels_BCHW = preprocessor.normalize(preprocessor.resize(sample.open().image)[None]).to(model.dtype)
        tower, layout = model.model.vision_tower, torch.channels_last
        contestants[precision] = _in_inference_mode(tower, pixels_BCHW.contiguous(memory_format=layout))
    return contestants


def _in_inference_mode(module: Any, *inputs: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.inference_mode()(module)(*inputs)


def engines(models: dict[str, Any], samples: list[Sample], num_beams: int, length: int) -> Contestants:
    """Return a run of the samples for each precision, with captions of a forced length."""
    generation = GenerationConfig(num_beams=num_beams, min_length=length, max_length=length, no_repeat_ngram_size=0)
    config = EngineConfig(generation=generation, num_workers=0)
    created = {precision: Engine(model, preprocessor, config) for precision, (model, preprocessor) in models.items()}
    return {precision: _run(engine, samples) for precision, engine in created.items()}


def _run(engine: Engine, samples: list[Sample]) -> Callable[[], Any]:
    return lambda: list(engine.run(samples))


def measure(name: str, contestants: Contestants, num_rounds: int, num_captions: int) -> dict[str, Any]:
    """Time both precisions in turn after a run that warms them up; return the medians for a caption."""
    for run in contestants.values():
        run()
    rounds = []
    for number in range(num_rounds):
        order = PRECISIONS if number % 2 == 0 else PRECISIONS[::-1]
        rounds.append({precision: _time(contestants[precision]) for precision in order})
        print(f"{name}: {rounds[-1]}", file=sys.stderr, flush=True)
    ratios = [statistics.median(each["auto"][clock] / each["int8"][clock] for each in rounds) for clock in range(2)]
    seconds = {
        precision: statistics.median(each[precision][0] for each in rounds) / num_captions for precision in PRECISIONS
    }
    return {"name": name, "seconds": seconds, "ratio": ratios[0], "cpu_ratio": ratios[1], "rounds": rounds}


def _time(run: Callable[[], Any]) -> tuple[float, float]:
    """Return the wall-clock seconds and the processor seconds of a run."""
    start, start_cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - start_cpu


if __name__ == "__main__":
    main()

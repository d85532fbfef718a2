"""int8 beside bfloat16 on a CPU: the vision tower, the latency of one caption, and captions a second.

    python -m benchmarks.int8 [--size base|large] [--num_rounds 3] [--num_images 6] [--length 30]

Random weights at real size, images of 768 x 768 that are decoded before the clock starts. All are in one process and
run in turn, in an order that alternates, so that a busy machine disturbs them alike; a ratio is taken within a round,
and printed is the median. The first contestant is the engine with torch's fused window attention, as it was before
`engine/encoder/window_attention.py`. Prints a table, and one line of JSON last, which has the processor time, too.
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
from florence2.engine.encoder.attention_patch import restore_attention
from florence2.engine.encoder.window_attention import WindowProducts
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.recipes.create_engine import ModelSource
from florence2.system import tune_allocator

FUSED = "fused window attention"
CONTESTANTS: dict[str, InferenceDType] = {"auto": "auto", FUSED: "auto", "int8": "int8"}
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
            name: ModelSource.resolve(source, HubSettings(), dtype).load("cpu") for name, dtype in CONTESTANTS.items()
        }
    rows = [
        measure(name, contestants, options.num_rounds, num_captions)
        for name, contestants, num_captions in jobs(models, options)
    ]
    dtype = str(models["auto"][0].dtype).removeprefix("torch.")
    print(f"{options.size}, {processor_name()}, {torch.get_num_threads()} threads, medians of {options.num_rounds}")
    print(f"\n| | {dtype}, {FUSED}, s | {dtype}, s | int8, s | ratio to {FUSED} | ratio |\n|---|---|---|---|---|---|")
    for row in rows:
        seconds = " | ".join(f"{row['seconds'][name]:.3f}" for name in (FUSED, "auto", "int8"))
        print(f"| {row['name']} | {seconds} | {row['ratios'][FUSED]:.2f} | {row['ratios']['auto']:.2f} |")
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
    """Return a pass of the vision tower for each contestant, patched as an engine patches it."""
    contestants: Contestants = {}
    for name, (model, preprocessor) in models.items():
        create_engine(name, model, preprocessor, EngineConfig(batch_size=1))  # leaves its patches
        pixels_BCHW = preprocessor.normalize(preprocessor.resize(sample.open().image)[None]).to(model.dtype)
        tower, layout = model.model.vision_tower, torch.channels_last
        contestants[name] = _in_inference_mode(tower, pixels_BCHW.contiguous(memory_format=layout))
    return contestants


def _in_inference_mode(module: Any, *inputs: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.inference_mode()(module)(*inputs)


def engines(models: dict[str, Any], samples: list[Sample], num_beams: int, length: int) -> Contestants:
    """Return a run of the samples for each contestant, with captions of a forced length."""
    generation = GenerationConfig(num_beams=num_beams, min_length=length, max_length=length, no_repeat_ngram_size=0)
    config = EngineConfig(generation=generation, num_workers=0)
    created = {name: create_engine(name, model, preprocessor, config) for name, (model, preprocessor) in models.items()}
    return {name: _run(engine, samples) for name, engine in created.items()}


def create_engine(name: str, model: Any, preprocessor: Any, config: EngineConfig) -> Engine:
    """Create an engine; one contestant has torch's fused window attention, as CPUs with AMX have it."""
    engine = Engine(model, preprocessor, config)
    tower = model.model.vision_tower
    if name == FUSED and any(isinstance(module.forward, WindowProducts) for module in tower.modules()):
        restore_attention(tower, WindowProducts)
    return engine


def _run(engine: Engine, samples: list[Sample]) -> Callable[[], Any]:
    return lambda: list(engine.run(samples))


def measure(name: str, contestants: Contestants, num_rounds: int, num_captions: int) -> dict[str, Any]:
    """Time all contestants in turn after a run that warms them up; return the medians for a caption."""
    for run in contestants.values():
        run()
    rounds = []
    for number in range(num_rounds):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        rounds.append({contestant: _time(contestants[contestant]) for contestant in order})
        print(f"{name}: {rounds[-1]}", file=sys.stderr, flush=True)
    ratios = {
        contestant: statistics.median(each[contestant][0] / each["int8"][0] for each in rounds)
        for contestant in contestants
    }
    seconds = {
        contestant: statistics.median(each[contestant][0] for each in rounds) / num_captions
        for contestant in contestants
    }
    return {"name": name, "seconds": seconds, "ratios": ratios, "rounds": rounds}


def _time(run: Callable[[], Any]) -> tuple[float, float]:
    """Return the wall-clock seconds and the processor seconds of a run."""
    start, start_cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - start_cpu


if __name__ == "__main__":
    main()

"""What decoder processes cost beside threads: reading alone, and prediction; alternating pairs in one process.

    python -m benchmarks.decoder_processes
    python -m benchmarks.decoder_processes --model base --num_images 24 --num_pairs 3
    python -m benchmarks.decoder_processes --model base --device cuda --num_workers 16 --num_images 2000

Prints, for JPEGs of .3, 2 and 12 megapixels, images a second with threads and with processes, and the processor time
of an image, which other programs on the machine disturb less; medians of the pairs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from benchmarks.benchmark_models import random_model
from benchmarks.jpegs import make_jpeg
from benchmarks.processor import processor_name
from florence2.data.sample import Sample
from florence2.devices import inference_dtype, pick_device
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generation_config import GenerationConfig
from florence2.model.load import load
from florence2.system import tune_allocator

SIZES = {"0.3": (640, 480), "2": (1632, 1224), "12": (4000, 3000)}  # by megapixels
NUM_FILES = 8
Kind = Literal["threads", "processes"]
KINDS: tuple[Kind, Kind] = ("threads", "processes")
Work = Callable[[list[Sample]], object]
Rates = dict[str, list[float]]


def main() -> None:
    """Measure all sizes and print the table."""
    options = parse()
    tune_allocator()
    model, processor = load_model(options)
    report: dict[str, Any] = {"processor": processor_name(), "options": vars(options), "rows": []}
    with tempfile.TemporaryDirectory() as folder, open_engines(model, processor, options) as engines:
        for megapixels, size in SIZES.items():
            files = [make_jpeg(Path(folder), f"{megapixels}-{number}", size, number) for number in range(NUM_FILES)]
            for name in ("read", "predict"):
                count = options.num_images * (options.read_factor if name == "read" else 1)
                samples = [Sample(str(n), Path(files[n % NUM_FILES]), "caption") for n in range(count)]
                works = {kind: (read if name == "read" else predict)(engines[kind]) for kind in KINDS}
                report["rows"].append({"work": name, "megapixels": megapixels, **measure(works, samples, options)})
                print(table(report["rows"][-1:]), file=sys.stderr)
    print(table(report["rows"]))
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", choices=("demo", "base"), help="base has random weights")
    parser.add_argument("--device", default=None)
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--read_factor", type=int, default=4, help="as many times these images are only read")
    parser.add_argument("--num_pairs", type=int, default=5)
    parser.add_argument("--num_workers", type=int, default=2)
    return parser.parse_args()


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the bundled model, or make a random one."""
    device = pick_device(options.device)
    dtype = inference_dtype("auto", device)
    if options.model == "demo":
        return load("demo", dtype=dtype, device=device)
    name = str(dtype).removeprefix("torch.")
    return random_model("base", str(device), name)


@contextmanager
def open_engines(model: Any, processor: Any, options: argparse.Namespace) -> Iterator[dict[Kind, Engine]]:
    """Make an engine of each kind; captions have 16 tokens."""
    generation, made = GenerationConfig(max_length=32), {}
    for kind in KINDS:
        config = EngineConfig(
            generation, num_workers=options.num_workers, image_workers=kind, forced_lengths=lambda _: 16
        )
        made[kind] = Engine(model, processor, config)
    try:
        yield made
    finally:
        for engine in made.values():
            engine.close()


def read(engine: Engine) -> Work:
    """Return a function that loads images as a run of the engine would."""

    def load_all(samples: list[Sample]) -> None:
        threads = engine.builder.images.threads()
        window = 8 * engine.builder.images.num_workers  # as many are in memory
        futures = [threads.submit(each) for each in samples[:window]]
        for number in range(len(samples)):
            futures[number].result()
            futures[number] = None  # type: ignore[call-overload]
            if number + window < len(samples):
                futures.append(threads.submit(samples[number + window]))
        threads.close()

    return load_all


def predict(engine: Engine) -> Work:
    """Return a function that predicts images."""
    return lambda samples: [prediction.text for prediction in engine.run(samples)]


def measure(works: dict[Kind, Work], samples: list[Sample], options: argparse.Namespace) -> dict[str, Any]:
    """Run both in turn; return images a second, processor milliseconds of an image, and median ratios of the pairs."""
    rates: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    costs: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        works[kind](samples[: 2 * NUM_FILES])  # processes start, memory is allocated
    for pair in range(options.num_pairs):
        for kind in KINDS if pair % 2 == 0 else KINDS[::-1]:
            start, before = time.perf_counter(), processor_seconds()
            works[kind](samples)
            rates[kind].append(len(samples) / (time.perf_counter() - start))
            costs[kind].append(1000 * (processor_seconds() - before) / len(samples))
    return {
        **{f"{kind}_per_s": statistics.median(rates[kind]) for kind in KINDS},
        **{f"{kind}_ms": statistics.median(costs[kind]) for kind in KINDS},
        "time_ratio": statistics.median(a / b for a, b in zip(rates["threads"], rates["processes"], strict=True)),
        "cost_ratio": statistics.median(b / a for a, b in zip(costs["threads"], costs["processes"], strict=True)),
        "load": os.getloadavg()[0],
    }


def processor_seconds() -> float:
    """Return the processor time of this process and its children."""
    process = psutil.Process()
    return sum(float(sum(each.cpu_times()[:2])) for each in [process, *process.children()])


def table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as Markdown."""
    columns = ("threads", "processes", "time", "processor time: threads", "processes", "ratio")
    lines = [f"| | megapixels | {' | '.join(columns)} |", "|---" * 8 + "|"]
    lines += [
        f"| {row['work']} | {row['megapixels']} | {row['threads_per_s']:.1f}/s | {row['processes_per_s']:.1f}/s "
        f"| {row['time_ratio']:.3f} | {row['threads_ms']:.1f} ms | {row['processes_ms']:.1f} ms "
        f"| {row['cost_ratio']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

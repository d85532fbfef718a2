"""Exported graphs beside the engine: seconds per image of OpenVINO and ONNX Runtime, in one process.

    python -m benchmarks.exported_graphs [--size base|large|demo] [--num_beams 3] [--num_rounds 3] [--num_images 4]

Every round runs all contestants on the same images, one after the other and in another order each time, so that a busy
machine disturbs all of them alike. Captions have a forced length. Ratios are taken within a round; printed are medians.
All of them search with the same number of beams: the engine by itself, the graphs by transformers' `generate`.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import florence2
from benchmarks.real_size import write_checkpoint
from florence2.data.sample import Sample
from florence2.demo.scenes import make_scene
from florence2.devices import inference_dtype
from florence2.engine.engine import Engine
from florence2.engine.engine_config import EngineConfig
from florence2.engine.generate_engine import GenerateEngine
from florence2.engine.generation_config import GenerationConfig
from florence2.export.onnx.write_onnx import write_onnx
from florence2.export.openvino.write_openvino import write_openvino
from florence2.system import tune_allocator

STAGES = ("vision", "encode", "decode")
GRAPHS = {
    "onnxruntime float32": ("onnx", "float32"),
    "onnxruntime int8": ("onnx", "int8"),
    "OpenVINO float32": ("openvino", "float32"),
    "OpenVINO float16": ("openvino", "float16"),
    "OpenVINO int8": ("openvino", "int8"),
}
ENGINES = {"engine": None, "engine float32": torch.float32}


def main() -> None:
    """Measure and print a table, and one line of JSON last."""
    options = parse()
    tune_allocator()
    threads = torch.get_num_threads()
    images = [make_scene(number).render().resize((768, 768)) for number in range(options.num_images)]
    samples = [Sample(f"{number}.png", image, "caption") for number, image in enumerate(images)]
    with tempfile.TemporaryDirectory() as name:
        engines = make_engines(options, Path(name), threads, samples)
        rounds = [run_round(engines, samples, seed) for seed in range(options.num_rounds)]
    report = summary(engines, rounds, options.num_images)
    print(
        f"{options.size}, {options.num_beams} beams, {options.length} tokens, {platform.machine()}, {threads} threads"
    )
    print(f"{'':22}{'s/image':>9}{'ratio':>7}" + "".join(f"{stage:>9}" for stage in STAGES))
    for row in report:
        stages = "".join(f"{row['stages'][stage]:>9.3f}" for stage in STAGES)
        print(f"{row['name']:22}{row['seconds']:>9.3f}{row['ratio']:>7.2f}{stages}")
    print(json.dumps({"options": vars(options), "torch": torch.__version__, "rows": report}))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=["base", "large", "demo"], default="base")
    parser.add_argument("--num_beams", type=int, default=3)
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--num_images", type=int, default=4)
    parser.add_argument("--length", type=int, default=40, help="tokens of a caption")
    parser.add_argument("--contestants", nargs="+", default=[*ENGINES, *GRAPHS], choices=[*ENGINES, *GRAPHS])
    return parser.parse_args()


def make_engines(
    options: argparse.Namespace, folder: Path, threads: int, samples: list[Sample]
) -> dict[str, Engine | GenerateEngine]:
    """Load the engine, export and load the graphs; the engine comes first, because ratios refer to it."""
    name = "demo"
    if options.size != "demo":
        write_checkpoint(folder / "model", options.size)
        name = str(folder / "model")
    generation = GenerationConfig(
        num_beams=options.num_beams, min_length=options.length, max_length=options.length, no_repeat_ngram_size=0
    )
    config = EngineConfig(generation=generation)
    engines: dict[str, Engine | GenerateEngine] = {}
    for label, engine_dtype in ENGINES.items():
        if label in options.contestants or label == "engine":
            chosen = engine_dtype or inference_dtype("auto", torch.device("cpu"))
            engines[label] = Engine(*florence2.load(name, dtype=chosen, device="cpu"), config)
    for label, (target, dtype) in GRAPHS.items():
        if label in options.contestants:
            model, processor = florence2.load(name, dtype="float32", device="cpu")
            start, path = time.perf_counter(), folder / label.replace(" ", "-")
            if target == "onnx":
                write_onnx(model, processor, path, dtype=dtype)
            else:
                write_openvino(model, processor, path, dtype=dtype, samples=samples)
            del model
            print(f"wrote {label} in {time.perf_counter() - start:.0f} s", flush=True)
            engines[label] = GenerateEngine(*florence2.load_exported(path, num_threads=threads), config)
    return engines


def run_round(
    engines: dict[str, Engine | GenerateEngine], samples: list[Sample], seed: int
) -> dict[str, dict[str, Any]]:
    """Run every contestant once; the first round's first image of each warms it up."""
    order, results = random.Random(seed).sample(list(engines), len(engines)), {}
    for label in order:
        engine = engines[label]
        if seed == 0:
            list(engine.run(samples[:1]))
        before, start = dict(engine.stats.seconds), time.perf_counter()
        predictions = list(engine.run(samples))
        seconds = time.perf_counter() - start
        assert not any(prediction.error for prediction in predictions)
        stages = {stage: engine.stats.seconds[stage] - before.get(stage, 0.0) for stage in STAGES}
        results[label] = {"seconds": seconds, "stages": stages}
        print(f"round {seed}: {label} {seconds / len(samples):.3f} s/image", flush=True)
    return results


def summary(
    engines: dict[str, Engine | GenerateEngine], rounds: list[dict[str, dict[str, Any]]], num_images: int
) -> list[dict[str, Any]]:
    """Return the medians of each contestant, and of its speed over the engine's."""
    return [
        {
            "name": label,
            "seconds": statistics.median(each[label]["seconds"] for each in rounds) / num_images,
            "ratio": statistics.median(each["engine"]["seconds"] / each[label]["seconds"] for each in rounds),
            "stages": {
                stage: statistics.median(each[label]["stages"][stage] for each in rounds) / num_images
                for stage in STAGES
            },
        }
        for label in engines
    ]


if __name__ == "__main__":
    main()

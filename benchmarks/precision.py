"""Scores of the bundled model in float32 and in a lower precision, on held-out scenes.

    python -m benchmarks.precision --num_scenes 200
    python -m benchmarks.precision --num_scenes 3000 --precision int8 --reference bfloat16

`bfloat16` is the engine's dtype, natively or emulated. `int8` and `fp8` are those of `florence2 predict --dtype`; fp8
is for GPUs, but a CPU computes it, too. The engine predicts every task for every scene, greedily. Prints a table, and
one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.processor import processor_name
from florence2.data.sample import Prediction, Sample, SampleKey
from florence2.demo.scenes import Scene, make_scene
from florence2.demo.targets import SceneTarget, scene_target
from florence2.devices import FP8, INT8, inference_dtype, is_8_bit
from florence2.engine.engine import Engine
from florence2.engine.quantization.quantize_model import quantize_model
from florence2.model.answer import Answer
from florence2.model.load import load
from florence2.model.tasks import TASKS, find_task
from tools.demo_model.scores import ScenePrediction, compute_metrics

FIRST_SEED = 9_000_000
CAPTION_TASKS = ("caption", "detailed_caption", "more_detailed_caption")
Predictions = dict[SampleKey, Prediction]


@dataclass(frozen=True)
class SceneSample:
    """A scene, its target for one task, and the sample for the engine."""

    scene: Scene
    target: SceneTarget
    sample: Sample


def main() -> None:
    """Predict in both precisions and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_scenes", type=int, default=200)
    parser.add_argument("--precision", choices=("bfloat16", INT8, FP8), default="bfloat16")
    parser.add_argument("--reference", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tasks", nargs="*", choices=[task.name for task in TASKS], default=[], help="default: all")
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    seeds = range(FIRST_SEED, FIRST_SEED + options.num_scenes)
    samples = [sample for seed in seeds for sample in scene_samples(seed, options.tasks)]
    predictions, seconds = {}, {}
    for precision in (options.reference, options.precision):
        start = time.perf_counter()
        predictions[precision] = predict(load_model(precision), [each.sample for each in samples])
        seconds[precision] = time.perf_counter() - start
        print(f"{precision}: {len(predictions[precision])} predictions in {seconds[precision]:.0f} s", file=sys.stderr)
    report = summary(options, samples, predictions, seconds)
    print(table(report))
    print(json.dumps(report))


def scene_samples(seed: int, tasks: Sequence[str]) -> Iterator[SceneSample]:
    """Yield a sample for each of the tasks, or for all, that has a target; they share one image, encoded once."""
    scene = make_scene(seed)
    image = scene.render()
    for task in TASKS:
        if (task.name in tasks or not tasks) and (target := scene_target(scene, task.name, seed)):
            yield SceneSample(scene, target, Sample(f"{seed}.png", image, task.token, target.input))


def load_model(precision: str) -> tuple[Any, Any]:
    """Load the bundled model and its processor."""
    if not is_8_bit(precision):
        return load("demo", dtype=precision, device="cpu")
    dtype = torch.bfloat16 if precision == FP8 else inference_dtype("auto", torch.device("cpu"))
    model, processor = load("demo", dtype=dtype, device="cpu")
    quantize_model(model, precision)
    return model, processor


def predict(model_and_processor: tuple[Any, Any], samples: Sequence[Sample]) -> Predictions:
    """Predict all samples."""
    with Engine(*model_and_processor) as engine:
        return {prediction.key: prediction for prediction in engine.run(samples)}


def summary(
    options: argparse.Namespace,
    samples: Sequence[SceneSample],
    predictions: dict[str, Predictions],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Compare the texts, and score both precisions."""
    by_task: dict[str, list[SceneSample]] = defaultdict(list)
    for each in samples:
        by_task[find_task(each.sample.task).name].append(each)
    first, second = predictions.values()
    same_text = {
        task: sum(first[each.sample.key].text == second[each.sample.key].text for each in group) / len(group)
        for task, group in by_task.items()
    }
    scores = {
        precision: {
            f"{task}: {metric}": value
            for task, group in by_task.items()
            for metric, value in compute_metrics(
                task, [ScenePrediction(each.scene, each.target, _answer(found[each.sample.key])) for each in group]
            ).items()
        }
        for precision, found in predictions.items()
    }
    return {
        "command": "python -m benchmarks.precision " + " ".join(sys.argv[1:]),
        "device": processor_name(),
        "torch": torch.__version__,
        "seconds": seconds,
        "same_captions": statistics.mean([same_text[task] for task in CAPTION_TASKS if task in same_text] or [1.0]),
        "same_texts": same_text,
        "scores": scores,
        "max_points_lost": 100
        * max(scores[options.reference][name] - value for name, value in scores[options.precision].items()),
    }


def _answer(prediction: Prediction) -> str | Answer:
    return prediction.text if prediction.answer is None else prediction.answer


def table(report: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    first, second = report["scores"]
    lines = [
        f"# {second} and {first}: same captions {report['same_captions']:.2%}, "
        f"at most {report['max_points_lost']:.2f} points lost",
        "",
        f"| score | {first} | {second} | points | same texts |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, value in report["scores"][first].items():
        other = report["scores"][second][name]
        same_texts = report["same_texts"][name.split(":")[0]]
        lines.append(f"| {name} | {value:.4f} | {other:.4f} | {100 * (other - value):+.2f} | {same_texts:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

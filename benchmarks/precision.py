"""What coarser arithmetic costs in answers: the bundled model in float32 and in another, on scenes it never saw.

    python -m benchmarks.precision --scenes 200
    python -m benchmarks.precision --scenes 100 --against int8

`bfloat16` is what the engine does in that type, whether the CPU has a unit for it or emulates it; `int8` quantises the
linear layers of the float32 model when they run (torch's dynamic quantisation). Every scene is asked every task
through the engine, greedily. A table for people comes first, one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.throughput import processor_name
from florence2.data.sample import Prediction, Sample, SampleKey
from florence2.demo.scenes import Scene, make_scene
from florence2.demo.targets import SceneTarget, scene_target
from florence2.engine.engine import Engine
from florence2.model.answer import Answer
from florence2.model.load import load
from florence2.model.tasks import TASKS, find_task
from tools.demo_model.scores import ScenePrediction, compute_metrics

FIRST_SCENE = 9_000_000
CAPTIONS = ("caption", "detailed_caption", "more_detailed_caption")
Question = tuple[Scene, SceneTarget, Sample]


def main() -> None:
    """Ask both, and print where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--against", choices=("bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--tasks", nargs="*", choices=[task.name for task in TASKS], default=[], help="default: all")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = [
        each for number in range(FIRST_SCENE, FIRST_SCENE + options.scenes) for each in questions(number, options.tasks)
    ]
    told, seconds = {}, {}
    for name in ("float32", options.against):
        start = time.perf_counter()
        told[name] = answers(model_in(name), [sample for _, _, sample in asked])
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {len(told[name])} answers in {seconds[name]:.0f} s", file=sys.stderr)
    report = summary(options, asked, told, seconds)
    print(table(report))
    print(json.dumps(report))


def questions(number: int, tasks: Sequence[str]) -> Iterator[Question]:
    """Ask the tasks named, or all, that have a true answer; about one picture, so that it is looked at once."""
    made = make_scene(number)
    image = made.render()
    for task in TASKS:
        if (task.name in tasks or not tasks) and (told := scene_target(made, task.name, number)):
            yield made, told, Sample(f"{number}.png", image, task.token, told.input)


def model_in(name: str) -> tuple[Any, Any]:
    """Load the bundled model in an arithmetic."""
    if name != "int8":
        return load("demo", dtype=name, device="cpu")
    model, processor = load("demo", dtype="float32", device="cpu")
    return quantised(model), processor


def quantised(model: Any) -> Any:
    """Turn the linear layers of the tower and the encoder into int8; the decoder multiplies by bare weights."""
    quantize: Any = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():  # torch moves this to torchao, another package
        warnings.simplefilter("ignore")
        for part in (model.model.vision_tower, model.get_encoder()):
            quantize(part, {torch.nn.Linear}, torch.qint8, inplace=True)
    return model


def answers(loaded: tuple[Any, Any], samples: Sequence[Sample]) -> dict[SampleKey, Prediction]:
    """Answer all samples."""
    with Engine(*loaded) as engine:
        return {prediction.key: prediction for prediction in engine.run(samples)}


def summary(
    options: argparse.Namespace,
    asked: Sequence[Question],
    told: dict[str, dict[SampleKey, Prediction]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Compare texts, and score both against the truth."""
    by_task: dict[str, list[Question]] = defaultdict(list)
    for each in asked:
        by_task[find_task(each[2].task).name].append(each)
    one, other = told.values()
    same = {
        name: sum(one[sample.key].text == other[sample.key].text for _, _, sample in each) / len(each)
        for name, each in by_task.items()
    }
    scores = {
        name: {
            f"{task}: {measure}": value
            for task, each in by_task.items()
            for measure, value in compute_metrics(
                task, [ScenePrediction(made, t, _answer(said[s.key])) for made, t, s in each]
            ).items()
        }
        for name, said in told.items()
    }
    return {
        "command": "python -m benchmarks.precision " + " ".join(sys.argv[1:]),
        "device": processor_name(),
        "torch": torch.__version__,
        "seconds": seconds,
        "captions_the_same": statistics.mean([same[name] for name in CAPTIONS if name in same] or [1.0]),
        "answers_the_same": same,
        "scores": scores,
        "most_points_lost": 100 * max(scores["float32"][n] - scores[options.against][n] for n in scores["float32"]),
    }


def _answer(prediction: Prediction) -> str | Answer:
    return prediction.text if prediction.answer is None else prediction.answer


def table(report: dict[str, Any]) -> str:
    """Lay the report out for people, in Markdown."""
    one, other = report["scores"]
    lines = [
        f"# {other} beside {one}: captions the same {report['captions_the_same']:.2%}, "
        f"most points lost {report['most_points_lost']:.2f}",
        "",
        f"| score | {one} | {other} | points | answers the same |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, value in report["scores"][one].items():
        against = report["scores"][other][name]
        same = report["answers_the_same"][name.split(":")[0]]
        lines.append(f"| {name} | {value:.4f} | {against:.4f} | {100 * (against - value):+.2f} | {same:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
